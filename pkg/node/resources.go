package node

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// Host is what a host has. Memory, Swap and Disk are bytes.
type Host struct {
	CPUs         int
	Memory, Swap int64
	Disk         uint64
	// HugePages are bytes by resource name, of the sizes that the kernel has.
	HugePages v1.ResourceList
	PIDs      int64
}

// Reservation is what of it pods do not have.
type Reservation struct {
	// Reserved is kept for the host and the agent, Eviction is what must be left
	// before pods are evicted.
	Reserved, Eviction v1.ResourceList
	PIDs               int64
	// MaxPods run at once, and PodsPerCore for each CPU; 0: no such bound.
	MaxPods, PodsPerCore int
}

// Capacity is what the node has.
func Capacity(h Host, r Reservation) v1.ResourceList {
	pods := r.MaxPods
	if r.PodsPerCore > 0 {
		pods = min(pods, r.PodsPerCore*h.CPUs)
	}
	list := v1.ResourceList{
		v1.ResourceCPU:              *resource.NewQuantity(int64(h.CPUs), resource.DecimalSI),
		v1.ResourceMemory:           *resource.NewQuantity(h.Memory, resource.BinarySI),
		v1.ResourceEphemeralStorage: *resource.NewQuantity(int64(h.Disk), resource.BinarySI),
		v1.ResourcePods:             *resource.NewQuantity(int64(pods), resource.DecimalSI),
	}
	maps.Copy(list, h.HugePages)
	return list
}

// Allocatable is what pods can ask for: the capacity without what is reserved, and
// of memory without the huge pages, which are a part of it.
func Allocatable(h Host, r Reservation) v1.ResourceList {
	list := without(Capacity(h, r), r.Reserved, r.Eviction)
	for _, q := range h.HugePages {
		list = without(list, v1.ResourceList{v1.ResourceMemory: q})
	}
	return list
}

// Enforceable is what the cgroup of all pods is held to: the capacity without what
// is reserved. What must be left before pods are evicted is theirs until then.
func Enforceable(h Host, r Reservation) (list v1.ResourceList, pids int64) {
	return without(Capacity(h, r), r.Reserved), max(1, h.PIDs-r.PIDs)
}

func without(list v1.ResourceList, taken ...v1.ResourceList) v1.ResourceList {
	out := v1.ResourceList{}
	for name, q := range list {
		q = q.DeepCopy()
		for _, t := range taken {
			if v, some := t[name]; some {
				q.Sub(v)
			}
		}
		if q.Sign() < 0 {
			q.Set(0)
		}
		out[name] = q
	}
	return out
}

// Check refuses a reservation of more than there is.
func (r Reservation) Check(h Host) error {
	capacity := Capacity(h, r)
	for _, name := range slices.Sorted(maps.Keys(capacity)) {
		have, want := capacity[name], resource.Quantity{}
		for _, list := range []v1.ResourceList{r.Reserved, r.Eviction} {
			want.Add(list[name])
		}
		if want.Cmp(have) > 0 {
			return errdefs.Errorf(errdefs.ErrInvalid, "%s of %s is kept from pods (systemReserved, kubeReserved, evictionHard), and the node has %s: keep less", want.String(), name, have.String())
		}
	}
	if r.PIDs > h.PIDs {
		return errdefs.Errorf(errdefs.ErrInvalid, "%d process numbers are reserved (systemReserved, kubeReserved), and the node has %d: reserve less", r.PIDs, h.PIDs)
	}
	return nil
}

// HugePages are those that were set aside, below the folder root.
func HugePages(root string) v1.ResourceList {
	const dir = "sys/kernel/mm/hugepages"
	entries, err := os.ReadDir(filepath.Join(root, dir))
	if err != nil {
		return nil // a kernel without huge pages
	}
	list := v1.ResourceList{}
	for _, e := range entries {
		text, _ := strings.CutPrefix(e.Name(), "hugepages-")
		kb, err := strconv.ParseInt(strings.TrimSuffix(text, "kB"), 10, 64)
		if err != nil {
			continue
		}
		size := resource.NewQuantity(kb<<10, resource.BinarySI)
		name := v1.ResourceName(v1.ResourceHugePagesPrefix + size.String())
		list[name] = *resource.NewQuantity(number(root, filepath.Join(dir, e.Name(), "nr_hugepages"))*kb<<10, resource.BinarySI)
	}
	return list
}

// PIDs are how many processes and threads the host can have.
func PIDs(root string) int64 {
	highest, threads := number(root, "proc/sys/kernel/pid_max"), number(root, "proc/sys/kernel/threads-max")
	if threads > 0 && (threads < highest || highest == 0) {
		return threads
	}
	return highest
}

// number is the one in a file; 0 when there is none.
func number(root, name string) (n int64) {
	b, err := os.ReadFile(filepath.Join(root, name))
	if err == nil {
		_, _ = fmt.Sscan(string(b), &n) // what is no number is 0
	}
	return n
}
