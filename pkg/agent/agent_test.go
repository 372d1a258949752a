package agent

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	goruntime "runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/config"
	"github.com/nodeagent/nodeagent/pkg/journal"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/store"
)

func TestStateFolderIsOneAgents(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	unlock, err := lockState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockState(dir); err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "pid") {
		t.Fatalf("a second lock: %v", err)
	}
	unlock()
	unlock, err = lockState(dir)
	if err != nil {
		t.Fatalf("after the first was given back: %v", err)
	}
	unlock()
}

// TestLockOfADeadAgent: a child that an agent was about to run when it was
// killed holds its lock for a moment, and is waited for.
func TestLockOfADeadAgent(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, lockFile)
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, fmt.Appendf(nil, "%d\n", dead.ProcessState.Pid()), 0o600); err != nil {
		t.Fatal(err)
	}
	child, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(child.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	go func() {
		for open := 0; open < 2; goruntime.Gosched() { // the child's and that of lockState
			open = 0
			links, _ := filepath.Glob("/proc/self/fd/*")
			for _, l := range links {
				if to, err := os.Readlink(l); err == nil && to == path {
					open++
				}
			}
		}
		child.Close()
	}()
	unlock, err := lockState(dir)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestInstanceOutlivesARename(t *testing.T) {
	dir := t.TempDir()
	for _, node := range []string{"first", "renamed"} {
		if got, err := instance(dir, node); err != nil || got != "first" {
			t.Errorf("instance as %s: %q, %v", node, got, err)
		}
	}
	if err := os.Remove(filepath.Join(dir, instFile)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, instFile), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := instance(dir, "x"); err == nil {
		t.Error("a name that cannot be read is made up anew: every pod would be orphaned")
	}
}

func TestPodsKeepTheirRuntime(t *testing.T) {
	const shared = "unix:///run/containerd/containerd.sock"
	for _, tc := range []struct {
		kept, configured string
		hasPods          bool
		want             string // empty: refused
	}{
		{"", config.EndpointAuto, true, config.EndpointAuto},
		{"", shared, true, shared},
		{shared, config.EndpointAuto, true, shared},
		{shared, shared, true, shared},
		{config.EndpointEmbedded, config.EndpointAuto, true, config.EndpointEmbedded},
		{config.EndpointEmbedded, shared, true, ""},
		{shared, config.EndpointEmbedded, true, ""},
		// Without pods the host may have been given another runtime.
		{config.EndpointEmbedded, config.EndpointAuto, false, config.EndpointAuto},
		{config.EndpointEmbedded, shared, false, shared},
	} {
		cfg := &config.NodeAgentConfiguration{StateDir: t.TempDir()}
		cfg.Runtime.Endpoint = tc.configured
		if tc.kept != "" {
			if err := keepRuntime(cfg.StateDir, tc.kept); err != nil {
				t.Fatal(err)
			}
		}
		got, err := settleRuntime(cfg, tc.hasPods)
		if got != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%+v: %q, %v", tc, got, err)
		}
	}
}

func TestResolverFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	text := "# by hand\nsearch old.example\nnameserver 192.0.2.53 # main\nnameserver 2001:db8::53\nsearch a.example. b.example .\noptions ndots:2 timeout:1\n;x\nnameserver\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r := resolver{path: path, log: slog.New(slog.DiscardHandler)}
	want := runtime.DNS{
		Servers: []string{"192.0.2.53", "2001:db8::53"}, Searches: []string{"a.example", "b.example"}, Options: []string{"ndots:2", "timeout:1"},
	}
	if got := r.forPod(&v1.Pod{}); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	r.path += ".gone"
	if got := r.forPod(&v1.Pod{}); !reflect.DeepEqual(got, runtime.DNS{}) {
		t.Errorf("without a file: %+v", got)
	}
}

// TestPodDNS: the cluster's DNS for whom the policy gives it to, within what a
// resolv.conf takes.
func TestPodDNS(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	long := strings.Repeat("a.", 100) + "example" // 207 bytes: nine of them fit
	cluster := "shop.svc.k8s.test svc.k8s.test k8s.test"
	one := "1"
	own := &v1.PodDNSConfig{Nameservers: []string{"198.51.100.53", "192.0.2.53"}, Searches: []string{"a.example"},
		Options: []v1.PodDNSConfigOption{{Name: "ndots", Value: &one}, {Name: "edns0"}}}
	for name, tc := range map[string]struct {
		policy      v1.DNSPolicy
		hostNetwork bool
		dns, host   string
		config      *v1.PodDNSConfig
		want        string // servers / searches / options / events
	}{
		"ClusterFirst":                      {v1.DNSClusterFirst, false, "10.96.0.10 fd00::a", "search lan.test", nil, "10.96.0.10 fd00::a/" + cluster + " lan.test/ndots:5/0"},
		"ClusterFirst on the host":          {v1.DNSClusterFirst, true, "10.96.0.10", "search lan.test", nil, "192.0.2.53/lan.test//0"},
		"ClusterFirstWithHostNet":           {v1.DNSClusterFirstWithHostNet, true, "10.96.0.10", "search lan.test", nil, "10.96.0.10/" + cluster + " lan.test/ndots:5/0"},
		"Default":                           {v1.DNSDefault, false, "10.96.0.10", "search lan.test\noptions ndots:2", nil, "192.0.2.53/lan.test/ndots:2/0"},
		"no cluster DNS":                    {v1.DNSClusterFirst, false, "", "search lan.test", nil, "192.0.2.53/lan.test//0"},
		"a search of the host's that is in": {v1.DNSClusterFirst, false, "10.96.0.10", "search svc.k8s.test lan.test", nil, "10.96.0.10/" + cluster + " lan.test/ndots:5/0"},
		"None":                              {v1.DNSNone, false, "10.96.0.10", "search lan.test", own, "198.51.100.53 192.0.2.53/a.example/ndots:1 edns0/0"},
		"more than the policy gives": {v1.DNSClusterFirst, false, "10.96.0.10", "search a.example", own,
			"10.96.0.10 198.51.100.53 192.0.2.53/" + cluster + " a.example/ndots:1 edns0/0"},
		"nothing new":                {v1.DNSDefault, false, "", "search a.example", &v1.PodDNSConfig{Nameservers: []string{"192.0.2.53"}}, "192.0.2.53/a.example//0"},
		"too many servers":           {v1.DNSDefault, false, "", "nameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver 3.3.3.3", nil, "192.0.2.53 1.1.1.1 2.2.2.2///1"},
		"a search that is too long":  {v1.DNSDefault, false, "", "search " + long + long + " lan.test", nil, "192.0.2.53/lan.test//1"},
		"searches that are too long": {v1.DNSDefault, false, "", "search" + strings.Repeat(" "+long, 12), nil, "192.0.2.53/" + strings.TrimSpace(strings.Repeat(" "+long, 9)) + "//1"},
		"too many searches":          {v1.DNSDefault, false, "", "search" + strings.Repeat(" x", 33), nil, "192.0.2.53/" + strings.TrimSpace(strings.Repeat(" x", 32)) + "//1"},
	} {
		if err := os.WriteFile(path, []byte("nameserver 192.0.2.53\n"+tc.host+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		events := 0
		r := resolver{path: path, clusterDNS: strings.Fields(tc.dns), clusterDomain: "k8s.test", log: slog.New(slog.DiscardHandler),
			event: func(_ *v1.Pod, _, _, reason, message string) {
				if events++; reason != "DNSConfigForming" || !strings.Contains(message, "limits were exceeded") {
					t.Errorf("%s: event %s: %s", name, reason, message)
				}
			}}
		d := r.forPod(&v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop"}, Spec: v1.PodSpec{DNSPolicy: tc.policy, DNSConfig: tc.config, HostNetwork: tc.hostNetwork}})
		got := fmt.Sprintf("%s/%s/%s/%d", strings.Join(d.Servers, " "), strings.Join(d.Searches, " "), strings.Join(d.Options, " "), events)
		if got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

func TestReloadRefusesWhatCannotChange(t *testing.T) {
	base := config.NodeAgentConfiguration{NodeName: "n", StateDir: t.TempDir(), RunDir: "/r", PodLogDir: "/l", Log: config.Log{Level: "info", Format: "text"}}
	base.Runtime.Endpoint = config.EndpointEmbedded
	if err := keepRuntime(base.StateDir, config.EndpointEmbedded); err != nil {
		t.Fatal(err)
	}
	for field, change := range map[string]func(c *config.NodeAgentConfiguration){
		"stateDir":             func(c *config.NodeAgentConfiguration) { c.StateDir = "/other" },
		"runDir":               func(c *config.NodeAgentConfiguration) { c.RunDir = "/other" },
		"nodeName":             func(c *config.NodeAgentConfiguration) { c.NodeName = "other" },
		"podLogDir":            func(c *config.NodeAgentConfiguration) { c.PodLogDir = "/other" },
		"containerLogDir":      func(c *config.NodeAgentConfiguration) { c.ContainerLogDir = "/other" },
		"runtime.cgroupRoot":   func(c *config.NodeAgentConfiguration) { c.Runtime.CgroupRoot = "/other" },
		"runtime.cgroupDriver": func(c *config.NodeAgentConfiguration) { c.Runtime.CgroupDriver = "systemd" },
		"runtime.endpoint":     func(c *config.NodeAgentConfiguration) { c.Runtime.Endpoint = "unix:///other" },
		"network.confDir":      func(c *config.NodeAgentConfiguration) { c.Network.ConfDir = "/other" },
		"":                     func(c *config.NodeAgentConfiguration) { c.Manifests = "/other" },
	} {
		next := base
		change(&next)
		a := &agent{cfg: &base, o: Options{LogTo: os.Stderr, Load: func() (*config.NodeAgentConfiguration, error) { return &next, nil }}}
		err := a.prepareReload()
		if field == "" {
			if err != nil || a.next != &next {
				t.Errorf("a good change: %v", err)
			}
		} else if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestExcessOfFinishedPods(t *testing.T) {
	began := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	rec := func(name string, phase v1.PodPhase, minute int) store.Record {
		p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1.PodStatus{Phase: phase}}
		p.Status.ContainerStatuses = []v1.ContainerStatus{{State: v1.ContainerState{Terminated: &v1.ContainerStateTerminated{
			FinishedAt: metav1.NewTime(began.Add(time.Duration(minute) * time.Minute)),
		}}}}
		return store.Record{Pod: p, Accepted: began}
	}
	ending := rec("ending", v1.PodFailed, 0)
	ending.Pod.DeletionTimestamp = &metav1.Time{Time: began}
	records := []store.Record{
		rec("new", v1.PodSucceeded, 9), rec("old", v1.PodFailed, 1), rec("runs", v1.PodRunning, 0), rec("middle", v1.PodSucceeded, 5), ending,
	}
	for keep, want := range map[int]string{3: "", 2: "old", 1: "old middle", 0: "old middle new"} {
		var names []string
		for _, r := range excess(records, keep) {
			names = append(names, r.Pod.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("keep %d: %q go, want %q", keep, got, want)
		}
	}
}

// TestURLSecretsStayInside: what the unauthenticated health path, get sources
// and the API's config show of a URL is where it leads, not how one gets in.
func TestURLSecretsStayInside(t *testing.T) {
	cfg := &config.NodeAgentConfiguration{
		StateDir: t.TempDir(), NodeName: "n", Manifests: "/m",
		ManifestURL:       "https://user:secret@example.org/pods.yaml?token=secret",
		ManifestURLHeader: map[string][]string{"Authorization": {"Bearer secret"}},
	}
	a := &agent{cfg: cfg, log: slog.New(slog.DiscardHandler)}
	var err error
	if a.store, err = a.openStore(journal.NewCounter(time.Now())); err != nil {
		t.Fatal(err)
	}
	for _, shown := range []string{fmt.Sprintf("%+v", a.Sources()), fmt.Sprintf("%+v", a.Config())} {
		if strings.Contains(shown, "secret") || !strings.Contains(shown, "https://example.org/pods.yaml") {
			t.Errorf("shown: %s", shown)
		}
	}
	if !strings.Contains(cfg.ManifestURL, "secret") {
		t.Error("the agent's own configuration was changed")
	}
}
