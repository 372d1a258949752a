package manifest

import (
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// ValidateConditions checks the conditions that somebody sets on a pod.
func ValidateConditions(list []v1.PodCondition, p *field.Path) (errs field.ErrorList) {
	seen := map[v1.PodConditionType]bool{}
	for i, c := range list {
		at := p.Index(i)
		errs = append(errs, invalid(at.Child("type"), c.Type, validation.IsQualifiedName(string(c.Type)))...)
		errs = append(errs, oneOf(c.Status, at.Child("status"), v1.ConditionTrue, v1.ConditionFalse, v1.ConditionUnknown)...)
		if seen[c.Type] {
			errs = append(errs, field.Duplicate(at.Child("type"), c.Type))
		}
		seen[c.Type] = true
	}
	return errs
}

// DefaultEphemeral gives the containers for debugging what the API server does.
func DefaultEphemeral(p *v1.Pod) {
	for i := range p.Spec.EphemeralContainers {
		defaultContainer((*v1.Container)(&p.Spec.EphemeralContainers[i].EphemeralContainerCommon), false)
	}
}

// ValidateEphemeral checks that containers for debugging may be added to a pod,
// and that nothing else changes, by the API server's rules.
func ValidateEphemeral(updated, old *v1.Pod) (errs field.ErrorList) {
	at := field.NewPath("spec", "ephemeralContainers")
	rest, was := updated.Spec.DeepCopy(), old.Spec.DeepCopy()
	rest.EphemeralContainers, was.EphemeralContainers = nil, nil
	if !apiequality.Semantic.DeepEqual(rest, was) {
		errs = append(errs, field.Forbidden(field.NewPath("spec"), "only ephemeralContainers may change here"))
	}
	for _, o := range old.Spec.EphemeralContainers {
		i := slices.IndexFunc(updated.Spec.EphemeralContainers, func(e v1.EphemeralContainer) bool { return e.Name == o.Name })
		switch {
		case i < 0:
			errs = append(errs, field.Forbidden(at, fmt.Sprintf("existing ephemeral containers %q may not be removed", o.Name)))
		case !apiequality.Semantic.DeepEqual(updated.Spec.EphemeralContainers[i], o):
			errs = append(errs, field.Forbidden(at, fmt.Sprintf("existing ephemeral containers %q may not be changed", o.Name)))
		}
	}
	names, others := map[string]bool{}, map[string]bool{}
	for _, list := range [][]v1.Container{old.Spec.InitContainers, old.Spec.Containers} {
		for i := range list {
			names[list[i].Name], others[list[i].Name] = true, true
		}
	}
	volumes, _ := validateVolumes(old.Spec.Volumes, &old.ObjectMeta, field.NewPath("spec", "volumes"))
	for i := range updated.Spec.EphemeralContainers {
		e, ep := &updated.Spec.EphemeralContainers[i], at.Index(i)
		errs = append(errs, validateEphemeral(e, volumes, ep)...)
		if names[e.Name] {
			errs = append(errs, field.Duplicate(ep.Child("name"), e.Name))
		}
		names[e.Name] = true
		if e.TargetContainerName != "" && !others[e.TargetContainerName] {
			errs = append(errs, field.NotFound(ep.Child("targetContainerName"), e.TargetContainerName))
		}
	}
	return errs
}

// validateEphemeral checks one container for debugging: nobody waits for it,
// watches it or counts what it uses.
func validateEphemeral(e *v1.EphemeralContainer, volumes map[string]*v1.Volume, p *field.Path) field.ErrorList {
	c := (*v1.Container)(&e.EphemeralContainerCommon)
	errs := validateContainer(c, volumes, p)
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"ports", c.Ports != nil}, {"resources", !apiequality.Semantic.DeepEqual(c.Resources, v1.ResourceRequirements{})}, {"resizePolicy", c.ResizePolicy != nil},
		{"restartPolicy", c.RestartPolicy != nil}, {"restartPolicyRules", c.RestartPolicyRules != nil}, {"lifecycle", c.Lifecycle != nil},
		{"livenessProbe", c.LivenessProbe != nil}, {"readinessProbe", c.ReadinessProbe != nil}, {"startupProbe", c.StartupProbe != nil},
	} {
		if f.set {
			errs = append(errs, field.Forbidden(p.Child(f.name), "cannot be set for an Ephemeral Container"))
		}
	}
	for i, m := range c.VolumeMounts {
		if m.SubPath != "" || m.SubPathExpr != "" {
			errs = append(errs, field.Forbidden(p.Child("volumeMounts").Index(i).Child("subPath"), "cannot be set for an Ephemeral Container"))
		}
	}
	return errs
}

// ValidateResize checks that only CPU and memory of containers change, by the
// API server's rules.
func ValidateResize(updated, old *v1.Pod) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	rest := updated.Spec.DeepCopy()
	for _, l := range []struct {
		name     string
		now, was []v1.Container
		rest     []v1.Container
	}{
		{"initContainers", updated.Spec.InitContainers, old.Spec.InitContainers, rest.InitContainers},
		{"containers", updated.Spec.Containers, old.Spec.Containers, rest.Containers},
	} {
		at := spec.Child(l.name)
		if len(l.now) != len(l.was) {
			return append(errs, field.Forbidden(at, l.name+" may not be added or removed on resize"))
		}
		for i := range l.now {
			rp := at.Index(i).Child("resources")
			if l.now[i].Name != l.was[i].Name {
				return append(errs, field.Forbidden(at.Index(i).Child("name"), l.name+" may not be renamed or reordered on resize"))
			}
			errs = append(errs, validateResources(&l.now[i].Resources, rp)...)
			if removed(l.now[i].Resources.Requests, l.was[i].Resources.Requests) {
				errs = append(errs, field.Forbidden(rp.Child("requests"), "resource requests cannot be removed"))
			}
			if removed(l.now[i].Resources.Limits, l.was[i].Resources.Limits) {
				errs = append(errs, field.Forbidden(rp.Child("limits"), "resource limits cannot be removed"))
			}
			if apiequality.Semantic.DeepEqual(withoutSized(l.rest[i].Resources), withoutSized(l.was[i].Resources)) {
				l.rest[i].Resources = l.was[i].Resources
			}
		}
	}
	if !apiequality.Semantic.DeepEqual(*rest, old.Spec) {
		errs = append(errs, field.Forbidden(spec, "only cpu and memory resources are mutable"))
	}
	return errs
}

func removed(now, was v1.ResourceList) bool {
	for name := range was {
		if _, kept := now[name]; !kept {
			return true
		}
	}
	return false
}

// withoutSized are the resources that cannot be resized.
func withoutSized(r v1.ResourceRequirements) v1.ResourceRequirements {
	c := r.DeepCopy()
	for _, list := range []v1.ResourceList{c.Requests, c.Limits} {
		delete(list, v1.ResourceCPU)
		delete(list, v1.ResourceMemory)
	}
	return *c
}
