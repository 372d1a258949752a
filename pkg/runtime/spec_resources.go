package runtime

import (
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// The kernel's bounds of cpu.shares and of the CFS quota, kernel/sched/sched.h
// and kernel/sched/core.c.
const (
	minShares   = 2
	maxShares   = 262144
	quotaPeriod = 100000 // µs
	minQuota    = 1000   // µs
)

// hostFacts is what the translation depends on besides the pod.
type hostFacts struct {
	cgroup2 bool
	// swap says that the kernel accounts swap per cgroup.
	swap bool
	// hugePages are the sizes that the kernel has, as the hugetlb controller
	// names them: 2MB, 1GB.
	hugePages []string
	// throttle are the thermal_throttle folders, which leak timing between
	// tenants (CVE-2023-28642's neighbours; masked by moby since 27.0).
	throttle []string
}

// newTranslator reads the host's facts from root, the file system at "/".
func newTranslator(o Options, root fs.FS) translator {
	t := translator{owner: o.Owner, seccompRoot: o.SeccompRoot, policy: o.Policy}
	has := func(pattern string) bool {
		m, err := fs.Glob(root, pattern)
		return err == nil && len(m) > 0
	}
	t.host.cgroup2 = has("sys/fs/cgroup/cgroup.controllers")
	t.host.swap = t.host.cgroup2 && has("sys/fs/cgroup/*/memory.swap.max") ||
		!t.host.cgroup2 && has("sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
	sizes, _ := fs.ReadDir(root, "sys/kernel/mm/hugepages") // no folder: no huge pages
	for _, d := range sizes {
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(d.Name(), "hugepages-"), "kB"), 10, 64)
		if err == nil {
			t.host.hugePages = append(t.host.hugePages, pageSizeName(kb<<10))
		}
	}
	slices.Sort(t.host.hugePages)
	paths, _ := fs.Glob(root, "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle") // the pattern is good
	for _, p := range paths {
		t.host.throttle = append(t.host.throttle, "/"+p)
	}
	return t
}

// pageSizeName is the kernel's name of a huge page size in bytes.
func pageSizeName(n int64) string {
	units := []string{"B", "KB", "MB", "GB", "TB", "PB"}
	i := 0
	for n >= 1024 && n%1024 == 0 && i < len(units)-1 {
		n, i = n/1024, i+1
	}
	return fmt.Sprintf("%d%s", n, units[i])
}

// resources applies kubelet's formulas to requests and limits.
func (t *translator) resources(req, lim v1.ResourceList) *cri.LinuxContainerResources {
	r := &cri.LinuxContainerResources{MemoryLimitInBytes: lim.Memory().Value()}
	cpu, ok := req[v1.ResourceCPU]
	if !ok {
		cpu = *lim.Cpu()
	}
	t.policy.cpu(r, cpu.MilliValue(), lim.Cpu().MilliValue())
	if t.host.cgroup2 && !t.policy.SingleProcessOOMKill {
		// One process killed for memory takes its container with it, as it
		// always was on v1 for a container's first process.
		r.Unified = map[string]string{"memory.oom.group": "1"}
	}
	return r
}

func shares(milli int64) int64 { return min(max(milli*1024/1000, minShares), maxShares) }

// containerResources adds what only a container has: huge page limits, no swap,
// and the pod's limits where it has none of its own.
func (t *translator) containerResources(p *v1.Pod, c *v1.Container) *cri.LinuxContainerResources {
	lim := v1.ResourceList{}
	if p.Spec.Resources != nil {
		maps.Copy(lim, p.Spec.Resources.Limits)
	}
	for k, v := range c.Resources.Limits {
		if _, pods := lim[k]; !pods || !v.IsZero() || pod.IsHugePages(k) {
			lim[k] = v
		}
	}
	r := t.resources(c.Resources.Requests, lim)
	for _, size := range t.host.hugePages {
		r.HugepageLimits = append(r.HugepageLimits, &cri.HugepageLimit{PageSize: size})
	}
	for name, q := range lim {
		size, ok := strings.CutPrefix(string(name), v1.ResourceHugePagesPrefix)
		if !ok {
			continue
		}
		bytes, err := resource.ParseQuantity(size)
		if err != nil {
			continue // validation has refused it
		}
		for _, h := range r.HugepageLimits {
			if h.PageSize == pageSizeName(bytes.Value()) {
				h.Limit = uint64(max(q.Value(), 0))
			}
		}
	}
	if t.host.cgroup2 {
		more := t.policy.memory(p, c)
		maps.Copy(more, r.Unified)
		r.Unified = more
	}
	if t.host.swap {
		if t.host.cgroup2 {
			r.Unified["memory.swap.max"] = strconv.FormatInt(t.policy.swap(p, c), 10)
		} else {
			// memory plus swap; ignored by runc while the memory limit is 0
			r.MemorySwapLimitInBytes = r.MemoryLimitInBytes
		}
	}
	return r
}
