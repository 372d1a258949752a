package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// What EnforceNodeAllocatable may hold. The compressible ones set CPU only.
const (
	EnforceNone           = "none"
	EnforcePods           = "pods"
	EnforceSystem         = "system-reserved"
	EnforceSystemCPU      = "system-reserved-compressible"
	EnforceKube           = "kube-reserved"
	EnforceKubeCPU        = "kube-reserved-compressible"
	reservedPIDs          = "pid"
	NoSwap                = "NoSwap"
	LimitedSwap           = "LimitedSwap"
	ReservationNone       = "None"
	ReservationTiered     = "TieredReservation"
	defaultMaxPods        = 110
	defaultCFSQuotaPeriod = 100 * time.Millisecond
)

// MemorySwap is what pods may swap.
type MemorySwap struct {
	// SwapBehavior is NoSwap or, on cgroup v2, LimitedSwap. Default NoSwap.
	SwapBehavior string `json:"swapBehavior,omitempty"`
}

// resourceFlags have the names of kubelet's.
func resourceFlags() []flag {
	type C = NodeAgentConfiguration
	reserved := func(name, usage string, at func(*C) *map[string]string) flag {
		return flag{name,
			func(fs *pflag.FlagSet, c *C) {
				fs.StringToStringVar(at(c), name, *at(c), usage)
				fs.Lookup(name).DefValue = "" // not "[]", which says nothing
			},
			func(dst, src *C) { *at(dst) = maps.Clone(*at(src)) }}
	}
	return []flag{
		reserved("system-reserved", "what the host keeps for itself, as `NAME=AMOUNT` pairs of cpu, memory, ephemeral-storage and pid", func(c *C) *map[string]string { return &c.SystemReserved }),
		reserved("kube-reserved", "what it keeps for the agent and the runtime, as `NAME=AMOUNT` pairs", func(c *C) *map[string]string { return &c.KubeReserved }),
		list("enforce-node-allocatable", "who is held to their share: pods, system-reserved, kube-reserved, or none (default pods)", func(c *C) *[]string { return &c.EnforceNodeAllocatable }),
		{"max-pods",
			func(fs *pflag.FlagSet, c *C) {
				fs.IntVar(&c.MaxPods, "max-pods", c.MaxPods, "pods that run at once (default 110)")
			},
			func(dst, src *C) { dst.MaxPods = src.MaxPods }},
		boolean("fail-swap-on", "run no pods on a host that swaps", func(c *C) *bool { return &c.FailSwapOn }),
	}
}

// EnforcesCFSQuota says whether limits of CPU are quotas.
func (c *NodeAgentConfiguration) EnforcesCFSQuota() bool {
	return c.CPUCFSQuota == nil || *c.CPUCFSQuota
}

// Enforces says whether EnforceNodeAllocatable holds one of those words.
func (c *NodeAgentConfiguration) Enforces(what ...string) bool {
	return slices.ContainsFunc(what, func(w string) bool { return slices.Contains(c.EnforceNodeAllocatable, w) })
}

// Reserved are the amounts of a validated SystemReserved or KubeReserved, those of
// process numbers apart.
func Reserved(list map[string]string) (amounts v1.ResourceList, pids int64) {
	amounts = v1.ResourceList{}
	for name, text := range list {
		q, err := resource.ParseQuantity(text)
		switch {
		case err != nil: // it was validated
		case name == reservedPIDs:
			pids = q.Value()
		default:
			amounts[v1.ResourceName(name)] = q
		}
	}
	return amounts, pids
}

func defaultResources(c *NodeAgentConfiguration) {
	num(&c.MaxPods, defaultMaxPods)
	if len(c.EnforceNodeAllocatable) == 0 {
		c.EnforceNodeAllocatable = []string{EnforcePods}
	}
	if c.CPUCFSQuota == nil {
		c.CPUCFSQuota = new(true)
	}
	dur(&c.CPUCFSQuotaPeriod, defaultCFSQuotaPeriod)
	str(&c.MemoryReservationPolicy, ReservationNone)
	str(&c.MemorySwap.SwapBehavior, NoSwap)
}

// resources checks what is kept from pods, and how they are held to what they have.
func (k *checker) resources(c *NodeAgentConfiguration) {
	k.reserved("systemReserved", c.SystemReserved)
	k.reserved("kubeReserved", c.KubeReserved)
	k.enforcement(c)
	if c.PodsPerCore < 0 || c.MaxPods < 0 {
		for field, n := range map[string]int{"maxPods": c.MaxPods, "podsPerCore": c.PodsPerCore} {
			if n < 0 {
				k.bad(field, "%d is below 0", n)
			}
		}
	} else if c.MaxPods > 0 && c.PodsPerCore > c.MaxPods {
		k.bad("podsPerCore", "%d is above maxPods, %d", c.PodsPerCore, c.MaxPods)
	}
	if d := c.CPUCFSQuotaPeriod.Duration; d != 0 && (d < time.Millisecond || d > time.Second) {
		k.bad("cpuCFSQuotaPeriod", "%s must be from 1ms to 1s", d)
	}
	if f := c.MemoryThrottlingFactor; f < 0 || f > 1 {
		k.bad("memoryThrottlingFactor", "%v must be above 0 and at most 1", f)
	}
	k.oneOf("memoryReservationPolicy", c.MemoryReservationPolicy, ReservationNone, ReservationTiered)
	k.oneOf("memorySwap.swapBehavior", c.MemorySwap.SwapBehavior, NoSwap, LimitedSwap)
	if c.FailSwapOn && c.MemorySwap.SwapBehavior == LimitedSwap {
		k.bad("failSwapOn", "must be false for pods to swap (memorySwap.swapBehavior: %s)", LimitedSwap)
	}
}

func (k *checker) reserved(field string, list map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(list)) {
		at := field + "." + name
		switch v1.ResourceName(name) {
		case v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage, reservedPIDs:
		default:
			k.bad(at, "cannot be reserved: use cpu, memory, ephemeral-storage or pid")
			continue
		}
		if q, err := resource.ParseQuantity(list[name]); err != nil || q.Sign() < 0 {
			k.bad(at, "%q is no amount such as 500m or 1Gi", list[name])
		}
	}
}

func (k *checker) enforcement(c *NodeAgentConfiguration) {
	const field = "enforceNodeAllocatable"
	for i, what := range c.EnforceNodeAllocatable {
		at := fmt.Sprintf("%s[%d]", field, i)
		if what == "" {
			k.bad(at, "is empty")
		}
		k.oneOf(at, what, EnforceNone, EnforcePods, EnforceSystem, EnforceSystemCPU, EnforceKube, EnforceKubeCPU)
	}
	if c.Enforces(EnforceNone) && len(c.EnforceNodeAllocatable) > 1 {
		k.bad(field, "none stands alone")
	}
	for _, r := range []struct {
		all, cpu, cgroupField, cgroup, amounts string
		reserved                               int
	}{
		{EnforceSystem, EnforceSystemCPU, "systemReservedCgroup", c.SystemReservedCgroup, "systemReserved", len(c.SystemReserved)},
		{EnforceKube, EnforceKubeCPU, "kubeReservedCgroup", c.KubeReservedCgroup, "kubeReserved", len(c.KubeReserved)},
	} {
		if c.Enforces(r.all) && c.Enforces(r.cpu) {
			k.bad(field, "%s and %s exclude each other", r.all, r.cpu)
		}
		if !c.Enforces(r.all, r.cpu) {
			continue
		}
		if !strings.HasPrefix(r.cgroup, "/") || r.cgroup == "/" {
			k.bad(r.cgroupField, "must be a cgroup such as /system.slice for %s to be enforced", r.all)
		}
		if r.reserved == 0 {
			k.bad(r.amounts, "names nothing, so that there is nothing to enforce")
		}
	}
}
