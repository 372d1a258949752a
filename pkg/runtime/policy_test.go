package runtime

import (
	"maps"
	"testing"
	"time"

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

func podOf(requests, limits v1.ResourceList) *v1.Pod {
	return &v1.Pod{Spec: v1.PodSpec{Containers: []v1.Container{{Name: "c", Resources: v1.ResourceRequirements{Requests: requests, Limits: limits}}}}}
}

func TestPolicy(t *testing.T) {
	guaranteed := podOf(amounts("cpu", "1", "memory", "1Gi"), amounts("cpu", "1", "memory", "1Gi"))
	burstable := podOf(amounts("memory", "256Mi"), amounts("memory", "1Gi"))
	unlimited := podOf(amounts("memory", "256Mi"), nil)
	bestEffort := podOf(nil, nil)
	bounded := podOf(amounts("memory", "256Mi"), nil)
	bounded.Spec.Resources = &v1.ResourceRequirements{Limits: amounts("memory", "2Gi")}
	critical := podOf(amounts("memory", "256Mi"), nil)
	critical.Spec.Priority = new(int32(2000000000))
	node := func() v1.ResourceList { return amounts("memory", "4Gi") }
	throttled := Policy{ThrottlingFactor: 0.5, Allocatable: node, Tiered: true}
	swaps := Policy{LimitedSwap: true, Memory: 4 << 30, Swap: 2 << 30}
	for name, tc := range map[string]struct {
		policy Policy
		pod    *v1.Pod
		want   map[string]string
	}{
		"default":               {Policy{}, burstable, map[string]string{"memory.oom.group": "1", "memory.high": "max", "memory.swap.max": "0"}},
		"one process":           {Policy{SingleProcessOOMKill: true}, burstable, map[string]string{"memory.high": "max", "memory.swap.max": "0"}},
		"guaranteed":            {throttled, guaranteed, map[string]string{"memory.oom.group": "1", "memory.high": "max", "memory.swap.max": "0", "memory.min": "1073741824", "memory.low": "0"}},
		"burstable":             {throttled, burstable, map[string]string{"memory.oom.group": "1", "memory.high": "671088640", "memory.swap.max": "0", "memory.min": "0", "memory.low": "268435456"}},
		"without a limit":       {throttled, unlimited, map[string]string{"memory.oom.group": "1", "memory.high": "2281701376", "memory.swap.max": "0", "memory.min": "0", "memory.low": "268435456"}},
		"best effort":           {throttled, bestEffort, map[string]string{"memory.oom.group": "1", "memory.high": "2147483648", "memory.swap.max": "0", "memory.min": "0", "memory.low": "0"}},
		"the pod has a limit":   {throttled, bounded, map[string]string{"memory.oom.group": "1", "memory.high": "max", "memory.swap.max": "0", "memory.min": "0", "memory.low": "268435456"}},
		"swap":                  {swaps, burstable, map[string]string{"memory.oom.group": "1", "memory.high": "max", "memory.swap.max": "134217728"}},
		"guaranteed swaps not":  {swaps, guaranteed, map[string]string{"memory.oom.group": "1", "memory.high": "max", "memory.swap.max": "0"}},
		"best effort swaps not": {swaps, bestEffort, map[string]string{"memory.oom.group": "1", "memory.high": "max", "memory.swap.max": "0"}},
		"critical swaps not":    {swaps, critical, map[string]string{"memory.oom.group": "1", "memory.high": "max", "memory.swap.max": "0"}},
	} {
		tr := translator{policy: tc.policy, host: hostFacts{cgroup2: true, swap: true}}
		if r := tr.containerResources(tc.pod, &tc.pod.Spec.Containers[0]); !maps.Equal(r.Unified, tc.want) {
			t.Errorf("%s: %v, want %v", name, r.Unified, tc.want)
		}
	}

	one := podOf(amounts("cpu", "500m"), amounts("cpu", "2"))
	for name, tc := range map[string]struct {
		policy                Policy
		shares, quota, period int64
	}{
		"default": {Policy{}, 512, 200000, 100000}, "another period": {Policy{Period: 20 * time.Millisecond}, 512, 40000, 20000}, "no quota": {Policy{NoQuota: true}, 512, 0, 0},
	} {
		tr := translator{policy: tc.policy}
		r := tr.containerResources(one, &one.Spec.Containers[0])
		if r.CpuShares != tc.shares || r.CpuQuota != tc.quota || r.CpuPeriod != tc.period || r.Unified != nil {
			t.Errorf("%s: %v", name, r)
		}
	}

	// A container without a limit of its own has the pod's.
	bounded.Spec.Resources.Limits["hugepages-2Mi"] = resource.MustParse("4Mi")
	tr := translator{host: hostFacts{hugePages: []string{"1GB", "2MB"}}}
	r := tr.containerResources(bounded, &bounded.Spec.Containers[0])
	if r.MemoryLimitInBytes != 2<<30 || r.HugepageLimits[0].Limit != 0 || r.HugepageLimits[1].Limit != 4<<20 {
		t.Errorf("limits of the pod: %v", r)
	}
}
