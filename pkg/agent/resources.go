package agent

import (
	"context"
	"fmt"
	"maps"
	goruntime "runtime"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/nodeagent/nodeagent/pkg/cgroup"
	"github.com/nodeagent/nodeagent/pkg/config"
	"github.com/nodeagent/nodeagent/pkg/errdefs"
	nodeapi "github.com/nodeagent/nodeagent/pkg/node"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// host is what there is. What cannot be read is none.
func (a *agent) host() nodeapi.Host {
	h := nodeapi.Host{CPUs: goruntime.NumCPU(), HugePages: nodeapi.HugePages("/"), PIDs: nodeapi.PIDs("/")}
	h.Memory, h.Swap, _ = memory()
	var st unix.Statfs_t
	if err := unix.Statfs(a.cfg.StateDir, &st); err == nil {
		h.Disk = st.Blocks * uint64(st.Bsize)
	}
	return h
}

// reservation is what of it pods do not have.
func (a *agent) reservation() nodeapi.Reservation {
	system, systemPIDs := config.Reserved(a.cfg.SystemReserved)
	kube, kubePIDs := config.Reserved(a.cfg.KubeReserved)
	sum := maps.Clone(system)
	for name, q := range kube {
		v := sum[name].DeepCopy()
		v.Add(q)
		sum[name] = v
	}
	return nodeapi.Reservation{
		Reserved: sum, Eviction: a.keptFree(a.host()), PIDs: systemPIDs + kubePIDs, MaxPods: a.cfg.MaxPods, PodsPerCore: a.cfg.PodsPerCore,
	}
}

// keptFree is what evictionHard wants to be left.
func (a *agent) keptFree(h nodeapi.Host) v1.ResourceList {
	list := v1.ResourceList{}
	for _, t := range a.cfg.Thresholds() {
		switch {
		case t.Grace > 0:
		case t.Signal == config.MemoryAvailable:
			list[v1.ResourceMemory] = t.Value.Of(*resource.NewQuantity(h.Memory, resource.BinarySI))
		case t.Signal == config.NodeFSAvailable:
			list[v1.ResourceEphemeralStorage] = t.Value.Of(*resource.NewQuantity(int64(h.Disk), resource.BinarySI))
		}
	}
	return list
}

// allocatable is what pods can ask for.
func (a *agent) allocatable() v1.ResourceList { return nodeapi.Allocatable(a.host(), a.reservation()) }

// policy is how containers are held to what they ask for.
func (a *agent) policy() runtime.Policy {
	h := a.host()
	return runtime.Policy{
		NoQuota: !a.cfg.EnforcesCFSQuota(), Period: a.cfg.CPUCFSQuotaPeriod.Duration, ThrottlingFactor: a.cfg.MemoryThrottlingFactor,
		Allocatable: a.allocatable, Tiered: a.cfg.MemoryReservationPolicy == config.ReservationTiered, SingleProcessOOMKill: a.cfg.SingleProcessOOMKill,
		LimitedSwap: a.cfg.MemorySwap.SwapBehavior == config.LimitedSwap, Memory: h.Memory, Swap: h.Swap,
	}
}

// newCgroups are the pods', by the driver of the configuration or else the runtime's.
func (a *agent) newCgroups(driver string) (*cgroup.Manager, error) {
	if a.cfg.Runtime.CgroupDriver != "" {
		driver = a.cfg.Runtime.CgroupDriver
	}
	return cgroup.New(cgroup.Options{
		Root: a.cfg.Runtime.CgroupRoot, Driver: driver, PidsLimit: a.cfg.Pods.PidsLimit,
		NoQuota: !a.cfg.EnforcesCFSQuota(), Period: a.cfg.CPUCFSQuotaPeriod.Duration, Tiered: a.cfg.MemoryReservationPolicy == config.ReservationTiered,
		Adopt: a.cfg.Runtime.AdoptKubeletPods, Log: a.log,
	})
}

// checkResources refuses a configuration that the host cannot have.
func (a *agent) checkResources() error {
	h := a.host()
	if a.cfg.FailSwapOn && h.Swap > 0 {
		return errdefs.Errorf(errdefs.ErrInvalid, "the host swaps (see /proc/swaps), and failSwapOn says that no pods run then: run swapoff -a, or set it to false")
	}
	return a.reservation().Check(h)
}

// enforce holds the cgroups of pods, host and agent to their shares, and says once
// when that fails: memory that is used already cannot be taken away.
func (a *agent) enforce(ctx context.Context, cgroups *cgroup.Manager) {
	reserved := a.reservation()
	if !a.cfg.Enforces(config.EnforcePods) {
		reserved = nodeapi.Reservation{}
	}
	list, pids := nodeapi.Enforceable(a.host(), reserved)
	err := cgroups.Enforce(ctx, cgroup.Share{Amounts: list, PIDs: pids})
	for _, r := range []struct {
		all, cpu, cgroup string
		amounts          map[string]string
	}{
		{config.EnforceSystem, config.EnforceSystemCPU, a.cfg.SystemReservedCgroup, a.cfg.SystemReserved},
		{config.EnforceKube, config.EnforceKubeCPU, a.cfg.KubeReservedCgroup, a.cfg.KubeReserved},
	} {
		if err == nil && a.cfg.Enforces(r.all, r.cpu) {
			share := cgroup.Share{}
			share.Amounts, share.PIDs = config.Reserved(r.amounts)
			err = cgroups.EnforceReserved(ctx, r.cgroup, share, a.cfg.Enforces(r.cpu))
		}
	}
	if ctx.Err() != nil {
		return
	}
	now := ""
	if err != nil {
		now = err.Error()
	}
	if old := a.unenforced.Swap(&now); old != nil && *old == now {
		return
	}
	if err != nil {
		a.log.Warn("node allocatable is not enforced; will try again", "err", err)
		a.nodeEvent(v1.EventTypeWarning, "FailedNodeAllocatableEnforcement", "Failed to update Node Allocatable Limits: "+now)
		return
	}
	a.nodeEvent(v1.EventTypeNormal, "NodeAllocatableEnforced", "Updated Node Allocatable limit across pods")
}

// memory and swap of the host, in bytes.
func memory() (total, swap int64, err error) {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return 0, 0, fmt.Errorf("cannot read the node's memory: %w", err)
	}
	return int64(si.Totalram) * int64(si.Unit), int64(si.Totalswap) * int64(si.Unit), nil
}
