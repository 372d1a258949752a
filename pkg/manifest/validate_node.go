package manifest

import (
	"slices"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// affinityFields are the rows of a pod's affinity. What is preferred chooses
// between nodes, and there is one.
var affinityFields = []typeFields{
	{of: v1.Affinity{}, supported: "nodeAffinity podAffinity podAntiAffinity"},
	{of: v1.NodeAffinity{}, supported: "requiredDuringSchedulingIgnoredDuringExecution preferredDuringSchedulingIgnoredDuringExecution"},
	{of: v1.PreferredSchedulingTerm{}, supported: "weight preference"},
	{of: v1.NodeSelector{}, supported: "nodeSelectorTerms"},
	{of: v1.NodeSelectorTerm{}, supported: "matchExpressions matchFields"},
	{of: v1.NodeSelectorRequirement{}, supported: "key operator values"},
}

func validateNodeAffinity(a *v1.NodeAffinity, p *field.Path) (errs field.ErrorList) {
	if a == nil {
		return nil
	}
	if s := a.RequiredDuringSchedulingIgnoredDuringExecution; s != nil {
		errs = validateNodeSelector(s, p.Child("requiredDuringSchedulingIgnoredDuringExecution"))
	}
	for i := range a.PreferredDuringSchedulingIgnoredDuringExecution {
		term, at := &a.PreferredDuringSchedulingIgnoredDuringExecution[i], p.Child("preferredDuringSchedulingIgnoredDuringExecution").Index(i)
		if term.Weight < 1 || term.Weight > 100 {
			errs = append(errs, field.Invalid(at.Child("weight"), term.Weight, "must be 1 to 100"))
		}
		errs = append(errs, validateNodeTerm(&term.Preference, false, at.Child("preference"))...)
	}
	return errs
}

func validateNodeSelector(s *v1.NodeSelector, p *field.Path) (errs field.ErrorList) {
	at := p.Child("nodeSelectorTerms")
	if len(s.NodeSelectorTerms) == 0 {
		return field.ErrorList{field.Required(at, "must have at least one term")}
	}
	for i := range s.NodeSelectorTerms {
		errs = append(errs, validateNodeTerm(&s.NodeSelectorTerms[i], true, at.Index(i))...)
	}
	return errs
}

// validateNodeTerm lets values be anything when they are not strict: the API
// server does so where nothing is required.
func validateNodeTerm(t *v1.NodeSelectorTerm, strict bool, p *field.Path) (errs field.ErrorList) {
	for i, r := range t.MatchExpressions {
		errs = append(errs, validateNodeLabel(r, strict, p.Child("matchExpressions").Index(i))...)
	}
	for i, r := range t.MatchFields {
		errs = append(errs, validateNodeField(r, p.Child("matchFields").Index(i))...)
	}
	return errs
}

func validateNodeLabel(r v1.NodeSelectorRequirement, strict bool, p *field.Path) (errs field.ErrorList) {
	values := p.Child("values")
	switch r.Operator {
	case v1.NodeSelectorOpIn, v1.NodeSelectorOpNotIn:
		if len(r.Values) == 0 {
			errs = append(errs, field.Required(values, "In and NotIn need values"))
		}
	case v1.NodeSelectorOpExists, v1.NodeSelectorOpDoesNotExist:
		if len(r.Values) > 0 {
			errs = append(errs, field.Forbidden(values, "Exists and DoesNotExist have none"))
		}
	case v1.NodeSelectorOpGt, v1.NodeSelectorOpLt:
		if len(r.Values) != 1 {
			errs = append(errs, field.Required(values, "Lt and Gt need one value"))
		}
	default:
		errs = append(errs, field.Invalid(p.Child("operator"), r.Operator, "is none of In, NotIn, Exists, DoesNotExist, Gt, Lt"))
	}
	errs = append(errs, metavalidation.ValidateLabelName(r.Key, p.Child("key"))...)
	for i, v := range r.Values {
		if strict {
			errs = append(errs, invalid(values.Index(i), v, validation.IsValidLabelValue(v))...)
		}
	}
	return errs
}

// validateNodeField: nodes are selected by one field, their name.
func validateNodeField(r v1.NodeSelectorRequirement, p *field.Path) (errs field.ErrorList) {
	if !slices.Contains([]v1.NodeSelectorOperator{v1.NodeSelectorOpIn, v1.NodeSelectorOpNotIn}, r.Operator) {
		errs = append(errs, field.Invalid(p.Child("operator"), r.Operator, "is neither In nor NotIn"))
	} else if len(r.Values) != 1 {
		errs = append(errs, field.Required(p.Child("values"), "needs one value"))
	}
	if r.Key != metav1.ObjectNameField {
		return append(errs, field.Invalid(p.Child("key"), r.Key, "must be "+metav1.ObjectNameField))
	}
	for i, v := range r.Values {
		errs = append(errs, invalid(p.Child("values").Index(i), v, validation.IsDNS1123Subdomain(v))...)
	}
	return errs
}
