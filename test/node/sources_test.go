package node

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/pkg/config"
)

// page is a web page that can change and fail, with an ETag.
type page struct {
	mu          sync.Mutex
	body        string
	version     int
	status      int
	full, notMo int
}

func (p *page) set(body string, status int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.body, p.status, p.version = body, status, p.version+1
}

func (p *page) counts() (full, notModified int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.full, p.notMo
}

func (p *page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	tag := fmt.Sprintf("%q", fmt.Sprint(p.version))
	switch {
	case p.status != http.StatusOK:
		w.WriteHeader(p.status)
	case r.Header.Get("If-None-Match") == tag:
		p.notMo++
		w.WriteHeader(http.StatusNotModified)
		return
	default:
		w.Header().Set("ETag", tag)
	}
	p.full++
	fmt.Fprint(w, p.body)
}

func TestURLSource(t *testing.T) {
	n := newNode(t)
	web := &page{status: http.StatusOK, body: manifest{name: "a"}.String() + "---\n" + manifest{name: "b"}.String()}
	l, err := n.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: web}
	done := make(chan struct{})
	go func() { _ = srv.Serve(l); close(done) }()
	t.Cleanup(func() { srv.Close(); <-done })
	n.EditConfig(func(c *config.NodeAgentConfiguration) {
		c.ManifestURL = "http://" + l.Addr().String() + "/pods.yaml"
		c.ManifestURLInterval.Duration = 200 * time.Millisecond
	})
	n.StartAgent()
	n.WaitPods(long, testbed.Running("a", "b"))
	before := ids(t, n)

	n.Eventually(long, "an unchanged page costs a 304", func() error {
		if _, nm := web.counts(); nm < 2 {
			return fmt.Errorf("%d answers of 304", nm)
		}
		return nil
	})
	for _, bad := range []struct {
		status int
		body   string
	}{{500, "boom"}, {404, "gone"}, {200, "{ not a pod"}, {200, "<html></html>"}} {
		web.set(bad.body, bad.status)
		full, _ := web.counts()
		n.Eventually(long, "the bad page was read twice", func() error {
			if now, _ := web.counts(); now < full+2 {
				return fmt.Errorf("read %d times", now-full)
			}
			return nil
		})
		if now := ids(t, n); fmt.Sprint(now) != fmt.Sprint(before) {
			t.Fatalf("a page with status %d and body %q changed the containers: %v → %v", bad.status, bad.body, before, now)
		}
	}
	web.set(manifest{name: "b"}.String(), http.StatusOK)
	n.WaitPods(long, all(testbed.Gone("a"), testbed.Running("b")))
	if now := ids(t, n); now["b/main"] != before["b/main"] {
		t.Errorf("b was restarted: %v → %v", before, now)
	}
}

// TestPush applies through the command line; what was accepted outlives the
// agent and a reboot, and delete ends it.
func TestPush(t *testing.T) {
	n := started(t)
	apply := func(m manifest) {
		t.Helper()
		cmd := n.CLICommand("apply", "-f", "-")
		cmd.Stdin = strings.NewReader(m.String())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("apply: %v: %s", err, out)
		}
	}
	apply(manifest{name: "p"})
	n.WaitPods(long, testbed.Running("p"))
	id := runningID(t, n, "p", "main")

	n.KillAgent()
	n.StartAgent()
	n.WaitPods(long, testbed.Running("p"))
	if got := runningID(t, n, "p", "main"); got != id {
		t.Errorf("the pod was restarted with the agent: %s → %s", id, got)
	}

	n.Reboot()
	n.StartAgent()
	n.WaitPods(long, testbed.Running("p"))

	apply(manifest{name: "p", labels: "tier: b"})
	if p := get(t, n, "p"); p.Labels["tier"] != "b" {
		t.Errorf("labels %v after apply", p.Labels)
	}
	cmd := n.CLICommand("apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest{name: "p", spec: "hostNetwork: true\n"}.String())
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "spec") {
		t.Errorf("a change of hostNetwork was accepted: %v: %s", err, out)
	}
	cli(t, n, "delete", "pod", "p")
	n.WaitPods(long, testbed.Gone("p"))
	expectClean(t, n)
	n.KillAgent()
	n.StartAgent()
	n.WaitPods(long, testbed.Gone("p"))
}

func TestBadManifestsDisturbNothing(t *testing.T) {
	n := started(t)
	good := manifest{name: "good"}
	n.WriteManifest("good.yaml", good.String())
	n.WaitPods(long, testbed.Running("good"))
	before := ids(t, n)

	bad := map[string]string{
		"bad-yaml.yaml":    "{{{{ not yaml",
		"bad-field.yaml":   strings.Replace(manifest{name: "bad-field"}.String(), "image:", "imagge:", 1),
		"bad-kind.yaml":    "apiVersion: v1\nkind: Frob\nmetadata: {name: x}\n",
		"bad-name.yaml":    manifest{name: "Not_A_Name"}.String(),
		"bad-binary.yaml":  "\x00\xff\xfe\x00\x01",
		"bad-alias.yaml":   "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d]\n",
		"bad-double.yaml":  good.String(), // names good again; the first file by name has it... "bad-" sorts first
		".hidden.yaml":     manifest{name: "hidden"}.String(),
		"editor.yaml~":     manifest{name: "editor"}.String(),
		"editor.yaml.swp":  manifest{name: "swap"}.String(),
		"half-written.bak": manifest{name: "backup"}.String(),
	}
	delete(bad, "bad-double.yaml")
	for name, content := range bad {
		n.WriteManifest(name, content)
	}
	n.WriteManifest("zz-double.yaml", manifest{name: "good", labels: "from: zz"}.String())
	n.WriteManifest("zzz.yaml", manifest{name: "last"}.String())
	pods := n.WaitPods(long, testbed.Running("good", "last"))
	if len(pods) != 2 {
		t.Errorf("pods %v, want good and last", pods)
	}
	if now := ids(t, n); now["good/main"] != before["good/main"] {
		t.Errorf("good was restarted: %v → %v", before, now)
	}
	if p, _ := pods.Get("good"); p.Labels["from"] != "" {
		t.Errorf("the second file by name won: labels %v", p.Labels)
	}
	out := cli(t, n, "get", "sources", "-o", "json")
	for _, want := range []string{"bad-yaml.yaml", "imagge", "bad-kind.yaml", "bad-name.yaml", "bad-binary.yaml", "bad-alias.yaml", "zz-double.yaml"} {
		if !strings.Contains(out, want) {
			t.Errorf("get sources does not mention %s:\n%s", want, out)
		}
	}

	// A file that turns bad keeps its last good pods; one that turns good again heals.
	n.WriteManifest("good.yaml", "spec: [")
	n.WriteManifest("zzz.yaml", manifest{name: "last", labels: `seen: "yes"`}.String())
	n.WaitPods(long, func(p testbed.Pods) error {
		if l, err := p.Get("last"); err != nil || l.Labels["seen"] != "yes" {
			return fmt.Errorf("the folder was not read yet: %v", err)
		}
		return testbed.Running("good")(p)
	})
	if now := ids(t, n); now["good/main"] != before["good/main"] {
		t.Errorf("a file that turned bad restarted its pod: %v → %v", before, now)
	}
}
