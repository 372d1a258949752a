package cgroup

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

var burstable = container(list("cpu", "500m"), list("cpu", "1", "memory", "64Mi"))

func TestEnsureV1(t *testing.T) {
	k := newFakeV1(t, "cpu,cpuacct", "cpuset", "memory", "pids", "hugetlb", "freezer", "systemd")
	m := newTest(t, k, Options{PidsLimit: 100})
	pod := newPod("uid-1", burstable)
	if got := m.Parent(pod); got != "/kubepods/burstable/poduid-1" {
		t.Fatalf("parent %q", got)
	}
	for range 2 { // idempotent
		must(t, m.Ensure(t.Context(), pod))
	}
	for path, want := range map[string]string{
		"cpu,cpuacct/kubepods/burstable/poduid-1/cpu.shares":             "512",
		"cpu,cpuacct/kubepods/burstable/poduid-1/cpu.cfs_quota_us":       "100000",
		"cpu,cpuacct/kubepods/burstable/cpu.shares":                      "512",
		"memory/kubepods/burstable/poduid-1/memory.limit_in_bytes":       "67108864",
		"pids/kubepods/burstable/poduid-1/pids.max":                      "100",
		"hugetlb/kubepods/burstable/poduid-1/hugetlb.2MB.limit_in_bytes": "0",
		"cpuset/kubepods/burstable/poduid-1/cpuset.cpus":                 "0-3",
		"cpuset/kubepods/burstable/poduid-1/cpuset.mems":                 "0",
	} {
		if got := k.file(t, path); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	for _, tree := range []string{"freezer", "systemd"} {
		if !exists(filepath.Join(k.fs, tree, "kubepods/burstable/poduid-1")) {
			t.Errorf("no folder in %s", tree)
		}
	}
}

func TestEnsureV2(t *testing.T) {
	k := newFakeV2(t, "cpuset cpu io memory hugetlb pids rdma")
	m := newTest(t, k, Options{Root: "/na-test", PidsLimit: 9})
	must(t, m.Ensure(t.Context(), newPod("u", container(list("cpu", "1", "memory", "1Gi"), list("cpu", "1", "memory", "1Gi")))))
	for path, want := range map[string]string{
		"na-test/kubepods/podu/cpu.weight":      "39",
		"na-test/kubepods/podu/cpu.max":         "100000 100000",
		"na-test/kubepods/podu/memory.max":      "1073741824",
		"na-test/kubepods/podu/pids.max":        "9",
		"na-test/kubepods/podu/hugetlb.2MB.max": "0",
		"cgroup.subtree_control":                "cpu cpuset hugetlb io memory pids",
	} {
		if got := k.file(t, path); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	must(t, m.Ensure(t.Context(), newPod("b", container(nil, nil))))
	if got := k.file(t, "na-test/kubepods/besteffort/podb/cpu.max"); got != "max 100000" {
		t.Errorf("a pod without limits has cpu.max %q", got)
	}
}

// In a container our own cgroup looks like the root: its processes must make room.
func TestEvacuate(t *testing.T) {
	k := newFakeV2(t, "cpu memory pids")
	must(t, os.Mkdir(filepath.Join(k.fs, "box"), 0o755))
	must(t, os.WriteFile(filepath.Join(k.fs, "cgroup.subtree_control"), []byte("cpu memory pids"), 0o644))
	k.populate(filepath.Join(k.fs, "box"))
	must(t, os.WriteFile(filepath.Join(k.fs, "box/cgroup.procs"), []byte("7\n8"), 0o644))
	m := newTest(t, k, Options{Root: "/box"})
	m.self = "/box"
	must(t, m.Ensure(t.Context(), newPod("u", burstable)))
	if got := strings.Fields(k.file(t, "box/"+evacuated+"/cgroup.procs")); !reflect.DeepEqual(got, []string{"7", "8"}) {
		t.Errorf("moved %v", got)
	}
	if got := k.file(t, "box/kubepods/burstable/podu/memory.max"); got != "67108864" {
		t.Errorf("memory.max %q", got)
	}
	// Somebody else's processes stay where they are, and pods still start.
	must(t, os.WriteFile(filepath.Join(k.fs, "box/cgroup.procs"), []byte("9"), 0o644))
	must(t, os.WriteFile(filepath.Join(k.fs, "box/cgroup.subtree_control"), nil, 0o644))
	m.self = "/elsewhere"
	must(t, m.delegate(m.trees[0], filepath.Join(k.fs, "box")))
	if got := k.file(t, "box/cgroup.procs"); got != "9" {
		t.Errorf("a foreign process was moved: %q", got)
	}
}

func TestBurstableShares(t *testing.T) {
	k := newFakeV1(t, "cpu", "memory")
	m := newTest(t, k, Options{})
	share := func() string { return k.file(t, "cpu/kubepods/burstable/cpu.shares") }
	must(t, m.Ensure(t.Context(), newPod("a", burstable)))
	must(t, m.Ensure(t.Context(), newPod("b", burstable)))
	if share() != "1024" {
		t.Errorf("two pods: %s", share())
	}
	// A new process knows the pods from their folders.
	m = newTest(t, k, Options{})
	must(t, m.Ensure(t.Context(), newPod("c", burstable)))
	if share() != "1536" {
		t.Errorf("after a restart: %s", share())
	}
	must(t, m.Remove(t.Context(), "a"))
	if share() != "1024" {
		t.Errorf("after a removal: %s", share())
	}
	must(t, m.Ensure(t.Context(), newPod("d", container(nil, nil))))
	if got := k.file(t, "cpu/kubepods/besteffort/cpu.shares"); got != "2" {
		t.Errorf("best effort: %s", got)
	}
}

func TestMissingControllerWarnsOnce(t *testing.T) {
	k := newFakeV1(t, "cpu", "systemd")
	m := newTest(t, k, Options{})
	var text strings.Builder
	m.log = slog.New(slog.NewTextHandler(&text, nil))
	for _, uid := range []string{"a", "b"} {
		must(t, m.Ensure(t.Context(), newPod(uid, burstable)))
	}
	if n := strings.Count(text.String(), "controller=memory"); n != 1 {
		t.Errorf("%d warnings:\n%s", n, text.String())
	}
}

func TestRemoveAndPods(t *testing.T) {
	k := newFakeV1(t, "cpu", "memory", "unified")
	m := newTest(t, k, Options{})
	must(t, m.Ensure(t.Context(), newPod("a", burstable)))
	must(t, m.Ensure(t.Context(), newPod("b", container(nil, nil))))
	// A kubelet's pod below the same parent, what runc left, and a folder in
	// the tree that runc alone uses.
	must(t, k.Mkdir(filepath.Join(k.fs, "cpu/kubepods/burstable/podkubelet")))
	must(t, k.Mkdir(filepath.Join(k.fs, "cpu/kubepods/burstable/poda/container")))
	must(t, os.MkdirAll(filepath.Join(k.fs, "unified/kubepods/burstable"), 0o755))
	k.populate(filepath.Join(k.fs, "unified/kubepods"))
	k.populate(filepath.Join(k.fs, "unified/kubepods/burstable"))
	must(t, k.Mkdir(filepath.Join(k.fs, "unified/kubepods/burstable/poda")))
	pods := func() []types.UID {
		uids, err := m.Pods()
		must(t, err)
		return uids
	}
	if got := pods(); !reflect.DeepEqual(got, []types.UID{"a", "b"}) {
		t.Fatalf("pods %v", got)
	}
	other := newTest(t, k, Options{Owner: "another"})
	if uids, err := other.Pods(); err != nil || len(uids) != 0 {
		t.Errorf("another agent sees our pods: %v %v", uids, err)
	}
	for range 2 {
		must(t, m.Remove(t.Context(), "a"))
	}
	for _, dir := range []string{"cpu", "memory", "unified"} {
		if exists(filepath.Join(k.fs, dir, "kubepods/burstable/poda")) {
			t.Errorf("%s keeps the folder", dir)
		}
	}
	if got := pods(); !reflect.DeepEqual(got, []types.UID{"b"}) {
		t.Errorf("pods %v", got)
	}
	must(t, m.Remove(t.Context(), "b"))
	must(t, m.Cleanup(t.Context()))
	if !exists(filepath.Join(k.fs, "cpu/kubepods/burstable/podkubelet")) {
		t.Error("Cleanup removed a foreign pod")
	}
	must(t, k.Rmdir(filepath.Join(k.fs, "cpu/kubepods/burstable/podkubelet")))
	for range 2 {
		must(t, m.Cleanup(t.Context()))
	}
	for _, dir := range []string{"cpu", "memory", "unified"} {
		if exists(filepath.Join(k.fs, dir, "kubepods")) {
			t.Errorf("%s keeps kubepods", dir)
		}
	}
}

func TestCleanupLeavesTheUsersRoot(t *testing.T) {
	k := newFakeV1(t, "cpu")
	must(t, k.Mkdir(filepath.Join(k.fs, "cpu/theirs")))
	m := newTest(t, k, Options{Root: "/theirs/ours"})
	must(t, m.Ensure(t.Context(), newPod("a", burstable)))
	must(t, m.Remove(t.Context(), "a"))
	must(t, m.Cleanup(t.Context()))
	if exists(filepath.Join(k.fs, "cpu/theirs/ours")) || !exists(filepath.Join(k.fs, "cpu/theirs")) {
		t.Error("Cleanup must remove the cgroups it made and no others")
	}
}

func TestRemoveGivesUpWithTheContext(t *testing.T) {
	k := newFakeV1(t, "cpu")
	m := newTest(t, k, Options{})
	must(t, m.Ensure(t.Context(), newPod("a", burstable)))
	// A process that cannot be killed, as in state D: our own pid is never killed.
	must(t, k.Write(filepath.Join(k.fs, "cpu/kubepods/burstable/poda"), "cgroup.procs", itoa(int64(os.Getpid()))))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := m.Remove(ctx, "a"); !errors.Is(err, errdefs.ErrTransient) {
		t.Errorf("got %v", err)
	}
}

func TestSystemdDriver(t *testing.T) {
	k := newFakeV2(t, "cpuset cpu io memory hugetlb pids")
	m := newTest(t, k, Options{Driver: DriverSystemd, PidsLimit: 5})
	s := m.units.(*fakeSystemd)
	pod := newPod("11-22", container(list("cpu", "1", "memory", "1Gi"), list("cpu", "1255m", "memory", "1Gi")))
	if got := m.Parent(pod); got != "kubepods-burstable-pod11_22.slice" {
		t.Fatalf("parent %s", got)
	}
	must(t, m.Ensure(t.Context(), pod))
	must(t, m.Ensure(t.Context(), pod))
	want := map[string]string{
		"CPUWeight": "@t 39", "CPUQuotaPerSecUSec": "@t 1260000", "MemoryMax": "@t 1073741824", "TasksMax": "@t 5",
		"DefaultDependencies": "false", "Wants": `["kubepods-burstable.slice"]`,
	}
	for name, value := range want {
		if got := s.props["kubepods-burstable-pod11_22.slice"][name]; got != value {
			t.Errorf("%s is %s, want %s", name, got, value)
		}
	}
	if got := k.file(t, "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod11_22.slice/hugetlb.2MB.max"); got != "0" {
		t.Errorf("huge pages: %s", got)
	}
	if got := s.log[:3]; !reflect.DeepEqual(got, []string{"start kubepods.slice", "start kubepods-burstable.slice", "start kubepods-burstable-pod11_22.slice"}) {
		t.Errorf("order %v", got)
	}
	if got := s.props["kubepods-burstable.slice"]["CPUWeight"]; got != "@t 39" {
		t.Errorf("the parent's weight is %s", got)
	}
	if uids, err := m.Pods(); err != nil || !reflect.DeepEqual(uids, []types.UID{"11-22"}) {
		t.Errorf("pods %v %v", uids, err)
	}
	must(t, m.Remove(t.Context(), "11-22"))
	must(t, m.Cleanup(t.Context()))
	if exists(filepath.Join(k.fs, "kubepods.slice")) {
		t.Error("kubepods.slice stays")
	}
	if got := strings.Join(s.log[len(s.log)-3:], ","); got != "stop kubepods-burstable-pod11_22.slice,stop kubepods-burstable.slice,stop kubepods.slice" {
		t.Errorf("order %s", got)
	}
}

func TestNewRefuses(t *testing.T) {
	k := newFakeV1(t, "cpu")
	if _, err := New(Options{FS: k.fs, Driver: "other"}); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("driver: %v", err)
	}
	if _, err := New(Options{FS: t.TempDir()}); err == nil {
		t.Error("a folder without controllers is accepted")
	}
	m := newTest(t, k, Options{})
	for _, uid := range []types.UID{"", "../x", "a/b"} {
		if err := m.Ensure(t.Context(), &v1.Pod{}); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("Ensure(%q): %v", uid, err)
		}
		if err := m.Remove(t.Context(), uid); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("Remove(%q): %v", uid, err)
		}
	}
}
