package agent

import (
	"errors"
	"log/slog"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// TestPriority: Kubernetes' own classes need no object; others are looked up, and
// pods without one have that of the class for all others.
func TestPriority(t *testing.T) {
	s, err := store.Open(store.Options{
		Dir: t.TempDir(), ResourceDir: t.TempDir(), NodeName: "n", Decode: manifest.Decode, Equal: manifest.SemanticEqual, Log: slog.New(slog.DiscardHandler),
		Sources: []store.SourceDecl{{Name: store.SourceFile}},
	})
	if err != nil {
		t.Fatal(err)
	}
	o := objects{s}
	priority := func(class string, want int32) {
		t.Helper()
		if got, err := o.Priority(&v1.Pod{Spec: v1.PodSpec{PriorityClassName: class}}); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", class, got, err, want)
		}
	}
	priority("", 0)
	priority(pod.NodeCriticalClass, 2000001000)
	priority(pod.ClusterCriticalClass, 2000000000)
	if _, err := o.Priority(&v1.Pod{Spec: v1.PodSpec{PriorityClassName: "high"}}); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("a class that is missing: %v", err)
	}
	class := func(name, rest string) string {
		return "apiVersion: scheduling.k8s.io/v1\nkind: PriorityClass\nmetadata: {name: " + name + "}\n" + rest + "\n---\n"
	}
	found, errs := manifest.Decode([]byte(class("high", "value: 1000")+class("usual", "value: 7\nglobalDefault: true")+class("other", "value: 9\nglobalDefault: true")), manifest.Options{})
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	s.Apply(store.SourceFile, store.Snapshot{Objects: found})
	priority("high", 1000)
	priority("", 7)
	if got, err := o.Priority(&v1.Pod{Spec: v1.PodSpec{Priority: new(int32(3))}}); err != nil || got != 3 {
		t.Errorf("its own: %d, %v", got, err)
	}
}
