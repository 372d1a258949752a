package manifest

import (
	"strings"

	v1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// namespaceKind: there is nothing to finalise here, and a namespace is active for
// as long as it is there.
func namespaceKind() kind {
	return kind{
		apiVersion: "v1", name: "Namespace", resource: "namespaces", short: "ns", empty: &v1.Namespace{}, cluster: true,
		fields:   []typeFields{{of: v1.Namespace{}, supported: "apiVersion kind metadata", serverSide: "spec status"}},
		nameRule: apivalidation.ValidateNamespaceName, recheckMeta: true, strictUpdate: true,
		complete: func(r Resource) {
			n := r.(*v1.Namespace)
			orDefault(&n.Status.Phase, v1.NamespaceActive)
			if n.Name == "" {
				return
			}
			if n.Labels == nil {
				n.Labels = map[string]string{}
			}
			n.Labels[v1.LabelMetadataName] = n.Name
		},
		validate: func(Resource, Resource) field.ErrorList { return nil },
	}
}

func serviceAccountKind() kind {
	return kind{
		apiVersion: "v1", name: "ServiceAccount", resource: "serviceaccounts", short: "sa", empty: &v1.ServiceAccount{},
		fields: []typeFields{
			{of: v1.ServiceAccount{}, supported: "apiVersion kind metadata secrets imagePullSecrets automountServiceAccountToken"},
			{of: v1.LocalObjectReference{}, supported: "name"},
		},
		nameRule: apivalidation.ValidateServiceAccountName, recheckMeta: true, strictUpdate: true,
		complete: func(r Resource) {
			a := r.(*v1.ServiceAccount)
			for i := range a.Secrets {
				a.Secrets[i] = v1.ObjectReference{Name: a.Secrets[i].Name}
			}
		},
		validate: func(Resource, Resource) field.ErrorList { return nil },
	}
}

func runtimeClassKind() kind {
	return kind{
		apiVersion: "node.k8s.io/v1", name: "RuntimeClass", resource: "runtimeclasses", empty: &nodev1.RuntimeClass{}, cluster: true,
		fields: []typeFields{
			{of: nodev1.RuntimeClass{}, supported: "apiVersion kind metadata handler overhead scheduling"},
			{of: nodev1.Overhead{}, supported: "podFixed"},
			{of: nodev1.Scheduling{}, supported: "nodeSelector tolerations"},
		},
		nameRule: apivalidation.NameIsDNSSubdomain, recheckMeta: true, strictUpdate: true,
		complete: func(Resource) {},
		validate: func(now, old Resource) field.ErrorList {
			c := now.(*nodev1.RuntimeClass)
			errs := validateRuntimeClass(c)
			if old != nil {
				errs = append(errs, apivalidation.ValidateImmutableField(c.Handler, old.(*nodev1.RuntimeClass).Handler, field.NewPath("handler"))...)
			}
			return errs
		},
	}
}

func validateRuntimeClass(c *nodev1.RuntimeClass) (errs field.ErrorList) {
	if c.Handler == "" {
		errs = append(errs, field.Required(field.NewPath("handler"), ""))
	} else {
		errs = append(errs, invalid(field.NewPath("handler"), c.Handler, apivalidation.NameIsDNSLabel(c.Handler, false))...)
	}
	if c.Overhead != nil {
		// What is used whatever the containers ask for is a limit.
		errs = append(errs, validateResources(&v1.ResourceRequirements{Limits: c.Overhead.PodFixed}, field.NewPath("overhead"))...)
	}
	if c.Scheduling == nil {
		return errs
	}
	p := field.NewPath("scheduling")
	errs = append(errs, metavalidation.ValidateLabels(c.Scheduling.NodeSelector, p.Child("nodeSelector"))...)
	errs = append(errs, validateTolerations(c.Scheduling.Tolerations, p.Child("tolerations"))...)
	seen := map[v1.Toleration]bool{}
	for i, t := range c.Scheduling.Tolerations {
		t.TolerationSeconds = nil
		if seen[t] {
			errs = append(errs, field.Duplicate(p.Child("tolerations").Index(i), t))
		}
		seen[t] = true
	}
	return errs
}

// Priorities that pods of the node itself have, and what others may have.
const (
	SystemCriticalPriority = 2000000000
	NodeCriticalPriority   = SystemCriticalPriority + 1000
	highestUserPriority    = 1000000000
)

func priorityClassKind() kind {
	return kind{
		apiVersion: "scheduling.k8s.io/v1", name: "PriorityClass", resource: "priorityclasses", short: "pc", empty: &schedulingv1.PriorityClass{}, cluster: true,
		fields:   []typeFields{{of: schedulingv1.PriorityClass{}, supported: "apiVersion kind metadata value globalDefault description preemptionPolicy"}},
		nameRule: apivalidation.NameIsDNSSubdomain, strictUpdate: true,
		complete: func(r Resource) {
			if c := r.(*schedulingv1.PriorityClass); c.PreemptionPolicy == nil {
				c.PreemptionPolicy = new(v1.PreemptLowerPriority)
			}
		},
		validate: func(now, old Resource) (errs field.ErrorList) {
			c := now.(*schedulingv1.PriorityClass)
			if old == nil {
				return validatePriorityClass(c)
			}
			was := old.(*schedulingv1.PriorityClass)
			if c.Value != was.Value {
				errs = append(errs, field.Forbidden(field.NewPath("value"), "cannot be changed; delete the class and create it again"))
			}
			return append(errs, apivalidation.ValidateImmutableField(c.PreemptionPolicy, was.PreemptionPolicy, field.NewPath("preemptionPolicy"))...)
		},
	}
}

func validatePriorityClass(c *schedulingv1.PriorityClass) (errs field.ErrorList) {
	system := map[string]int32{pod.NodeCriticalClass: NodeCriticalPriority, pod.ClusterCriticalClass: SystemCriticalPriority}
	if strings.HasPrefix(c.Name, "system-") {
		if value, ok := system[c.Name]; !ok || c.Value != value || c.GlobalDefault {
			errs = append(errs, field.Forbidden(field.NewPath("metadata", "name"), "names with system- are those of Kubernetes' own classes, with their own values"))
		}
	} else if c.Value > highestUserPriority {
		errs = append(errs, field.Forbidden(field.NewPath("value"), "must not be above 1000000000"))
	}
	return append(errs, oneOf(*c.PreemptionPolicy, field.NewPath("preemptionPolicy"), v1.PreemptLowerPriority, v1.PreemptNever)...)
}
