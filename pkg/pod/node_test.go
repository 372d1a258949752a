package pod

import (
	"testing"

	v1 "k8s.io/api/core/v1"
)

func TestMatchesNode(t *testing.T) {
	labels := map[string]string{"disk": "ssd", "cpus": "8", "empty": ""}
	need := func(key string, op v1.NodeSelectorOperator, values ...string) v1.NodeSelectorRequirement {
		return v1.NodeSelectorRequirement{Key: key, Operator: op, Values: values}
	}
	for name, tc := range map[string]struct {
		label v1.NodeSelectorRequirement
		want  bool
	}{
		"In":                 {need("disk", "In", "hdd", "ssd"), true},
		"In, not":            {need("disk", "In", "hdd"), false},
		"In, absent":         {need("gpu", "In", ""), false},
		"NotIn":              {need("disk", "NotIn", "hdd"), true},
		"NotIn, not":         {need("disk", "NotIn", "ssd"), false},
		"NotIn, absent":      {need("gpu", "NotIn", "x"), true},
		"Exists":             {need("empty", "Exists"), true},
		"Exists, not":        {need("gpu", "Exists"), false},
		"DoesNotExist":       {need("gpu", "DoesNotExist"), true},
		"DoesNotExist, not":  {need("disk", "DoesNotExist"), false},
		"Gt":                 {need("cpus", "Gt", "7"), true},
		"Gt, equal":          {need("cpus", "Gt", "8"), false},
		"Lt":                 {need("cpus", "Lt", "9"), true},
		"Lt, no number":      {need("disk", "Lt", "9"), false},
		"Lt, absent":         {need("gpu", "Lt", "9"), false},
		"Gt, values of none": {need("cpus", "Gt", "few"), false},
		"unknown":            {need("disk", "Near", "ssd"), false},
	} {
		s := &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{{MatchExpressions: []v1.NodeSelectorRequirement{tc.label}}}}
		if got := MatchesNode(s, "n", labels); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
	}
	byName := func(op v1.NodeSelectorOperator, name string) v1.NodeSelectorTerm {
		return v1.NodeSelectorTerm{MatchFields: []v1.NodeSelectorRequirement{need("metadata.name", op, name)}}
	}
	both := byName("In", "n")
	both.MatchExpressions = []v1.NodeSelectorRequirement{need("disk", "In", "hdd")}
	for name, tc := range map[string]struct {
		terms []v1.NodeSelectorTerm
		want  bool
	}{
		"by name": {[]v1.NodeSelectorTerm{byName("In", "n")}, true}, "by another name": {[]v1.NodeSelectorTerm{byName("In", "m")}, false},
		"by none of a name": {[]v1.NodeSelectorTerm{byName("NotIn", "n")}, false}, "one of two": {[]v1.NodeSelectorTerm{both, byName("NotIn", "m")}, true},
		"all of one": {[]v1.NodeSelectorTerm{both}, false}, "an empty term": {[]v1.NodeSelectorTerm{{}}, false}, "no terms": {nil, false},
	} {
		if got := MatchesNode(&v1.NodeSelector{NodeSelectorTerms: tc.terms}, "n", labels); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
