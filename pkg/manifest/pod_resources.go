package manifest

import (
	"fmt"
	"maps"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// defaultPodResources completes the resources of a pod as a whole (KEP-2837), once
// its containers have theirs: limits of huge pages and requests are those of the
// containers together, a limit is as much as all containers may have, if each has
// one. A pod that names none has none.
func defaultPodResources(p *v1.Pod) {
	own := p.Spec.Resources
	if own == nil {
		return
	}
	roundUp(own.Limits)
	roundUp(own.Requests)
	if len(own.Requests)+len(own.Limits) == 0 {
		return
	}
	requests, limits := pod.ContainerRequests(p), pod.ContainerLimits(p)
	for name, q := range limits {
		if _, asked := own.Requests[name]; pod.IsHugePages(name) && !asked {
			orSet(&own.Limits, name, q)
		}
	}
	for name, q := range requests {
		if pod.OwnResource(name) && !pod.IsHugePages(name) {
			orSet(&own.Requests, name, q)
		}
	}
	for name, q := range own.Limits {
		if pod.OwnResource(name) {
			orSet(&own.Requests, name, q.DeepCopy())
		}
	}
	for name, request := range own.Requests {
		limit, some := limits[name]
		if !pod.OwnResource(name) || !some || !everyContainerLimits(&p.Spec, name) {
			continue
		}
		if request.Cmp(limit) > 0 {
			limit = request.DeepCopy()
		}
		orSet(&own.Limits, name, limit)
	}
}

// orSet gives a resource that is not in the list a quantity.
func orSet(list *v1.ResourceList, name v1.ResourceName, q resource.Quantity) {
	if _, set := (*list)[name]; set {
		return
	}
	if *list == nil {
		*list = v1.ResourceList{}
	}
	(*list)[name] = q
}

func quantity(list v1.ResourceList, name v1.ResourceName) *resource.Quantity {
	q := list[name]
	return &q
}

func everyContainerLimits(spec *v1.PodSpec, name v1.ResourceName) bool {
	for _, list := range [][]v1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			if _, limited := list[i].Resources.Limits[name]; !limited {
				return false
			}
		}
	}
	return true
}

// validatePodResources checks the resources of a pod as a whole, and that those of
// its containers are within them.
func validatePodResources(spec *v1.PodSpec, p *field.Path) (errs field.ErrorList) {
	own := spec.Resources
	if own == nil {
		return nil
	}
	errs = validateResources(own, p)
	requests, limits := p.Child("requests"), p.Child("limits")
	for _, list := range []struct {
		values v1.ResourceList
		path   *field.Path
	}{{own.Limits, limits}, {own.Requests, requests}} {
		for _, name := range slices.Sorted(maps.Keys(list.values)) {
			if name == v1.ResourceEphemeralStorage {
				errs = append(errs, field.NotSupported(list.path.Key(string(name)), name, []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory, v1.ResourceHugePagesPrefix + "<size>"}))
			}
		}
	}
	whole := &v1.Pod{Spec: *spec}
	sum := pod.ContainerRequests(whole)
	for _, name := range slices.Sorted(maps.Keys(sum)) {
		if have, named := own.Requests[name]; named && quantity(sum, name).Cmp(have) > 0 {
			errs = append(errs, field.Invalid(requests.Key(string(name)), have.String(), fmt.Sprintf("must not be less than what the containers ask for together, %s", quantity(sum, name))))
		}
	}
	sum = pod.ContainerLimits(whole)
	for _, name := range slices.Sorted(maps.Keys(sum)) {
		if have, named := own.Limits[name]; named && pod.IsHugePages(name) && quantity(sum, name).Cmp(have) > 0 {
			errs = append(errs, field.Invalid(limits.Key(string(name)), have.String(), fmt.Sprintf("must not be less than the limits of the containers together, %s", quantity(sum, name))))
		}
	}
	for i := range spec.Containers {
		for _, name := range slices.Sorted(maps.Keys(spec.Containers[i].Resources.Limits)) {
			limit := spec.Containers[i].Resources.Limits[name]
			if have, named := own.Limits[name]; named && limit.Cmp(have) > 0 {
				// The API server's path, which is none of the pod's.
				at := p.Child("containers").Index(i).Key(string(name)).Child("limits")
				errs = append(errs, field.Invalid(at, limit.String(), fmt.Sprintf("must not exceed the pod's limit of %s", have.String())))
			}
		}
	}
	return errs
}
