package podworker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// objects are the classes and accounts of a test, by name.
type objects map[string]any

func (o objects) RuntimeClass(name string) (*nodev1.RuntimeClass, error) {
	if c, ok := o["class "+name].(*nodev1.RuntimeClass); ok {
		return c, nil
	}
	return nil, fmt.Errorf("class: %w", errdefs.ErrNotFound)
}

func (o objects) ServiceAccount(namespace, name string) (*v1.ServiceAccount, error) {
	if a, ok := o["account "+namespace+"/"+name].(*v1.ServiceAccount); ok {
		return a, nil
	}
	return nil, fmt.Errorf("account: %w", errdefs.ErrNotFound)
}

func (o objects) Priority(p *v1.Pod) (int32, error) {
	if n, ok := o["priority "+p.Spec.PriorityClassName].(int32); ok {
		return n, nil
	}
	return 0, fmt.Errorf("priority: %w", errdefs.ErrNotFound)
}

func TestPriorityClass(t *testing.T) {
	known := objects{}
	m := New(Options{Classes: known})
	p := testPod("x", v1.RestartPolicyAlways, "c")
	p.Spec.PriorityClassName = "high"
	if _, err := m.findGround(p); !errors.Is(err, runtime.ErrConfig) || err.Error() != "no PriorityClass with name high was found" {
		t.Errorf("a class that is missing: %v", err)
	}
	known["priority high"] = int32(7)
	if _, err := m.findGround(p); err != nil {
		t.Error(err)
	}
}

// TestRuntimeClassScheduling: a class chooses nodes for its pods.
func TestRuntimeClassScheduling(t *testing.T) {
	toleration := func(key string) []v1.Toleration {
		return []v1.Toleration{{Key: key, Operator: v1.TolerationOpExists}}
	}
	known := objects{"class kata": &nodev1.RuntimeClass{Scheduling: &nodev1.Scheduling{
		NodeSelector: map[string]string{"kata": "yes"}, Tolerations: toleration("kata"),
	}}}
	m := New(Options{Classes: known})
	p := testPod("x", v1.RestartPolicyAlways, "c")
	if q, no := m.scheduled(p); q != p || no != nil {
		t.Errorf("no class: %v", no)
	}
	p.Spec.RuntimeClassName, p.Spec.NodeSelector, p.Spec.Tolerations = new("kata"), map[string]string{"disk": "ssd"}, toleration("own")
	q, no := m.scheduled(p)
	if no != nil || fmt.Sprint(q.Spec.NodeSelector) != "map[disk:ssd kata:yes]" || len(q.Spec.Tolerations) != 2 || len(p.Spec.NodeSelector) != 1 {
		t.Errorf("%v, %+v; the pod's own: %v", no, q.Spec.NodeSelector, p.Spec.NodeSelector)
	}
	p.Spec.NodeSelector["kata"] = "no"
	if _, no := m.scheduled(p); no == nil || no.Reason != ReasonNodeAffinity || !strings.Contains(no.Message, "conflict: runtimeClass.scheduling.nodeSelector[kata] = yes") {
		t.Errorf("a conflict: %+v", no)
	}
}

func TestRuntimeClass(t *testing.T) {
	list := func(cpu string) v1.ResourceList { return v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu)} }
	known := objects{}
	m := New(Options{Classes: known})
	p := testPod("x", v1.RestartPolicyAlways, "c")
	if g, err := m.findGround(p); err != nil || g.handler != "" || g.weighted(p) != p {
		t.Errorf("no class: %+v, %v", g, err)
	}
	p.Spec.RuntimeClassName = new("kata")
	if _, err := m.findGround(p); !errors.Is(err, runtime.ErrConfig) || err.Error() != `runtimeclass.node.k8s.io "kata" not found` {
		t.Errorf("a class that is missing: %v", err)
	}
	known["class kata"] = &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: "kata"}, Handler: "kata-qemu", Overhead: &nodev1.Overhead{PodFixed: list("250m")}}
	g, err := m.findGround(p)
	if heavy := g.weighted(p); err != nil || g.handler != "kata-qemu" || !heavy.Spec.Overhead.Cpu().Equal(resource.MustParse("250m")) || p.Spec.Overhead != nil {
		t.Errorf("the class's overhead: %+v, %v; the pod's own is %v", g, err, p.Spec.Overhead)
	}
	p.Spec.Overhead = list("1")
	if g, err := m.findGround(p); err != nil || !g.weighted(p).Spec.Overhead.Cpu().Equal(resource.MustParse("1")) {
		t.Errorf("the pod's overhead: %+v, %v", g, err)
	}
}

func TestServiceAccount(t *testing.T) {
	known := objects{"account other/builder": &v1.ServiceAccount{}}
	m := New(Options{Classes: known})
	p := testPod("x", v1.RestartPolicyAlways, "c")
	for _, name := range []string{"", "default"} {
		p.Spec.ServiceAccountName = name
		if _, err := m.findGround(p); err != nil {
			t.Errorf("account %q: %v", name, err)
		}
	}
	p.Spec.ServiceAccountName = "builder"
	if _, err := m.findGround(p); failureReason(err) != "FailedMount" || !strings.Contains(err.Error(), `serviceaccount "builder" not found`) {
		t.Errorf("an account of another namespace: %v", err)
	}
	known["account "+p.Namespace+"/builder"] = &v1.ServiceAccount{}
	if _, err := m.findGround(p); err != nil {
		t.Error(err)
	}
}

// TestUserRanges: no two pods share a range, a pod keeps its own whoever asks,
// and one that has ended gives its back.
func TestUserRanges(t *testing.T) {
	dir := t.TempDir()
	ask := func(uid types.UID) uint32 {
		t.Helper()
		p := testPod("x", v1.RestartPolicyAlways, "c")
		p.UID, p.Spec.HostUsers = uid, new(false)
		if err := os.MkdirAll(filepath.Join(dir, string(uid)), 0o755); err != nil {
			t.Fatal(err)
		}
		g, err := New(Options{PodsDir: dir}).findGround(p) // a new agent each time
		if err != nil {
			t.Fatal(err)
		}
		return g.firstUser
	}
	a, b := ask("a"), ask("b")
	if a != firstUser || b != a+runtime.UserRange || ask("a") != a || ask("b") != b {
		t.Errorf("ranges %d and %d", a, b)
	}
	if err := os.RemoveAll(filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	if c := ask("c"); c != a {
		t.Errorf("the range of a pod that is gone is not given again: %d", c)
	}
	if uint32(userRanges-1)*runtime.UserRange+firstUser+runtime.UserRange-1 > 1<<31-1 {
		t.Error("the last range does not fit into 31 bits")
	}
	for _, bad := range []string{"", "0", "70000", "1879048193", "x"} {
		if err := os.WriteFile(filepath.Join(dir, "b", userFile), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		p := testPod("x", v1.RestartPolicyAlways, "c")
		p.UID, p.Spec.HostUsers = "b", new(false)
		if g, err := New(Options{PodsDir: dir}).findGround(p); err == nil {
			t.Errorf("%q is taken for a range that begins at %d", bad, g.firstUser)
		}
	}
}
