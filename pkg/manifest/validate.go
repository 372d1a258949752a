package manifest

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Validate checks a defaulted pod by the rules that kube-apiserver v1.37 has
// for creating one, for the fields of the support table. Verdict and field
// paths are the API server's, its peculiarities included (an error of a mount's
// propagation names volumeMounts, not the item), so that tools which read them
// find what they know.
func Validate(pod *v1.Pod) field.ErrorList {
	errs := apivalidation.ValidateObjectMeta(&pod.ObjectMeta, true, apivalidation.NameIsDNSSubdomain, field.NewPath("metadata"))
	errs = append(errs, validateAnnotations(pod, field.NewPath("metadata", "annotations"))...)
	errs = append(errs, validateProbePeriods(pod, field.NewPath("metadata", "annotations"))...)
	return append(errs, validateSpec(&pod.Spec, &pod.ObjectMeta, field.NewPath("spec"))...)
}

// Annotations that an API server reads.
const (
	annotationTolerations  = "scheduler.alpha.kubernetes.io/tolerations"
	annotationDeletionCost = "controller.kubernetes.io/pod-deletion-cost"
	annotationMirror       = "kubernetes.io/config.mirror"
)

func validateAnnotations(pod *v1.Pod, p *field.Path) (errs field.ErrorList) {
	if v, ok := pod.Annotations[annotationMirror]; ok && pod.Spec.NodeName == "" {
		errs = append(errs, field.Invalid(p.Key(annotationMirror), v, "a mirror pod needs spec.nodeName"))
	}
	if v := pod.Annotations[annotationTolerations]; v != "" {
		var list []v1.Toleration
		if err := json.Unmarshal([]byte(v), &list); err != nil {
			errs = append(errs, field.Invalid(p, annotationTolerations, err.Error()))
		} else {
			errs = append(errs, validateTolerations(list, p.Child(annotationTolerations))...)
		}
	}
	if v, ok := pod.Annotations[annotationDeletionCost]; ok {
		// "+1" and "01" parse, and are refused: the value has one spelling.
		_, err := strconv.ParseInt(v, 10, 32)
		if err != nil || v[0] == '+' || v[0] == '0' && v != "0" {
			errs = append(errs, field.Invalid(p.Key(annotationDeletionCost), v, "must be a 32-bit integer without sign + or leading zeros"))
		}
	}
	return append(errs, validateAppArmorAnnotations(pod, p)...)
}

func validateSpec(spec *v1.PodSpec, meta *metav1.ObjectMeta, p *field.Path) field.ErrorList {
	volumes, errs := validateVolumes(spec.Volumes, meta, p.Child("volumes"))
	errs = append(errs, validateContainers(spec, volumes, p)...)
	errs = append(errs, validatePodResources(spec, p.Child("resources"))...)
	errs = append(errs, validateSecurity(spec, p)...)
	errs = append(errs, validateFSGroup(spec.SecurityContext, p.Child("securityContext"))...)
	errs = append(errs, oneOf(spec.RestartPolicy, p.Child("restartPolicy"),
		v1.RestartPolicyAlways, v1.RestartPolicyOnFailure, v1.RestartPolicyNever)...)
	errs = append(errs, oneOf(spec.DNSPolicy, p.Child("dnsPolicy"),
		v1.DNSClusterFirstWithHostNet, v1.DNSClusterFirst, v1.DNSDefault, v1.DNSNone)...)
	errs = append(errs, validateNaming(spec, p)...)
	errs = append(errs, validatePodLife(spec, p)...)
	switch grace := p.Child("terminationGracePeriodSeconds"); {
	case spec.TerminationGracePeriodSeconds == nil:
		errs = append(errs, field.Required(grace, ""))
	case *spec.TerminationGracePeriodSeconds < 0:
		errs = append(errs, field.Invalid(grace, *spec.TerminationGracePeriodSeconds, apivalidation.IsNegativeErrorMsg))
	}
	errs = append(errs, metavalidation.ValidateLabels(spec.NodeSelector, p.Child("nodeSelector"))...)
	errs = append(errs, validatePodPlacement(spec.Affinity, meta.Labels, p.Child("affinity"))...)
	errs = append(errs, validateSpread(spec.TopologySpreadConstraints, meta.Labels, p.Child("topologySpreadConstraints"))...)
	if spec.HostPID && spec.ShareProcessNamespace != nil && *spec.ShareProcessNamespace {
		errs = append(errs, field.Invalid(p.Child("shareProcessNamespace"), true, "cannot be combined with hostPID: there is only one process namespace then"))
	}
	if spec.ServiceAccountName != "" {
		errs = append(errs, invalid(p.Child("serviceAccountName"), spec.ServiceAccountName,
			apivalidation.ValidateServiceAccountName(spec.ServiceAccountName, false))...)
	}
	if spec.DeprecatedServiceAccount != spec.ServiceAccountName {
		errs = append(errs, field.Invalid(p.Child("deprecatedServiceAccount"), spec.DeprecatedServiceAccount, "must be the same as serviceAccountName"))
	}
	if spec.NodeName != "" {
		errs = append(errs, invalid(p.Child("nodeName"), spec.NodeName, validation.IsDNS1123Subdomain(spec.NodeName))...)
	}
	if spec.PreemptionPolicy != nil {
		errs = append(errs, oneOf(*spec.PreemptionPolicy, p.Child("preemptionPolicy"), v1.PreemptLowerPriority, v1.PreemptNever)...)
	}
	if spec.PriorityClassName != "" {
		errs = append(errs, invalid(p.Child("priorityClassName"), spec.PriorityClassName, validation.IsDNS1123Subdomain(spec.PriorityClassName))...)
	}
	return append(errs, validateTolerations(spec.Tolerations, p.Child("tolerations"))...)
}

func validateTolerations(list []v1.Toleration, p *field.Path) (errs field.ErrorList) {
	for i := range list {
		t, ip := &list[i], p.Index(i)
		if t.Key != "" {
			errs = append(errs, metavalidation.ValidateLabelName(t.Key, ip.Child("key"))...)
		} else if t.Operator != v1.TolerationOpExists {
			errs = append(errs, field.Invalid(ip.Child("operator"), t.Operator, "must be Exists when there is no key: it then tolerates every taint"))
		}
		if t.TolerationSeconds != nil && t.Effect != v1.TaintEffectNoExecute {
			errs = append(errs, field.Invalid(ip.Child("effect"), t.Effect, "must be NoExecute when tolerationSeconds is set"))
		}
		switch t.Operator {
		case "", v1.TolerationOpEqual:
			if msgs := validation.IsValidLabelValue(t.Value); len(msgs) > 0 {
				errs = append(errs, field.Invalid(ip.Child("operator"), t.Value, strings.Join(msgs, "; ")))
			}
		case v1.TolerationOpExists:
			if t.Value != "" {
				errs = append(errs, field.Invalid(ip.Child("operator"), t.Value, "Exists takes no value"))
			}
		default:
			errs = append(errs, oneOf(t.Operator, ip.Child("operator"), v1.TolerationOpEqual, v1.TolerationOpExists)...)
		}
		if t.Effect != "" {
			errs = append(errs, oneOf(t.Effect, ip.Child("effect"),
				v1.TaintEffectNoSchedule, v1.TaintEffectPreferNoSchedule, v1.TaintEffectNoExecute)...)
		}
	}
	return errs
}

// oneOf refuses a value that is not in the list, and one that is missing.
func oneOf[T ~string](value T, p *field.Path, allowed ...T) field.ErrorList {
	switch {
	case slices.Contains(allowed, value):
		return nil
	case value == "":
		return field.ErrorList{field.Required(p, "")}
	default:
		return field.ErrorList{field.NotSupported(p, value, allowed)}
	}
}

// invalid turns the messages of a format check into errors.
func invalid(p *field.Path, value any, msgs []string) (errs field.ErrorList) {
	for _, m := range msgs {
		errs = append(errs, field.Invalid(p, value, m))
	}
	return errs
}

func dnsLabel(name string, p *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	return invalid(p, name, validation.IsDNS1123Label(name))
}
