package cgroup

import (
	"errors"
	"path/filepath"
	"slices"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

func (k *fakeKernel) expect(t *testing.T, want map[string]string) {
	t.Helper()
	for path, value := range want {
		if got := k.file(t, path); got != value {
			t.Errorf("%s is %q, want %q", path, got, value)
		}
	}
}

var nodeShare = Share{Amounts: list("cpu", "1500m", "memory", "1Gi", "hugepages-2Mi", "8Mi", "ephemeral-storage", "1Gi"), PIDs: 1000}

func TestEnforceV1(t *testing.T) {
	k := newFakeV1(t, "cpu", "memory", "pids", "hugetlb", "cpuset")
	m := newTest(t, k, Options{Root: "/r"})
	want := map[string]string{
		"cpu/r/kubepods/cpu.shares": "1536", "cpu/r/kubepods/cpu.cfs_quota_us": "-1", "memory/r/kubepods/memory.limit_in_bytes": "1073741824",
		"pids/r/kubepods/pids.max": "1000", "hugetlb/r/kubepods/hugetlb.2MB.limit_in_bytes": "8388608",
	}
	must(t, m.Enforce(t.Context(), nodeShare))
	k.expect(t, want)
	// Somebody else's idea does not last.
	must(t, k.Write(filepath.Join(k.fs, "memory/r/kubepods"), "memory.limit_in_bytes", "5"))
	must(t, m.Keep(t.Context()))
	k.expect(t, want)
	// What is right is not written again.
	before := len(k.writes)
	must(t, m.Enforce(t.Context(), nodeShare))
	if len(k.writes) != before {
		t.Errorf("wrote %v", k.writes[before:])
	}
	// Another configuration, in another process.
	must(t, m.Ensure(t.Context(), newPod("p", burstable)))
	m = newTest(t, k, Options{Root: "/r"})
	must(t, m.Enforce(t.Context(), Share{Amounts: list("cpu", "1", "memory", "512Mi")}))
	k.expect(t, map[string]string{
		"cpu/r/kubepods/cpu.shares": "1024", "memory/r/kubepods/memory.limit_in_bytes": "536870912", "pids/r/kubepods/pids.max": "max",
		"hugetlb/r/kubepods/hugetlb.2MB.limit_in_bytes": "0", "memory/r/kubepods/burstable/podp/memory.limit_in_bytes": "67108864",
	})
}

func TestEnforceOnOthers(t *testing.T) {
	k := newFakeV1(t, "memory")
	must(t, k.Mkdir(filepath.Join(k.fs, "memory/kubepods")))
	must(t, newTest(t, k, Options{}).Enforce(t.Context(), nodeShare))
	k.expect(t, map[string]string{"memory/kubepods/memory.limit_in_bytes": "9223372036854771712"})
	must(t, newTest(t, k, Options{Adopt: true}).Enforce(t.Context(), nodeShare))
	k.expect(t, map[string]string{"memory/kubepods/memory.limit_in_bytes": "1073741824"})
}

func TestEnforceReserved(t *testing.T) {
	k := newFakeV2(t, "cpu memory pids")
	must(t, k.Write(k.fs, "cgroup.subtree_control", "+cpu +memory +pids"))
	for _, name := range []string{"all", "cpu"} {
		must(t, k.Mkdir(filepath.Join(k.fs, name+".slice")))
	}
	m := newTest(t, k, Options{})
	share := Share{Amounts: list("cpu", "500m", "memory", "256Mi"), PIDs: 50}
	must(t, m.EnforceReserved(t.Context(), "/all.slice", share, false))
	must(t, m.EnforceReserved(t.Context(), "/cpu.slice", share, true))
	k.expect(t, map[string]string{
		"all.slice/cpu.weight": "20", "all.slice/memory.max": "268435456", "all.slice/memory.min": "268435456", "all.slice/pids.max": "50",
		"cpu.slice/cpu.weight": "20", "cpu.slice/memory.max": "max", "cpu.slice/memory.min": "0", "cpu.slice/pids.max": "max",
	})
	if err := m.EnforceReserved(t.Context(), "/none.slice", share, false); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("a cgroup that is not there: %v", err)
	}
}

func TestMemoryProtection(t *testing.T) {
	guaranteed := container(list("cpu", "1", "memory", "1Gi"), list("cpu", "1", "memory", "1Gi"))
	soft := container(list("memory", "256Mi"), nil)
	for _, driver := range []string{DriverCgroupfs, DriverSystemd} {
		t.Run(driver, func(t *testing.T) {
			k := newFakeV2(t, "cpuset cpu io memory pids")
			m := newTest(t, k, Options{Driver: driver, Tiered: true})
			top, burstable := "kubepods", "kubepods/burstable"
			if driver == DriverSystemd {
				top, burstable = "kubepods.slice", "kubepods.slice/kubepods-burstable.slice"
			}
			must(t, m.Enforce(t.Context(), nodeShare))
			for uid, c := range map[string]v1.Container{"g": guaranteed, "a": soft, "b": soft, "best": container(nil, nil)} {
				must(t, m.Ensure(t.Context(), newPod(uid, c)))
			}
			k.expect(t, map[string]string{
				top + "/memory.min": "1610612736", top + "/memory.low": "536870912", burstable + "/memory.low": "536870912", burstable + "/memory.min": "0",
			})
			// A new process finds the sums, and follows pods that go.
			systemd := m.units
			m = newTest(t, k, Options{Driver: driver, Tiered: true})
			m.units = systemd
			must(t, m.Enforce(t.Context(), nodeShare))
			must(t, m.Remove(t.Context(), "a"))
			k.expect(t, map[string]string{top + "/memory.min": "1342177280", burstable + "/memory.low": "268435456"})
			// Without the policy nothing is protected, whatever pods have.
			m = newTest(t, k, Options{Driver: driver})
			m.units = systemd
			must(t, m.Enforce(t.Context(), nodeShare))
			k.expect(t, map[string]string{top + "/memory.min": "0", top + "/memory.low": "0", burstable + "/memory.low": "0"})
		})
	}
}

func TestQuotaPeriod(t *testing.T) {
	k := newFakeV2(t, "cpu memory pids")
	must(t, newTest(t, k, Options{Period: 20 * time.Millisecond}).Ensure(t.Context(), newPod("p", burstable)))
	k.expect(t, map[string]string{"kubepods/burstable/podp/cpu.max": "20000 20000"})
	must(t, newTest(t, k, Options{NoQuota: true}).Ensure(t.Context(), newPod("p", burstable)))
	k.expect(t, map[string]string{"kubepods/burstable/podp/cpu.max": "max 100000"})
	m := newTest(t, k, Options{Driver: DriverSystemd, Period: 20 * time.Millisecond})
	var names []string
	for _, p := range m.limitProperties(true, limits{quota: 20000}) {
		names = append(names, p.Name)
	}
	if !slices.Contains(names, "CPUQuotaPeriodUSec") {
		t.Errorf("systemd is told %v", names)
	}
}
