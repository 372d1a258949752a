package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/pkg/config"
)

// TestEmbeddedIsInstalledLater: a host without any runtime says what it lacks;
// once a containerd is there, the agent runs it and the pods on it, and another
// one in its place takes over with the pods' containers.
func TestEmbeddedIsInstalledLater(t *testing.T) {
	n := newNode(t, testbed.WithContainerd(testbed.NoContainerd))
	shipImages(t, n)
	bin := n.Path("bin")
	n.EditConfig(func(c *config.NodeAgentConfiguration) {
		c.Runtime.Endpoint = config.EndpointAuto
		c.Runtime.Containerd = filepath.Join(bin, "containerd")
	})
	n.WriteManifest("p.yaml", manifest{name: "p"}.String())
	n.StartAgent()
	n.Eventually(long, "an event says what to install", func() error {
		out, err := n.CLI("get", "events")
		if err == nil && !strings.Contains(out, "RuntimeNotReady") || !strings.Contains(out, "apt install containerd") {
			err = fmt.Errorf("events: %s", out)
		}
		return err
	})
	if ready, err := n.HTTPGet("http://127.0.0.1:10248/readyz"); err == nil || !strings.Contains(ready, "[-]runtime failed") {
		t.Errorf("readyz: %v, %s", err, ready)
	}

	debian, built := "/usr/bin", filepath.Join(testbed.BuildDir(), "containerd2")
	if os.Getenv("NODE_CONTAINERD") == testbed.Containerd24 {
		install(t, bin, built)
	} else {
		install(t, bin, debian)
	}
	id := containerID(n, "p")
	first := cli(t, n, "version")

	// Containerd is not made to go back to an older version.
	install(t, bin, built)
	n.StopAgent()
	n.StartAgent()
	n.WriteManifest("q.yaml", manifest{name: "q"}.String())
	n.WaitPods(long, testbed.Running("p", "q"))
	if now := containerID(n, "p"); now != id {
		t.Errorf("after another containerd came: container %s, was %s", now, id)
	}
	if second := cli(t, n, "version"); !strings.Contains(second, "runtime containerd 2.") {
		t.Errorf("not the containerd that is there now: %s, before: %s", second, first)
	}
}

// containerID waits for a pod to run and returns its first container's ID.
func containerID(n *testbed.Node, name string) string {
	p, _ := n.WaitPods(long, testbed.Running(name)).Get(name)
	return p.Status.ContainerStatuses[0].ContainerID
}

// install makes bin the containerd, shim and runc of another folder.
func install(t *testing.T, bin, from string) {
	t.Helper()
	next := bin + ".next"
	if err := os.MkdirAll(next, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "runc"} {
		if err := os.Symlink(filepath.Join(from, name), filepath.Join(next, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(bin); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, bin); err != nil {
		t.Fatal(err)
	}
}
