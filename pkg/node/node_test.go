package node

import (
	"os"
	"path/filepath"
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
	c := n.Status.Conditions[0]
	if c.Type != v1.NodeReady || c.Status != v1.ConditionTrue || !c.LastTransitionTime.Time.Equal(now) || n.ResourceVersion <= first.ResourceVersion {
		t.Errorf("%+v", n)
	}
	turned := now
	now = now.Add(heartbeat)
	k.Set(facts.Object())
	c = (<-changes).Status.Conditions[0]
	if !c.LastHeartbeatTime.Time.Equal(now) || !c.LastTransitionTime.Time.Equal(turned) {
		t.Errorf("a heartbeat is due, and nothing else: %+v", c)
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
