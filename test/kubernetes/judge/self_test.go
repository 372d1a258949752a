package judge

import (
	"slices"
	"testing"
)

// TestJudgeNotices alters verdicts that agree, one thing at a time, and fails
// when the judge does not notice: a judge that cannot fail proves nothing.
func TestJudgeNotices(t *testing.T) {
	all := corpus(t)
	reviewed := reviewedFields(all)
	other := verdict{}
	for _, v := range all {
		if v.Pod != nil {
			other = v
			break
		}
	}
	const perKind = 200
	tried := map[string]int{}
	for i, v := range all {
		if i%7 != 0 && v.Expect == nil {
			continue
		}
		for _, a := range alterations {
			changed := v
			changed.Fields, changed.Unsupported = slices.Clone(v.Fields), slices.Clone(v.Unsupported)
			changed.Pod = v.Pod.DeepCopy()
			if tried[a.name] >= perKind || !a.alter(&changed, other) {
				continue
			}
			if problem, theirs := judge(changed, reviewed); problem == "" {
				if theirs.quantity && a.name == "an error at another field" {
					continue // Kubernetes does not say which quantity it means
				}
				t.Fatalf("the judge does not notice %s\n%.3000s\nwhat: %.300s\nnodeagent says: %.1000q", a.name, v.Manifest, v.What, v.Messages)
			}
			tried[a.name]++
		}
	}
	for _, a := range alterations {
		if tried[a.name] < a.least {
			t.Errorf("%s was tried only %d times", a.name, tried[a.name])
		}
	}
	t.Logf("noticed: %v", tried)
}

// alterations make a verdict wrong, or return false when they do not apply.
var alterations = []struct {
	name  string
	least int
	alter func(v *verdict, accepted verdict) bool
}{
	{"a pod that is refused", 200, func(v *verdict, _ verdict) bool {
		v.Fields = []string{"spec.containers[0].image"}
		defer func() { v.Pod = nil }()
		return v.Pod != nil
	}},
	{"a manifest that is accepted", 200, func(v *verdict, accepted verdict) bool {
		if v.Pod != nil || v.Old != nil || len(v.Fields) == 0 || onlyOwn(v) {
			return false
		}
		v.Pod, v.Fields, v.Unsupported, v.Truncated = accepted.Pod, nil, nil, false
		return true
	}},
	{"an error that is missing", 200, func(v *verdict, _ verdict) bool {
		if len(v.Fields) < 2 || v.Truncated || len(v.Unsupported) > 0 || v.Pod != nil || !undisputed(v) {
			return false
		}
		first := v.Fields[0]
		v.Fields = slices.DeleteFunc(v.Fields, func(f string) bool { return f == first })
		return len(v.Fields) > 0
	}},
	{"an error at another field", 200, func(v *verdict, _ verdict) bool {
		if len(v.Fields) == 0 || v.Truncated || v.Expect == nil && (len(v.Unsupported) > 0 || onlyOwn(v)) {
			return false
		}
		v.Fields = []string{"spec.elsewhere"}
		return true
	}},
	{"a default that is missing", 200, func(v *verdict, _ verdict) bool {
		if v.Pod == nil {
			return false
		}
		v.Pod.Spec.Containers[0].TerminationMessagePolicy = ""
		return true
	}},
	{"a default that is wrong", 200, func(v *verdict, _ verdict) bool {
		if v.Pod == nil {
			return false
		}
		grace := *v.Pod.Spec.TerminationGracePeriodSeconds + 1
		v.Pod.Spec.TerminationGracePeriodSeconds = &grace
		return true
	}},
	{"a label that is lost", 100, func(v *verdict, _ verdict) bool {
		if v.Pod == nil || len(v.Pod.Labels) == 0 {
			return false
		}
		v.Pod.Labels = nil
		return true
	}},
	{"a supported field called unsupported", 200, func(v *verdict, _ verdict) bool {
		if v.Old != nil {
			return false
		}
		v.Pod, v.Fields, v.Unsupported = nil, []string{"spec.containers[0].image"}, []string{"spec.containers[0].image"}
		return true
	}},
	{"an unsupported field that is merely wrong", 40, func(v *verdict, _ verdict) bool {
		v.Unsupported = nil
		return v.Expect != nil && !v.OwnRule
	}},
	{"an update that is allowed", 20, func(v *verdict, _ verdict) bool {
		defer func() { v.Fields = nil }()
		return v.Old != nil && len(v.Fields) > 0
	}},
	{"an update that is refused", 20, func(v *verdict, _ verdict) bool {
		defer func() { v.Fields = []string{"spec"} }()
		return v.Old != nil && len(v.Fields) == 0
	}},
}

// onlyOwn says that there is nothing but nodeagent's own rules against a
// manifest.
func onlyOwn(v *verdict) bool {
	return !slices.ContainsFunc(v.Fields, func(f string) bool { return ownRules[general(f)] == "" })
}

// undisputed says that every error is one of Kubernetes' validation.
func undisputed(v *verdict) bool {
	theirs := createOpinion(v.Manifest)
	if v.Old != nil {
		theirs = updateOpinion(v.Manifest, v.Old)
	}
	return theirs.decoded && !v.ServerSide && v.Expect == nil && slices.Equal(sorted(theirs.fields), sorted(v.Fields))
}
