package pod

import (
	"slices"
	"strconv"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// MatchesNode says whether a selector selects the node of that name and with
// those labels: one of its terms does, with everything that it asks for. A term
// that asks for nothing selects no node, and neither does a selector without
// terms.
func MatchesNode(s *v1.NodeSelector, name string, labels map[string]string) bool {
	return slices.ContainsFunc(s.NodeSelectorTerms, func(t v1.NodeSelectorTerm) bool {
		if len(t.MatchExpressions)+len(t.MatchFields) == 0 {
			return false
		}
		fields := map[string]string{metav1.ObjectNameField: name}
		return !slices.ContainsFunc(t.MatchExpressions, func(r v1.NodeSelectorRequirement) bool { return !meets(r, labels) }) &&
			!slices.ContainsFunc(t.MatchFields, func(r v1.NodeSelectorRequirement) bool { return !meets(r, fields) })
	})
}

func meets(r v1.NodeSelectorRequirement, values map[string]string) bool {
	value, has := values[r.Key]
	switch r.Operator {
	case v1.NodeSelectorOpIn:
		return has && slices.Contains(r.Values, value)
	case v1.NodeSelectorOpNotIn:
		return !has || !slices.Contains(r.Values, value)
	case v1.NodeSelectorOpExists:
		return has
	case v1.NodeSelectorOpDoesNotExist:
		return !has
	case v1.NodeSelectorOpGt, v1.NodeSelectorOpLt:
		if len(r.Values) != 1 {
			return false
		}
		is, err := strconv.ParseInt(value, 10, 64)
		than, err2 := strconv.ParseInt(r.Values[0], 10, 64)
		return has && err == nil && err2 == nil && (r.Operator == v1.NodeSelectorOpGt && is > than || r.Operator == v1.NodeSelectorOpLt && is < than)
	}
	return false
}
