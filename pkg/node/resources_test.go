package node

import (
	"os"
	"path/filepath"
	"strings"
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

func expect(t *testing.T, what string, got v1.ResourceList, want v1.ResourceList) {
	t.Helper()
	for name, q := range want {
		if have := got[name]; have.Cmp(q) != 0 {
			t.Errorf("%s of %s: %s, want %s", what, name, have.String(), q.String())
		}
	}
}

func TestAllocatable(t *testing.T) {
	h := Host{CPUs: 4, Memory: 8 << 30, Disk: 100 << 30, HugePages: amounts("hugepages-2Mi", "512Mi", "hugepages-1Gi", "0"), PIDs: 1000}
	r := Reservation{Reserved: amounts("cpu", "500m", "memory", "1Gi", "ephemeral-storage", "1Gi"), Eviction: amounts("memory", "512Mi", "ephemeral-storage", "10Gi"), PIDs: 100, MaxPods: 110}
	expect(t, "capacity", Capacity(h, r), amounts("cpu", "4", "memory", "8Gi", "ephemeral-storage", "100Gi", "pods", "110", "hugepages-2Mi", "512Mi", "hugepages-1Gi", "0"))
	expect(t, "allocatable", Allocatable(h, r), amounts("cpu", "3500m", "memory", "6Gi", "ephemeral-storage", "89Gi", "pods", "110", "hugepages-2Mi", "512Mi"))
	list, pids := Enforceable(h, r)
	expect(t, "enforced", list, amounts("cpu", "3500m", "memory", "7Gi", "hugepages-2Mi", "512Mi"))
	if pids != 900 {
		t.Errorf("%d PIDs", pids)
	}
	if err := r.Check(h); err != nil {
		t.Error(err)
	}
	r.PodsPerCore = 10
	expect(t, "with podsPerCore: capacity", Capacity(h, r), amounts("pods", "40"))
	for name, bad := range map[string]Reservation{
		"memory": {Reserved: amounts("memory", "7Gi"), Eviction: amounts("memory", "2Gi")}, "process numbers": {PIDs: 1001},
	} {
		if err := bad.Check(h); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		expect(t, "too much is reserved: allocatable", Allocatable(h, Reservation{Reserved: amounts("memory", "9Gi")}), amounts("memory", "0"))
	}
}

func TestHostFiles(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "3\n", "sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages": "0\n",
		"proc/sys/kernel/pid_max": "4194304\n", "proc/sys/kernel/threads-max": "1234\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got := HugePages(root)
	expect(t, "huge pages", got, amounts("hugepages-2Mi", "6Mi", "hugepages-1Gi", "0"))
	if len(got) != 2 || PIDs(root) != 1234 || HugePages(t.TempDir()) != nil {
		t.Errorf("%v, %d PIDs", got, PIDs(root))
	}
}
