package judge

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
)

// ownRules are the differences that are meant, in manifests that Kubernetes
// decodes. Each is the general path of a field and the reason.
var ownRules = map[string]string{
	// An API server replaces the UID that a user gives. nodeagent keeps it, and
	// makes folders and labels of it: it must be one harmless word.
	"metadata.uid": "at most 63 letters, digits and '-'",
}

// elsewhere are unsupported fields that a request to create a pod may not hold
// for Kubernetes either: it has another request or another place for them.
var elsewhere = map[string]bool{"spec.ephemeralContainers": true, "spec.resources.claims": true}

// judge says in which way nodeagent's verdict differs from Kubernetes' opinion;
// empty when it does not.
func judge(v verdict, reviewed map[string]bool) (problem string, theirs opinion) {
	switch {
	case v.Old != nil:
		theirs = updateOpinion(v.Manifest, v.Old)
		if !theirs.decoded {
			return "Kubernetes does not decode an update that nodeagent decodes", theirs
		}
		return sameFields(theirs, v.Fields, v.Truncated), theirs
	case v.ServerSide:
		theirs = createOpinion(withoutServerSide(v.Manifest))
	default:
		theirs = createOpinion(v.Manifest)
	}
	if (v.Pod == nil) != (len(v.Fields) > 0) {
		return "nodeagent has neither a pod nor an error, or both", theirs
	}
	if v.Expect != nil {
		return judgeExpected(v, theirs), theirs
	}
	for _, f := range v.Unsupported {
		if !reviewed[general(f)] {
			return "nodeagent calls " + f + " unsupported, which the corpus does not list", theirs
		}
	}
	if !theirs.decoded {
		return judgeUndecoded(v, theirs), theirs
	}
	if len(v.Unsupported) > 0 {
		// nodeagent goes no further; all that it says must be that.
		if len(v.Unsupported) != len(v.Fields) {
			return "beside what is unsupported, nodeagent refuses what Kubernetes decodes", theirs
		}
		return "", theirs
	}
	got := slices.DeleteFunc(slices.Clone(v.Fields), func(f string) bool { return ownRules[general(f)] != "" && !slices.Contains(theirs.fields, f) })
	if problem := sameFields(theirs, got, v.Truncated); problem != "" || v.Pod == nil {
		return problem, theirs
	}
	// Kubernetes makes a UID of its own; nodeagent's own tests are about ours.
	ours := v.Pod.DeepCopy()
	ours.UID = theirs.pod.UID
	if !apiequality.Semantic.DeepEqual(ours.ObjectMeta, theirs.pod.ObjectMeta) || !apiequality.Semantic.DeepEqual(ours.Spec, theirs.pod.Spec) {
		a, _ := json.Marshal(ours)
		b, _ := json.Marshal(theirs.pod)
		return "the defaulted objects differ: nodeagent\n" + string(a) + "\nKubernetes\n" + string(b), theirs
	}
	return "", theirs
}

// judgeExpected is about manifests that are valid Kubernetes and that nodeagent
// must refuse by exactly the listed fields.
func judgeExpected(v verdict, theirs opinion) string {
	if refusedToo := len(v.Expect) == 1 && elsewhere[v.Expect[0]]; refusedToo != (len(theirs.fields) > 0) || !theirs.decoded {
		return fmt.Sprintf("Kubernetes refuses it as well (%s): it is no example of %s", theirs.text, v.Expect)
	}
	if want, got := sorted(v.Expect), sorted(v.Fields); !slices.Equal(want, got) {
		return fmt.Sprintf("nodeagent names %q, not %q", got, want)
	}
	if !v.OwnRule && !slices.Equal(sorted(v.Expect), sorted(v.Unsupported)) {
		return fmt.Sprintf("nodeagent calls %q unsupported, not %q", v.Unsupported, v.Expect)
	}
	return ""
}

// judgeUndecoded compares the places of errors of decoding. Kubernetes stops at
// the first wrong type, whose path has no indexes and no keys of dictionaries,
// and tells of unknown and duplicate fields only when there is no wrong type;
// nodeagent tells of duplicate fields first, and then of all of the rest.
func judgeUndecoded(v verdict, theirs opinion) string {
	if v.Pod != nil {
		return "Kubernetes does not decode it, nodeagent accepts it: " + theirs.text
	}
	below := func(f string) bool {
		return slices.ContainsFunc(v.Unsupported, func(u string) bool { return under(f, u) || under(f, bare(u)) })
	}
	var got []string
	for _, f := range v.Fields {
		if !slices.Contains(v.Unsupported, f) {
			got = append(got, f)
		}
	}
	switch {
	case theirs.unnamed:
		// Only the number or name of a port decodes itself.
		if slices.ContainsFunc(got, func(f string) bool { return strings.HasSuffix(f, ".targetPort") || strings.HasSuffix(f, ".port") }) {
			return ""
		}
		return "Kubernetes refuses a port, nodeagent names none: " + theirs.text
	case theirs.base64:
		if slices.ContainsFunc(got, func(f string) bool { return strings.HasPrefix(f, "data[") || strings.HasPrefix(f, "binaryData[") }) {
			return ""
		}
		return "Kubernetes refuses base64, nodeagent names none: " + theirs.text
	case theirs.quantity:
		// Its error has no path.
		for _, f := range got {
			if strings.Contains(f, ".capacity[") || strings.Contains(f, ".podFixed[") || strings.Contains(f, ".overhead[") || strings.Contains(f, ".limits[") || strings.Contains(f, ".requests[") || strings.HasSuffix(f, ".sizeLimit") || strings.HasSuffix(f, ".divisor") {
				return ""
			}
		}
		return "Kubernetes refuses a quantity, nodeagent names none: " + theirs.text
	case theirs.wrongType != "":
		if below(theirs.wrongType) || slices.ContainsFunc(got, func(f string) bool { return bare(f) == theirs.wrongType }) {
			return ""
		}
		return "nodeagent does not name " + theirs.wrongType + ": " + theirs.text
	}
	want := theirs.unknown
	if len(theirs.duplicate) > 0 {
		want = theirs.duplicate
	}
	want = slices.DeleteFunc(slices.Clone(want), below)
	for i := range got {
		got[i] = dotted(got[i])
	}
	if v.Truncated {
		return ""
	}
	if !slices.Equal(sorted(got), sorted(want)) {
		return fmt.Sprintf("the undecoded fields differ: nodeagent %q, Kubernetes %q", sorted(got), sorted(want))
	}
	return ""
}

func under(path, parent string) bool {
	rest, ok := strings.CutPrefix(path, parent)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

var (
	brackets = regexp.MustCompile(`\[[^\]]*\]`)
	mapKey   = regexp.MustCompile(`\[([^\]]*)\]`)
	number   = regexp.MustCompile(`^\d+$`)
)

// bare is a path without indexes and keys of dictionaries.
func bare(path string) string { return brackets.ReplaceAllString(path, "") }

// dotted writes keys of dictionaries as Kubernetes does in errors of decoding.
func dotted(path string) string {
	return mapKey.ReplaceAllStringFunc(path, func(s string) string {
		if key := s[1 : len(s)-1]; !number.MatchString(key) {
			return "." + key
		}
		return s
	})
}

func sorted(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return slices.Compact(s)
}

// sameFields compares the paths of errors of validation.
func sameFields(theirs opinion, fields []string, truncated bool) string {
	want, got := sorted(theirs.fields), sorted(fields)
	if truncated {
		for _, f := range got {
			if !slices.Contains(want, f) {
				return "only nodeagent refuses " + f
			}
		}
		return ""
	}
	if !slices.Equal(got, want) {
		return fmt.Sprintf("the field paths differ: nodeagent %q, Kubernetes %q: %s", got, want, theirs.text)
	}
	return ""
}
