package node

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/journal"
)

// TestWishesAreKept: what clients want of the node outlives the agent, in a form
// that people can read, and gives way to the configuration.
func TestWishesAreKept(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	path := filepath.Join(t.TempDir(), "node.yaml")
	told := 0
	keeper := func(labels map[string]string) *Keeper {
		k := NewKeeper(journal.NewCounter(now), func() time.Time { return now })
		w, err := ReadWishes(path)
		if err != nil {
			t.Fatal(err)
		}
		k.Keep(w, func(b []byte) error { return os.WriteFile(path, b, 0o600) }, func(_, _ *v1.Node) { told++ })
		k.Set(Facts{Name: "n", Labels: labels}.Object())
		return k
	}
	k := keeper(map[string]string{"zone": "a"})
	shown, _ := k.Node()
	want := shown.DeepCopy()
	want.Labels["disk"], want.Annotations = "ssd", map[string]string{"note": "x"}
	want.Spec.Unschedulable = true
	want.Spec.Taints = []v1.Taint{{Key: "gpu", Value: "no", Effect: v1.TaintEffectNoSchedule}}
	if _, errs, err := k.Wish(want, "0", false); !errors.Is(err, errdefs.ErrConflict) || errs != nil {
		t.Errorf("of another revision: %v, %v", errs, err)
	}
	if n, errs, err := k.Wish(want, shown.ResourceVersion, true); err != nil || errs != nil || !n.Spec.Unschedulable || k.Labels() != nil || told != 0 {
		t.Errorf("a dry run: %+v, %v, %v", n, errs, err)
	}
	n, errs, err := k.Wish(want, shown.ResourceVersion, false)
	if err != nil || errs != nil || told != 1 || n.ResourceVersion <= shown.ResourceVersion {
		t.Fatalf("%+v, %v, %v", n, errs, err)
	}
	text, err := os.ReadFile(path)
	if err != nil || string(text) != `apiVersion: v1
kind: Node
metadata:
  annotations:
    note: x
  labels:
    disk: ssd
  name: "n"
spec:
  taints:
  - effect: NoSchedule
    key: gpu
    value: "no"
  unschedulable: true
` {
		t.Errorf("%v:\n%s", err, text)
	}
	now = now.Add(time.Hour)
	again, _ := keeper(map[string]string{"zone": "b"}).Node()
	if !again.Spec.Unschedulable || !reflect.DeepEqual(again.Labels, map[string]string{"zone": "b", "disk": "ssd"}) || len(again.Spec.Taints) != 2 {
		t.Errorf("%+v", again)
	}
	// The configuration may take a label over.
	if taken, _ := keeper(map[string]string{"disk": "hdd"}).Node(); taken.Labels["disk"] != "hdd" {
		t.Errorf("%v", taken.Labels)
	}
	if err := os.WriteFile(path, []byte("spec: {colour: red}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadWishes(path); err == nil {
		t.Error("a file that says something unknown is taken")
	}
}

// TestFullDisk: a wish that cannot be kept is not granted.
func TestFullDisk(t *testing.T) {
	k := NewKeeper(journal.NewCounter(time.Now()), time.Now)
	full := errors.New("no space left")
	k.Keep(Wishes{}, func([]byte) error { return full }, func(_, _ *v1.Node) { t.Error("it is told of") })
	k.Set(Facts{Name: "n"}.Object())
	shown, _ := k.Node()
	want := shown.DeepCopy()
	want.Spec.Unschedulable = true
	if _, _, err := k.Wish(want, shown.ResourceVersion, false); !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
	if n, _ := k.Node(); n != shown {
		t.Error("the node has changed")
	}
}

func TestTaints(t *testing.T) {
	began := metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	seconds := int64(60)
	cordoned := v1.Taint{Key: v1.TaintNodeUnschedulable, Effect: v1.TaintEffectNoSchedule}
	hard := v1.Taint{Key: "k", Value: "v", Effect: v1.TaintEffectNoExecute, TimeAdded: &began}
	for name, tc := range map[string]struct {
		taints      []v1.Taint
		tolerations []v1.Toleration
		waits       string
		ends        *time.Duration
	}{
		"none":                  {},
		"cordoned":              {taints: []v1.Taint{cordoned}, waits: "0/1 nodes are available: 1 node(s) were unschedulable."},
		"a pod for such nodes":  {taints: []v1.Taint{cordoned}, tolerations: []v1.Toleration{{Key: v1.TaintNodeUnschedulable, Operator: v1.TolerationOpExists}}},
		"a wish":                {taints: []v1.Taint{{Key: "k", Effect: v1.TaintEffectPreferNoSchedule}}},
		"not tolerated":         {taints: []v1.Taint{hard}, tolerations: []v1.Toleration{{Key: "k", Value: "other"}}, waits: "0/1 nodes are available: 1 node(s) had untolerated taint(s) {k=v:NoExecute}.", ends: new(time.Duration)},
		"tolerated":             {taints: []v1.Taint{hard}, tolerations: []v1.Toleration{{Key: "k", Value: "v", Effect: v1.TaintEffectNoExecute}}},
		"another effect":        {taints: []v1.Taint{hard}, tolerations: []v1.Toleration{{Key: "k", Value: "v", Effect: v1.TaintEffectNoSchedule}}, waits: "0/1 nodes are available: 1 node(s) had untolerated taint(s) {k=v:NoExecute}.", ends: new(time.Duration)},
		"everything":            {taints: []v1.Taint{cordoned, hard}, tolerations: []v1.Toleration{{Operator: v1.TolerationOpExists}}},
		"tolerated for a while": {taints: []v1.Taint{hard}, tolerations: []v1.Toleration{{Key: "k", Operator: v1.TolerationOpExists, TolerationSeconds: &seconds}}, ends: new(time.Minute)},
	} {
		n := &v1.Node{Spec: v1.NodeSpec{Taints: tc.taints}}
		if got := Unschedulable(n, tc.tolerations); got != tc.waits {
			t.Errorf("%s: %q, want %q", name, got, tc.waits)
		}
		at, ends := EndsAt(n, tc.tolerations)
		if ends != (tc.ends != nil) || ends && !at.Equal(began.Add(*tc.ends)) {
			t.Errorf("%s: ends %t at %s", name, ends, at)
		}
	}
}
