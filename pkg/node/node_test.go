package node

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/journal"
)

func TestKeeper(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	k := NewKeeper(journal.NewCounter(now), func() time.Time { return now })
	facts := Facts{Name: "n", Labels: map[string]string{"a": "b"}, Addresses: []string{"192.0.2.1"}, NotReady: "no runtime"}
	k.Set(facts.Object())
	first, revision := k.Node()
	changes, err := k.WatchNode(t.Context(), revision)
	if err != nil {
		t.Fatal(err)
	}
	k.Set(facts.Object())
	if same, _ := k.Node(); same != first {
		t.Error("the same again is a change")
	}
	now = now.Add(time.Minute)
	facts.NotReady = ""
	k.Set(facts.Object())
	n := <-changes
	ready := func(n *v1.Node) v1.NodeCondition { return n.Status.Conditions[len(n.Status.Conditions)-1] }
	c := ready(n)
	if c.Type != v1.NodeReady || c.Status != v1.ConditionTrue || !c.LastTransitionTime.Time.Equal(now) || n.ResourceVersion <= first.ResourceVersion {
		t.Errorf("%+v", n)
	}
	turned := now
	now = now.Add(heartbeat)
	k.Set(facts.Object())
	c = ready(<-changes)
	if !c.LastHeartbeatTime.Time.Equal(now) || !c.LastTransitionTime.Time.Equal(turned) {
		t.Errorf("a heartbeat is due, and nothing else: %+v", c)
	}
}

func TestPressure(t *testing.T) {
	now := Facts{Pressure: []v1.NodeConditionType{v1.NodeDiskPressure}}.Object()
	for i, want := range []v1.NodeCondition{
		{Type: v1.NodeMemoryPressure, Status: v1.ConditionFalse, Reason: "KubeletHasSufficientMemory", Message: "kubelet has sufficient memory available"},
		{Type: v1.NodeDiskPressure, Status: v1.ConditionTrue, Reason: "KubeletHasDiskPressure", Message: "kubelet has disk pressure"},
		{Type: v1.NodePIDPressure, Status: v1.ConditionFalse, Reason: "KubeletHasSufficientPID", Message: "kubelet has sufficient PID available"},
	} {
		if now.Status.Conditions[i] != want {
			t.Errorf("%+v, want %+v", now.Status.Conditions[i], want)
		}
	}
	memory, disk := []v1.NodeConditionType{v1.NodeMemoryPressure}, []v1.NodeConditionType{v1.NodeDiskPressure}
	if got := Changes(memory, disk); !slices.Equal(got, []string{"NodeHasSufficientMemory", "NodeHasDiskPressure"}) {
		t.Errorf("%v", got)
	}
	if got := Changes(disk, disk); got != nil {
		t.Errorf("%v", got)
	}
}

func TestSystem(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{"etc/machine-id": "abc\n", "etc/os-release": "NAME=x\nPRETTY_NAME=\"An OS 1\"\n"} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	i := System(root, "v0.4.0")
	if i.MachineID != "abc" || i.SystemUUID != "abc" || i.OSImage != "An OS 1" || i.KernelVersion == "" || i.KubeletVersion != "v1.37.0+nodeagent-0.4.0" {
		t.Errorf("%+v", i)
	}
}
