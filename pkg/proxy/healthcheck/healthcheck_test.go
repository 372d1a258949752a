package healthcheck_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/proxy/healthcheck"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// bench is a server whose ports are all somewhere on 127.0.0.1.
type bench struct {
	*healthcheck.Server
	t      *testing.T
	tick   chan time.Time
	failed chan string

	mu       sync.Mutex
	now      time.Time
	answered string
	taken    string // an address that cannot be had
	at       map[string]net.Addr
}

func start(t *testing.T) *bench {
	b := &bench{
		t: t, tick: make(chan time.Time), failed: make(chan string, 10), at: map[string]net.Addr{},
		now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
	b.Server = healthcheck.New(healthcheck.Options{
		Addr: "0.0.0.0:10256", Timeout: time.Minute, Listen: b.listen, Tick: b.tick,
		Answered: func(path string, code int) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.answered += fmt.Sprint(path, code, " ")
		},
		Failed: func(c ruleset.HealthCheck, err error) {
			b.failed <- fmt.Sprintf("%s/%s in use %t: %v", c.Namespace, c.Name, errors.Is(err, syscall.EADDRINUSE), err)
		},
		Now: func() time.Time { b.mu.Lock(); defer b.mu.Unlock(); return b.now },
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if len(b.at) > 0 {
			t.Errorf("still listening: %v", b.at)
		}
	})
	return b
}

// listener tells when it is closed.
type listener struct {
	net.Listener
	once  sync.Once
	ended func()
}

func (l *listener) Close() error { l.once.Do(l.ended); return l.Listener.Close() }

func (b *bench) listen(network, addr string) (net.Listener, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.taken == addr {
		return nil, &net.OpError{Op: "listen", Err: syscall.EADDRINUSE}
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	key := network + " " + addr
	b.at[key] = l.Addr()
	return &listener{Listener: l, ended: func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.at, key)
	}}, nil
}

func (b *bench) take(addr string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.taken = addr
}

// counted is what was answered since the last time.
func (b *bench) counted() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer func() { b.answered = "" }()
	return b.answered
}

func (b *bench) addr(key string) net.Addr {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.at[key]
}

func (b *bench) where() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var keys []string
	for k := range b.at {
		keys = append(keys, k)
	}
	return strings.Join(keys, ",")
}

// get waits until the address is served.
func (b *bench) get(key, path string) (*http.Response, string) {
	b.t.Helper()
	var at net.Addr
	b.until("open "+key, func() bool {
		at = b.addr(key)
		return at != nil
	})
	resp, err := http.Get("http://" + at.String() + path)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp, string(body)
}

func (b *bench) until(what string, ok func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("not yet: %s; open: %s", what, b.where())
		}
	}
}

func (b *bench) pass(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now = b.now.Add(d)
}

var (
	any4  = netip.IPv4Unspecified()
	any6  = netip.IPv6Unspecified()
	every = ruleset.Node{NodePortAddresses: []netip.Addr{any4, any6}}
)

func check(name string, family netip.Addr, port uint16, local int) ruleset.HealthCheck {
	return ruleset.HealthCheck{Namespace: "ns", Name: name, Family: family, Port: port, Local: local}
}

// The expected text is what kube-proxy 1.37.2 prints.
func TestServiceAnswers(t *testing.T) {
	b := start(t)
	b.Sync(every, []ruleset.HealthCheck{check("a", any4, 31000, 2), check("a", any6, 31000, 0)})
	for _, c := range []struct {
		key, weight string
		status      int
		healthy     bool
	}{
		{"tcp4 0.0.0.0:31000", "2", 200, true},
		{"tcp6 [::]:31000", "0", 503, true},
		{"tcp4 0.0.0.0:31000", "2", 503, false},
	} {
		if !c.healthy {
			b.Updated()
			b.Queued()
			b.pass(time.Hour)
		}
		resp, body := b.get(c.key, "/whatever")
		want := "{\n\t\"service\": {\n\t\t\"namespace\": \"ns\",\n\t\t\"name\": \"a\"\n\t},\n\t\"localEndpoints\": " + c.weight +
			",\n\t\"serviceProxyHealthy\": " + fmt.Sprint(c.healthy) + "\n}"
		if resp.StatusCode != c.status || body != want {
			t.Errorf("%s: %d %s", c.key, resp.StatusCode, body)
		}
		for name, want := range map[string]string{
			"X-Load-Balancing-Endpoint-Weight": c.weight, "Content-Type": "application/json", "X-Content-Type-Options": "nosniff",
		} {
			if got := resp.Header.Get(name); got != want {
				t.Errorf("%s: header %s is %q, want %q", c.key, name, got, want)
			}
		}
	}
}

func TestPortsComeAndGo(t *testing.T) {
	b := start(t)
	b.Sync(every, []ruleset.HealthCheck{check("a", any4, 31000, 1), check("b", any4, 31001, 1)})
	b.get("tcp4 0.0.0.0:31001", "/")
	// Another Service gets the port, without a moment in which nobody has it.
	at := b.addr("tcp4 0.0.0.0:31000")
	b.Sync(every, []ruleset.HealthCheck{check("c", any4, 31000, 5)})
	if resp, body := b.get("tcp4 0.0.0.0:31000", "/"); resp.StatusCode != 200 || !strings.Contains(body, `"c"`) {
		t.Errorf("got %d %s", resp.StatusCode, body)
	}
	b.until("31001 closed", func() bool { return !strings.Contains(b.where(), "31001") })
	if b.addr("tcp4 0.0.0.0:31000") != at {
		t.Error("the port was opened anew")
	}
	// Other addresses.
	node := ruleset.Node{NodePortAddresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), any6}, LoopbackNodePorts: true}
	b.Sync(node, []ruleset.HealthCheck{check("c", any4, 31000, 5)})
	b.get("tcp4 192.0.2.1:31000", "/")
	b.get("tcp4 127.0.0.1:31000", "/")
	b.until("0.0.0.0 closed", func() bool { return !strings.Contains(b.where(), "0.0.0.0:31000") })
}

func TestPortInUse(t *testing.T) {
	b := start(t)
	b.take("0.0.0.0:31000")
	want := []ruleset.HealthCheck{check("a", any4, 31000, 1), check("b", any4, 31001, 1), check("c", any4, 31001, 1)}
	b.Sync(every, want)
	failed := map[string]bool{<-b.failed: true, <-b.failed: true}
	for _, text := range []string{
		"ns/a in use true: health-check node port 0.0.0.0:31000: another program uses the port: listen: address already in use",
		"ns/c in use false: health-check node port 0.0.0.0:31001: it is that of Service ns/b already: give one of them another one",
	} {
		if !failed[text] {
			t.Errorf("not said: %s; but %v", text, failed)
		}
	}
	b.tick <- time.Time{} // said already
	b.take("")
	b.tick <- time.Time{}
	if resp, _ := b.get("tcp4 0.0.0.0:31000", "/"); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
	if len(b.failed) > 0 {
		t.Errorf("said again: %s", <-b.failed)
	}
}

func TestProxyHealth(t *testing.T) {
	b := start(t)
	tainted := &corev1.Node{Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "ToBeDeletedByClusterAutoscaler"}}}}
	deleted := &corev1.Node{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &metav1.Time{Time: b.now}}}
	const late = `{"lastUpdated":"2026-01-02T03:04:05Z","currentTime":"2026-01-02T03:05:05Z","nodeEligible":true,"healthy":false,"status":` +
		`{"IPv4":{"lastUpdated":"2026-01-02T03:04:05Z","healthy":false},"IPv6":{"lastUpdated":"2026-01-02T03:04:05Z","healthy":false}}}`
	for _, c := range []struct {
		what           string
		do             func()
		healthz, livez int
		body           string // of /healthz
	}{
		{"at the start", func() {}, 200, 200, `{"lastUpdated":"2026-01-02T03:04:05Z","currentTime":"2026-01-02T03:04:05Z","nodeEligible":true,"healthy":true}`},
		{"a first change waits", b.Queued, 200, 200, ""},
		{"programmed", b.Updated, 200, 200, ""},
		{"nothing to do for long", func() { b.pass(time.Hour); b.Updated(); b.pass(-time.Hour); b.Updated() }, 200, 200, ""},
		{"a change waits", func() { b.Queued(); b.pass(59 * time.Second); b.Queued() }, 200, 200, ""},
		{"too long", func() { b.pass(time.Second) }, 503, 503, late},
		{"programmed late", b.Updated, 200, 200, ""},
		{"tainted", func() { b.SetNode(tainted) }, 503, 200, ""},
		{"well again", func() { b.SetNode(&corev1.Node{}) }, 200, 200, ""},
		{"node being deleted", func() { b.SetNode(deleted) }, 503, 200, ""},
		{"node gone", func() { b.SetNode(nil) }, 503, 200, ""},
	} {
		c.do()
		b.counted()
		healthz, body := b.get("tcp 0.0.0.0:10256", "/healthz")
		livez, lbody := b.get("tcp 0.0.0.0:10256", "/livez")
		if healthz.StatusCode != c.healthz || livez.StatusCode != c.livez {
			t.Errorf("%s: /healthz %d, /livez %d", c.what, healthz.StatusCode, livez.StatusCode)
		}
		if c.body != "" && (body != c.body || lbody != strings.Replace(c.body, `"nodeEligible":true,`, "", 1)) {
			t.Errorf("%s: got\n%s\n%s\nwant\n%s", c.what, body, lbody, c.body)
		}
		if got, want := b.counted(), fmt.Sprintf("/healthz%d /livez%d ", c.healthz, c.livez); got != want {
			t.Errorf("%s: counted %s, want %s", c.what, got, want)
		}
	}
}
