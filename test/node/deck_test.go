package node

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/pkg/config"
)

// TestDeck runs the slides' manifests from the folder, all at once.
func TestDeck(t *testing.T) {
	n := started(t, testbed.WithOutside())
	for _, m := range []string{"pod-example", "multi-container-example", "container-attributes", "volume-example"} {
		n.WriteManifest(m+".yaml", deck(t, m))
	}
	pods := n.WaitPods(long, all(
		testbed.Running("pod-example", "multi-container-example", "volume-example"),
		testbed.Phase("container-attributes", v1.PodSucceeded)))

	t.Run("every pod has an address of its own", func(t *testing.T) { distinctIPs(t, pods) })
	t.Run("pod-example answers on port 80", func(t *testing.T) {
		p, _ := pods.Get("pod-example")
		n.Eventually(long, "the web page", func() error {
			body, err := n.HTTPGet("http://" + p.Status.PodIP + "/")
			if err == nil && !strings.Contains(body, "Welcome to nginx") {
				err = fmt.Errorf("body %q", body)
			}
			return err
		})
		if out := cli(t, n, "get", "pods"); !hasRow(out, "pod-example", "1/1", "Running", "0") {
			t.Errorf("get pods:\n%s", out)
		}
	})
	t.Run("multi-container-example serves what the sidecar writes", func(t *testing.T) {
		p, _ := pods.Get("multi-container-example")
		n.Eventually(long, "two lines of the sidecar", func() error {
			body, err := n.HTTPGet("http://" + p.Status.PodIP + "/")
			if err == nil && strings.Count(body, "UTC") < 2 {
				err = fmt.Errorf("body %q", body)
			}
			return err
		})
	})
	t.Run("container-attributes logs its variable", func(t *testing.T) {
		if out := cli(t, n, "logs", "container-attributes"); strings.TrimSpace(out) != "isAwesome" {
			t.Errorf("log %q", out)
		}
		if out := cli(t, n, "get", "pods"); !hasRow(out, "container-attributes", "0/1", "Completed", "0") {
			t.Errorf("get pods:\n%s", out)
		}
	})
	t.Run("volume-example mounts read-only and read-write", func(t *testing.T) {
		ro := runningID(t, n, "volume-example", "nginx")
		if out, code := n.ExecSync(ro, "sh", "-c", "echo x >/usr/share/nginx/html/x"); code == 0 || !strings.Contains(out, "Read-only") {
			t.Errorf("a write through the read-only mount: code %d, %q", code, out)
		}
		rw := runningID(t, n, "volume-example", "content")
		if out, code := n.ExecSync(rw, "sh", "-c", "echo x >/html/x"); code != 0 {
			t.Errorf("a write through the read-write mount: code %d, %q", code, out)
		}
		if out, code := n.ExecSync(ro, "cat", "/usr/share/nginx/html/x"); code != 0 || out != "x\n" {
			t.Errorf("the other container reads: code %d, %q", code, out)
		}
	})
	for _, m := range []string{"pod-example", "multi-container-example", "container-attributes", "volume-example"} {
		n.RemoveManifest(m + ".yaml")
	}
	n.WaitPods(long, testbed.Gone("pod-example", "multi-container-example", "container-attributes", "volume-example"))
	expectClean(t, n)
}

func distinctIPs(t *testing.T, pods testbed.Pods) {
	seen := map[string]string{}
	for _, name := range []string{"pod-example", "multi-container-example", "volume-example"} {
		p, _ := pods.Get(name)
		ip, err := netip.ParseAddr(p.Status.PodIP)
		if err != nil || !netip.MustParsePrefix("10.88.0.0/16").Contains(ip) {
			t.Errorf("%s: address %q is not of the default pod network", name, p.Status.PodIP)
		}
		if other := seen[p.Status.PodIP]; other != "" {
			t.Errorf("%s and %s share %s", name, other, p.Status.PodIP)
		}
		seen[p.Status.PodIP] = name
		if p.Status.HostIP != testbed.NodeIP {
			t.Errorf("%s: hostIP %q, want %s", name, p.Status.HostIP, testbed.NodeIP)
		}
	}
}

// hasRow finds a row of a table that starts with these columns.
func hasRow(table string, cols ...string) bool {
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) >= len(cols) && strings.Join(f[:len(cols)], " ") == strings.Join(cols, " ") {
			return true
		}
	}
	return false
}

func TestDeckLabelRefused(t *testing.T) {
	n := started(t)
	n.WriteManifest("a.yaml", deck(t, "pod-label-example"))
	pods := n.WaitPods(long, testbed.Phase("pod-label-example", v1.PodFailed))
	if p, _ := pods.Get("pod-label-example"); p.Status.Reason != "NodeAffinity" {
		t.Errorf("reason %q, want NodeAffinity: %s", p.Status.Reason, p.Status.Message)
	}
	if s := n.Sandboxes(); len(s) != 0 {
		t.Errorf("a refused pod has sandboxes: %v", s)
	}
}

func TestDeckLabelRuns(t *testing.T) {
	n := newNode(t)
	n.EditConfig(func(c *config.NodeAgentConfiguration) { c.NodeLabels = map[string]string{"gpu": "nvidia"} })
	n.StartAgent()
	n.WriteManifest("a.yaml", deck(t, "pod-label-example"))
	n.WaitPods(long, testbed.Running("pod-label-example"))
}
