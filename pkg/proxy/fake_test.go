package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/events"
	"github.com/nodeagent/nodeagent/pkg/proxy"
	"github.com/nodeagent/nodeagent/pkg/proxy/plan"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// kernel is what the backends of all modes share.
type kernel struct {
	mu    sync.Mutex
	rules map[string]ruleset.Ruleset // by mode
	log   []string
	fail  map[string]error // by what is done: "apply nftables"
	lost  bool             // somebody flushed the rules
	tell  []func()         // who watches
	// mended says that a watcher has put something right by itself.
	mended func()
	takes  time.Duration // each Apply
}

func (k *kernel) did(what string) error {
	k.log = append(k.log, what)
	return k.fail[what]
}

func (k *kernel) failing(what string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fail[what] = err
}

func (k *kernel) heal() {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.fail)
}

func (k *kernel) holds(mode string) ruleset.Ruleset {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.rules[mode]
}

func (k *kernel) isLost() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.lost
}

// fakeBackend refuses what a real one would make a mess of.
type fakeBackend struct {
	k      *kernel
	name   string
	loaded bool
}

func (b *fakeBackend) Apply(ctx context.Context, old, now ruleset.Ruleset) error {
	time.Sleep(b.k.takes)
	b.k.mu.Lock()
	defer b.k.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	there, exists := b.k.rules[b.name]
	how := "apply "
	if !b.loaded {
		how = "replace "
	} else if b.k.lost || !exists {
		b.loaded = false
		b.k.log = append(b.k.log, "broken "+b.name)
		return errors.New("the rules are not there")
	} else if there.String() != old.String() || !there.Node.Equal(old.Node) {
		return fmt.Errorf("the kernel holds\n%s and not\n%s", there, old)
	}
	if err := b.k.did(how + b.name); err != nil {
		b.loaded = false
		return err
	}
	b.k.rules[b.name], b.loaded, b.k.lost = now, true, false
	return nil
}

func (b *fakeBackend) Forget() {
	b.k.mu.Lock()
	defer b.k.mu.Unlock()
	b.loaded = false
}

func (b *fakeBackend) Cleanup(context.Context) error {
	b.k.mu.Lock()
	defer b.k.mu.Unlock()
	if err := b.k.did("cleanup " + b.name); err != nil {
		return err
	}
	delete(b.k.rules, b.name)
	return nil
}

func (b *fakeBackend) Close() error { return nil }

func (b *fakeBackend) Watch() (proxy.Watcher, error) {
	b.k.mu.Lock()
	defer b.k.mu.Unlock()
	return b, b.k.fail["watch "+b.name]
}

func (b *fakeBackend) Mended(f func()) {
	b.k.mu.Lock()
	defer b.k.mu.Unlock()
	b.k.mended = f
}

func (b *fakeBackend) Run(ctx context.Context, changed func()) error {
	b.k.mu.Lock()
	b.k.tell = append(b.k.tell, changed)
	b.k.mu.Unlock()
	<-ctx.Done()
	return nil
}

// world is a proxy with everything around it.
type world struct {
	t       *testing.T
	k       *kernel
	o       proxy.Options
	p       *proxy.Proxy
	stop    func() error
	mu      sync.Mutex
	events  []string
	waiting bool                          // a change, as /healthz has it
	flows   int                           // looks at the kernel's flows
	stale   netlink.CustomConntrackFilter // of the last look
	addrs   []netip.Addr
	moved   func()
	health  []string
	synced  []string // passes: "full" or "partial", with " failed"
	late    []time.Duration
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, k: &kernel{rules: map[string]ruleset.Ruleset{}, fail: map[string]error{}},
		addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	w.o = proxy.Options{
		Mode: "nftables", Modes: w.modes("nftables", "iptables", "userspace"), StateFile: filepath.Join(t.TempDir(), "modes"),
		Inputs: []string{"local"}, Node: plan.Node{Name: "here", ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}},
		Addresses: w, Flows: w, Health: w, Metrics: w,
		Sysctl: func(string) error { return nil },
		Event: func(about events.ObjectRef, _, reason, _ string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, about.Kind+" "+reason)
		},
	}
	return w
}

func (w *world) modes(names ...string) (out []proxy.Mode) {
	for _, name := range names {
		out = append(out, proxy.Mode{Name: name, Kernel: name != "userspace",
			Detect: func(context.Context) error {
				w.k.mu.Lock()
				defer w.k.mu.Unlock()
				return w.k.fail["detect "+name]
			},
			New: func() proxy.Backend { return &fakeBackend{k: w.k, name: name} }})
	}
	return out
}

// start begins an agent's run on the kernel as it is.
func (w *world) start() {
	w.k.mu.Lock()
	w.k.tell = nil
	w.k.mu.Unlock()
	w.p = proxy.New(w.o)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.p.Run(ctx) }()
	w.stop = func() error { cancel(); return <-ended }
}

// settle waits until nothing happens any more within that time.
func (w *world) settle(d time.Duration) {
	time.Sleep(d) // of the bubble: takes no time
	synctest.Wait()
}

// did returns what was done to the kernel since the last call.
func (w *world) did() []string {
	w.k.mu.Lock()
	defer w.k.mu.Unlock()
	log := w.k.log
	w.k.log = nil
	return log
}

func (w *world) flush() {
	w.k.mu.Lock()
	w.k.lost = true
	tell := w.k.tell
	w.k.mu.Unlock()
	for _, f := range tell {
		f()
	}
}

func (w *world) said(event string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Contains(w.events, event)
}

func (w *world) looks() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.flows
}

func (w *world) List() ([]netip.Addr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.addrs, nil
}

func (w *world) Watch(ctx context.Context, changed func()) error {
	w.mu.Lock()
	w.moved = changed
	w.mu.Unlock()
	changed()
	<-ctx.Done()
	return nil
}

func (w *world) ConntrackDeleteFilters(_ netlink.ConntrackTableType, _ netlink.InetFamily, filters ...netlink.CustomConntrackFilter) (uint, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flows++
	w.stale = filters[0]
	return 0, nil
}

func (w *world) note(list *[]string, what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*list = append(*list, what)
}

func (w *world) Sync(_ ruleset.Node, checks []ruleset.HealthCheck) {
	w.note(&w.health, fmt.Sprintf("%d checks", len(checks)))
}
func (w *world) Queued()  { w.waits(true) }
func (w *world) Updated() { w.note(&w.health, "updated"); w.waits(false) }

func (w *world) waits(is bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting = is
}

func (w *world) SetNode(*corev1.Node) {}

func (w *world) ProxyChange(bool, bool) {}
func (w *world) ProxyQueued(time.Time)  {}
func (w *world) ProxySynced(_ string, full bool, _ time.Duration, _ time.Time, err error) {
	what := map[bool]string{true: "full", false: "partial"}[full]
	if err != nil {
		what += " failed"
	}
	w.note(&w.synced, what)
}
func (w *world) ProxyProgrammed(_ corev1.IPFamily, took time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.late = append(w.late, took)
}
func (w *world) ProxyNoLocal(string, corev1.IPFamily, int)         {}
func (w *world) FlowsCleaned(corev1.IPFamily, time.Duration, uint) {}

func service(name, ip string, proto corev1.Protocol) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	s.Spec.ClusterIP = ip
	s.Spec.Ports = []corev1.ServicePort{{Port: 80, Protocol: proto}}
	return s
}

func slice(service, addr string) *discoveryv1.EndpointSlice {
	port, proto := int32(8080), corev1.ProtocolTCP
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: service + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Port: &port, Protocol: &proto}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{addr}}},
	}
}
