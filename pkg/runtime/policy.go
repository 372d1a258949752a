package runtime

import (
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/pkg/cgroup"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// Policy is how containers are held to what they ask for. The zero value is
// kubelet's default.
type Policy struct {
	// NoQuota leaves limits of CPU unenforced; else they are quotas of Period,
	// by default 100ms.
	NoQuota bool
	Period  time.Duration
	// ThrottlingFactor is which part of what lies between its request and its limit
	// a container uses before it is slowed down; 0: it is not. The limit of one that
	// has none is Allocatable.
	ThrottlingFactor float64
	Allocatable      func() v1.ResourceList
	// Tiered keeps what a container requests from being reclaimed.
	Tiered bool
	// SingleProcessOOMKill leaves the other processes of a container alone.
	SingleProcessOOMKill bool
	// LimitedSwap lets Burstable pods swap in proportion to their memory request.
	LimitedSwap bool
	// Memory and Swap of the node, in bytes.
	Memory, Swap int64
}

// cpu sets share and quota of what is asked for, thousandths of a CPU.
func (p *Policy) cpu(r *cri.LinuxContainerResources, request, limit int64) {
	r.CpuShares = shares(request)
	if p.NoQuota {
		return
	}
	r.CpuPeriod = quotaPeriod
	if p.Period > 0 {
		r.CpuPeriod = p.Period.Microseconds()
	}
	if limit > 0 {
		r.CpuQuota = max(limit*r.CpuPeriod/1000, minQuota)
	}
}

// pageSize is what memory.high is rounded down to, as kubelet does on every host.
const pageSize = 4096

// memory are the settings of cgroup v2 that a container's memory has beyond its
// limit (KEP-2570).
func (p *Policy) memory(pd *v1.Pod, c *v1.Container) map[string]string {
	request, limit := c.Resources.Requests.Memory().Value(), c.Resources.Limits.Memory().Value()
	// What was set before is taken back, when the container is resized.
	out := map[string]string{"memory.high": "max"}
	if p.Tiered {
		low, least := request, int64(0)
		if cgroup.QOS(pd) == v1.PodQOSGuaranteed {
			low, least = 0, request
		}
		out["memory.min"], out["memory.low"] = strconv.FormatInt(least, 10), strconv.FormatInt(low, 10)
	}
	podLimit := limit == 0 && pd.Spec.Resources != nil && !pd.Spec.Resources.Limits.Memory().IsZero()
	if p.ThrottlingFactor == 0 || podLimit || request == limit && request != 0 {
		return out
	}
	if limit == 0 && p.Allocatable != nil {
		allocatable := p.Allocatable()
		limit = allocatable.Memory().Value()
	}
	high := int64(float64(request)+float64(limit-request)*p.ThrottlingFactor) / pageSize * pageSize
	if limit > 0 && high > request {
		out["memory.high"] = strconv.FormatInt(high, 10)
	}
	return out
}

// swap is how much a container may swap on cgroup v2, in bytes: of Burstable pods
// that are not critical, the node's swap in proportion to the memory request
// (KEP-2400).
func (p *Policy) swap(pd *v1.Pod, c *v1.Container) int64 {
	request, limit := c.Resources.Requests.Memory(), c.Resources.Limits.Memory()
	if !p.LimitedSwap || cgroup.QOS(pd) != v1.PodQOSBurstable || pod.Critical(pd) ||
		request.Cmp(*limit) == 0 || p.Memory <= 0 || request.Value() > p.Memory {
		return 0
	}
	return int64(float64(request.Value()) / float64(p.Memory) * float64(p.Swap))
}
