package manifest

import (
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// spreadFields are the rows of what places pods relative to other pods. It
// chooses between nodes and is a scheduler's business: checked and kept as
// written, without effect here. (An API server also writes the labels that
// matchLabelKeys name into the selectors; kubelet does not for pods of its own.)
var spreadFields = []typeFields{
	{of: v1.PodAffinity{}, supported: "requiredDuringSchedulingIgnoredDuringExecution preferredDuringSchedulingIgnoredDuringExecution"},
	{of: v1.PodAntiAffinity{}, supported: "requiredDuringSchedulingIgnoredDuringExecution preferredDuringSchedulingIgnoredDuringExecution"},
	{of: v1.WeightedPodAffinityTerm{}, supported: "weight podAffinityTerm"},
	{of: v1.PodAffinityTerm{}, supported: "labelSelector namespaces topologyKey namespaceSelector matchLabelKeys mismatchLabelKeys"},
	{of: v1.TopologySpreadConstraint{}, supported: "maxSkew topologyKey whenUnsatisfiable labelSelector minDomains nodeAffinityPolicy nodeTaintsPolicy matchLabelKeys"},
}

func validatePodPlacement(a *v1.Affinity, labels map[string]string, p *field.Path) field.ErrorList {
	if a == nil {
		return nil
	}
	errs := validateNodeAffinity(a.NodeAffinity, p.Child("nodeAffinity"))
	if pa := a.PodAffinity; pa != nil {
		errs = append(errs, validatePodTerms(pa.RequiredDuringSchedulingIgnoredDuringExecution, pa.PreferredDuringSchedulingIgnoredDuringExecution, labels, p.Child("podAffinity"))...)
	}
	if pa := a.PodAntiAffinity; pa != nil {
		errs = append(errs, validatePodTerms(pa.RequiredDuringSchedulingIgnoredDuringExecution, pa.PreferredDuringSchedulingIgnoredDuringExecution, labels, p.Child("podAntiAffinity"))...)
	}
	return errs
}

func validatePodTerms(required []v1.PodAffinityTerm, preferred []v1.WeightedPodAffinityTerm, labels map[string]string, p *field.Path) (errs field.ErrorList) {
	for i := range required {
		errs = append(errs, validatePodTerm(&required[i], labels, p.Child("requiredDuringSchedulingIgnoredDuringExecution").Index(i))...)
	}
	for i := range preferred {
		at := p.Child("preferredDuringSchedulingIgnoredDuringExecution").Index(i)
		if w := preferred[i].Weight; w < 1 || w > 100 {
			errs = append(errs, field.Invalid(at.Child("weight"), w, "must be 1 to 100"))
		}
		errs = append(errs, validatePodTerm(&preferred[i].PodAffinityTerm, labels, at.Child("podAffinityTerm"))...)
	}
	return errs
}

func validatePodTerm(t *v1.PodAffinityTerm, labels map[string]string, p *field.Path) field.ErrorList {
	selector := withLabelKeys(t.LabelSelector, t.MatchLabelKeys, metav1.LabelSelectorOpIn, labels)
	selector = withLabelKeys(selector, t.MismatchLabelKeys, metav1.LabelSelectorOpNotIn, labels)
	errs := metavalidation.ValidateLabelSelector(selector, metavalidation.LabelSelectorValidationOptions{}, p.Child("labelSelector"))
	errs = append(errs, metavalidation.ValidateLabelSelector(t.NamespaceSelector, metavalidation.LabelSelectorValidationOptions{}, p.Child("namespaceSelector"))...)
	for _, name := range t.Namespaces {
		errs = append(errs, invalid(p.Child("namespace"), name, apivalidation.ValidateNamespaceName(name, false))...)
	}
	errs = append(errs, validateLabelKeys(t.MatchLabelKeys, t.MismatchLabelKeys, selector, p)...)
	if t.TopologyKey == "" {
		errs = append(errs, field.Required(p.Child("topologyKey"), ""))
	}
	return append(errs, metavalidation.ValidateLabelName(t.TopologyKey, p.Child("topologyKey"))...)
}

// withLabelKeys is the selector that an API server would make of the pod's own
// labels, which is what its rules are about.
func withLabelKeys(s *metav1.LabelSelector, keys []string, op metav1.LabelSelectorOperator, labels map[string]string) *metav1.LabelSelector {
	if s == nil || len(keys) == 0 {
		return s
	}
	s = s.DeepCopy()
	for _, k := range keys {
		if v, ok := labels[k]; ok {
			s.MatchExpressions = append(s.MatchExpressions, metav1.LabelSelectorRequirement{Key: k, Operator: op, Values: []string{v}})
		}
	}
	return s
}

// validateLabelKeys checks the keys beside the selector that they were added to:
// one that is there twice was there before. That error names the item of the list
// that the term is in, as the API server's does.
func validateLabelKeys(match, mismatch []string, s *metav1.LabelSelector, p *field.Path) (errs field.ErrorList) {
	for _, l := range []struct {
		name string
		keys []string
	}{{"matchLabelKeys", match}, {"mismatchLabelKeys", mismatch}} {
		if len(l.keys) > 0 && s == nil {
			errs = append(errs, field.Forbidden(p.Child(l.name), "needs a labelSelector"))
			continue
		}
		for i, k := range l.keys {
			errs = append(errs, metavalidation.ValidateLabelName(k, p.Child(l.name).Index(i))...)
		}
	}
	if s != nil {
		seen := map[string]bool{}
		for k := range s.MatchLabels {
			seen[k] = true
		}
		for _, e := range s.MatchExpressions {
			// The last of keys given twice counts.
			if i := lastIndex(match, e.Key); i >= 0 && seen[e.Key] {
				errs = append(errs, field.Invalid(p.Index(i), e.Key, "is both in matchLabelKeys and in labelSelector"))
			}
			seen[e.Key] = true
		}
	}
	for i, k := range match {
		if slices.Contains(mismatch, k) {
			errs = append(errs, field.Invalid(p.Child("matchLabelKeys").Index(i), k, "is in mismatchLabelKeys, too"))
		}
	}
	return errs
}

func lastIndex(list []string, s string) int {
	for i := len(list) - 1; i >= 0; i-- {
		if list[i] == s {
			return i
		}
	}
	return -1
}

func validateSpread(list []v1.TopologySpreadConstraint, labels map[string]string, p *field.Path) (errs field.ErrorList) {
	for i := range list {
		c, at := &list[i], p.Index(i)
		if c.MaxSkew < 1 {
			errs = append(errs, field.Invalid(at.Child("maxSkew"), c.MaxSkew, "must be greater than zero"))
		}
		if c.TopologyKey == "" {
			errs = append(errs, field.Required(at.Child("topologyKey"), ""))
		}
		errs = append(errs, oneOf(c.WhenUnsatisfiable, at.Child("whenUnsatisfiable"), v1.DoNotSchedule, v1.ScheduleAnyway)...)
		if slices.ContainsFunc(list[i+1:], func(o v1.TopologySpreadConstraint) bool {
			return o.TopologyKey == c.TopologyKey && o.WhenUnsatisfiable == c.WhenUnsatisfiable
		}) {
			errs = append(errs, field.Duplicate(at.Child("{topologyKey, whenUnsatisfiable}"), fmt.Sprintf("{%s, %s}", c.TopologyKey, c.WhenUnsatisfiable)))
		}
		if n := c.MinDomains; n != nil {
			if *n < 1 {
				errs = append(errs, field.Invalid(at.Child("minDomains"), *n, "must be greater than zero"))
			}
			if c.WhenUnsatisfiable != v1.DoNotSchedule {
				errs = append(errs, field.Invalid(at.Child("minDomains"), *n, "needs whenUnsatisfiable: DoNotSchedule"))
			}
		}
		errs = append(errs, validateInclusion(c.NodeAffinityPolicy, at.Child("nodeAffinityPolicy"))...)
		errs = append(errs, validateInclusion(c.NodeTaintsPolicy, at.Child("nodeTaintsPolicy"))...)
		selector := withLabelKeys(c.LabelSelector, c.MatchLabelKeys, metav1.LabelSelectorOpIn, labels)
		errs = append(errs, validateLabelKeys(c.MatchLabelKeys, nil, selector, at)...)
		errs = append(errs, metavalidation.ValidateLabelSelector(selector, metavalidation.LabelSelectorValidationOptions{}, at.Child("labelSelector"))...)
	}
	return errs
}

func validateInclusion(policy *v1.NodeInclusionPolicy, p *field.Path) field.ErrorList {
	if policy == nil {
		return nil
	}
	return oneOf(*policy, p, v1.NodeInclusionPolicyHonor, v1.NodeInclusionPolicyIgnore)
}
