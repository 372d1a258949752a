package pod

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func amounts(pairs ...string) v1.ResourceList {
	l := v1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		l[v1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

func asks(sidecar bool, requests, limits v1.ResourceList) v1.Container {
	c := v1.Container{Resources: v1.ResourceRequirements{Requests: requests, Limits: limits}}
	if sidecar {
		c.RestartPolicy = new(v1.ContainerRestartPolicyAlways)
	}
	return c
}

func TestRequestsAndLimits(t *testing.T) {
	for name, tc := range map[string]struct {
		spec             v1.PodSpec
		requests, limits v1.ResourceList
	}{
		"containers together": {v1.PodSpec{Containers: []v1.Container{asks(false, amounts("cpu", "1"), nil), asks(false, amounts("cpu", "500m", "memory", "1Gi"), amounts("cpu", "1"))}},
			amounts("cpu", "1500m", "memory", "1Gi"), amounts("cpu", "1")},
		"an init container that wants more, beside a sidecar": {v1.PodSpec{
			InitContainers: []v1.Container{asks(true, amounts("cpu", "1"), nil), asks(false, amounts("cpu", "4"), nil)},
			Containers:     []v1.Container{asks(false, amounts("cpu", "2"), nil)}}, amounts("cpu", "5"), nil},
		"a sidecar behind an init container": {v1.PodSpec{
			InitContainers: []v1.Container{asks(false, amounts("cpu", "4"), nil), asks(true, amounts("cpu", "3"), nil)},
			Containers:     []v1.Container{asks(false, amounts("cpu", "2"), nil)}}, amounts("cpu", "5"), nil},
		"overhead": {v1.PodSpec{Overhead: amounts("cpu", "250m", "memory", "64Mi"), Containers: []v1.Container{asks(false, amounts("cpu", "1"), amounts("cpu", "2"))}},
			amounts("cpu", "1250m", "memory", "64Mi"), amounts("cpu", "2250m")},
		"the pod's own": {v1.PodSpec{Overhead: amounts("cpu", "1"), Resources: &v1.ResourceRequirements{Requests: amounts("cpu", "3", "ephemeral-storage", "1"), Limits: amounts("hugepages-2Mi", "4Mi")},
			Containers: []v1.Container{asks(false, amounts("cpu", "1", "ephemeral-storage", "5", "memory", "1Mi"), nil)}},
			amounts("cpu", "4", "ephemeral-storage", "5", "memory", "1Mi"), amounts("hugepages-2Mi", "4Mi")},
	} {
		p := &v1.Pod{Spec: tc.spec}
		for _, list := range []struct{ got, want v1.ResourceList }{{Requests(p), tc.requests}, {Limits(p), tc.limits}} {
			for _, n := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage, "hugepages-2Mi"} {
				if got, want := list.got[n], list.want[n]; got.Cmp(want) != 0 {
					t.Errorf("%s: %s is %s, want %s", name, n, got.String(), want.String())
				}
			}
		}
		if bare := WithoutOverhead(p); bare.Spec.Overhead != nil || tc.spec.Overhead != nil && p.Spec.Overhead == nil {
			t.Errorf("%s: overhead", name)
		}
	}
}

func TestOwnResourcesInTheDownwardAPI(t *testing.T) {
	p := &v1.Pod{Spec: v1.PodSpec{Resources: &v1.ResourceRequirements{Limits: amounts("cpu", "3")}, Containers: []v1.Container{
		{Name: "free"}, {Name: "bound", Resources: v1.ResourceRequirements{Limits: amounts("cpu", "1")}}}}}
	for _, tc := range []struct{ container, resource, want string }{{"free", "limits.cpu", "3"}, {"bound", "limits.cpu", "1"}, {"free", "limits.memory", "64"}} {
		got, err := ResourceField(p, tc.container, &v1.ResourceFieldSelector{Resource: tc.resource}, amounts("cpu", "8", "memory", "64"))
		if err != nil || got != tc.want {
			t.Errorf("%v: %q, %v", tc, got, err)
		}
	}
}
