package apiserver

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/clock"
)

// rig is a source that follows a server, and what it was told by it.
type rig struct {
	*testing.T
	server     *server
	source     *Source
	kubeconfig string

	batch   sync.Mutex
	mu      sync.Mutex
	news    chan struct{}
	objects map[string]any // by "kind namespace/name"
	synced  map[string]int
	deleted int
	node    *corev1.Node
	nodes   int // calls of SetNode
	cidrs   []netip.Prefix
}

func (r *rig) changed() {
	select {
	case r.news <- struct{}{}:
	default:
	}
}

func key(o any) string {
	m := o.(metav1.Object)
	return strings.TrimPrefix(fmt.Sprintf("%T ", o), "*v1.") + m.GetNamespace() + "/" + m.GetName()
}

func (r *rig) Upsert(o any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.objects[key(o)] = o
	r.changed()
}

func (r *rig) Delete(o any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.objects[key(o)] == nil {
		r.Errorf("%s is deleted and was never there", key(o))
	}
	delete(r.objects, key(o))
	r.deleted++
	r.changed()
}

func (r *rig) Synced(input string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.synced[input]++
	r.changed()
}

// Batch lets nobody see what is in between.
func (r *rig) Batch(f func()) {
	r.batch.Lock()
	defer r.batch.Unlock()
	f()
}

func (r *rig) SetNode(n *corev1.Node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.node = n
	r.nodes++
	r.changed()
}

func (r *rig) SetServiceCIDRs(ranges []netip.Prefix) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cidrs = ranges
	r.changed()
}

// names are what the sink has, in order.
func (r *rig) names() string {
	r.batch.Lock()
	defer r.batch.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(slices.Sorted(maps.Keys(r.objects)), ", ")
}

// await waits until the condition holds.
func (r *rig) await(what string, cond func() bool) {
	r.Helper()
	deadline := time.After(time.Minute)
	for !cond() {
		select {
		case <-r.news:
		case <-time.After(20 * time.Millisecond): // not every condition is the sink's
		case <-deadline:
			r.Fatalf("%s: never; the sink has %s, the source %+v", what, r.names(), r.source.State())
		}
	}
}

func (r *rig) awaitNames(what, want string) {
	r.Helper()
	r.await(what+": "+want, func() bool { return r.names() == want })
}

func (r *rig) writeKubeconfig(s *server, token string) {
	r.Helper()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.http.Certificate().Raw})
	text := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Config", "current-context": "c",
 "clusters": [{"name": "c", "cluster": {"server": %q, "certificate-authority-data": %q}}], "users": [{"name": "u", "user": {"token": %q}}],
 "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]}`, s.http.URL, base64.StdEncoding.EncodeToString(ca), token)
	tmp := r.kubeconfig + ".new"
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		r.Fatal(err)
	}
	if err := os.Rename(tmp, r.kubeconfig); err != nil {
		r.Fatal(err)
	}
}

// run starts a source; without a server there is no kubeconfig either.
func run(t *testing.T, s *server) *rig {
	t.Helper()
	r := &rig{
		T: t, server: s, kubeconfig: filepath.Join(t.TempDir(), "kubeconfig"),
		news: make(chan struct{}, 1), objects: map[string]any{}, synced: map[string]int{},
	}
	if s != nil {
		r.writeKubeconfig(s, "first")
	}
	r.source = New(Options{
		Kubeconfig: r.kubeconfig, NodeName: "n1", UserAgent: "nodeagent/test", Sink: r, Poll: 10 * time.Millisecond,
		Clock: clock.RealClock{}, Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- r.source.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return r
}

func (r *rig) awaitSynced() {
	r.Helper()
	r.await("everything is synced", func() bool { return r.source.State().Synced && r.source.Err() == nil })
}

func service(name string, labels ...string) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: name}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.9"}}
	for _, l := range labels {
		metav1.SetMetaDataLabel(&s.ObjectMeta, l, "x")
	}
	return s
}

func slice(name string) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "d", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: "s", "app": "x"},
			Annotations:   map[string]string{corev1.EndpointsLastChangeTriggerTime: "2026-01-01T00:00:00Z", "more": "x"},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "m"}},
		},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}, TargetRef: &corev1.ObjectReference{Name: "p"}}},
	}
}

func node(name string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelTopologyZone: "z1"}},
		Spec:       corev1.NodeSpec{PodCIDRs: []string{"10.244.1.0/24", "fd00:1::/64"}},
		Status: corev1.NodeStatus{Images: []corev1.ContainerImage{{Names: []string{"i"}}}, Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeHostName, Address: "n1"}, {Type: corev1.NodeExternalIP, Address: "203.0.113.1"}, {Type: corev1.NodeInternalIP, Address: "192.0.2.1"},
		}},
	}
}

func serviceCIDR(name string, cidrs ...string) *networkingv1.ServiceCIDR {
	return &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: cidrs}}
}

func TestFollow(t *testing.T) {
	for _, lists := range []string{"streamed", "plain", "protobuf"} {
		t.Run(lists, func(t *testing.T) {
			s := newServer(t)
			s.plain, s.protobuf = lists != "streamed", lists == "protobuf"
			s.put(service("s1"), slice("e1"), service("other", "service.kubernetes.io/service-proxy-name"),
				service("headless", corev1.IsHeadlessService), node("n1"), serviceCIDR("b", "10.97.0.0/16"), serviceCIDR("a", "10.96.0.0/16", "fd00::/112"))
			r := run(t, s)
			r.awaitSynced()
			r.awaitNames("after the first sync", "EndpointSlice d/e1, Service d/s1")
			if want := "[10.96.0.0/16 10.97.0.0/16 fd00::/112]"; fmt.Sprint(r.cidrs) != want {
				t.Errorf("service ranges %v, want %s", r.cidrs, want)
			}
			if got := r.node; got.Labels[corev1.LabelTopologyZone] != "z1" || len(got.Spec.PodCIDRs) != 2 || len(got.Status.Addresses) != 3 || len(got.Status.Images) != 0 {
				t.Errorf("node %+v", got)
			}
			s.put(service("s2"), slice("e2"))
			r.awaitNames("created", "EndpointSlice d/e1, EndpointSlice d/e2, Service d/s1, Service d/s2")
			s.remove(slice("e1"))
			s.put(service("s1", "service.kubernetes.io/service-proxy-name")) // somebody else's from now on
			r.awaitNames("deleted and given away", "EndpointSlice d/e2, Service d/s2")
			if st := r.source.State(); st.Objects != 5 || st.Target != s.http.URL || st.LastSync.IsZero() || !st.Tried || len(st.Problems) > 0 {
				t.Errorf("state %+v", st) // two objects, the node and two ranges
			}
		})
	}
}

// TestStreamedObjects: what a list holds in memory until it is complete is no
// more than the proxy reads, and of the first one nothing at all.
func TestStreamedObjects(t *testing.T) {
	s := newServer(t)
	s.put(slice("e1"))
	r := run(t, s)
	r.awaitSynced()
	get := func() *discoveryv1.EndpointSlice {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.objects["EndpointSlice d/e1"].(*discoveryv1.EndpointSlice)
	}
	if first := get(); len(first.ManagedFields) == 0 {
		t.Error("an object of the first list was kept back")
	}
	s.edit(func() {
		s.eventLocked(slice("e2"), true)
		s.oldest = s.revision
	})
	r.awaitNames("after a second list", "EndpointSlice d/e1, EndpointSlice d/e2")
	got := get()
	if len(got.ManagedFields) > 0 || len(got.Labels) != 1 || len(got.Annotations) != 1 || got.Endpoints[0].TargetRef != nil ||
		got.Labels[discoveryv1.LabelServiceName] != "s" || got.Annotations[corev1.EndpointsLastChangeTriggerTime] == "" {
		t.Errorf("kept %+v", got)
	}
}

// TestPlainListCut: the part of a list is an error, wherever it ends.
func TestPlainListCut(t *testing.T) {
	s := newServer(t)
	s.put(service("s1"), service("s2"))
	all := s.protobufLocked(Services, "")
	in := newInputs(New(Options{}))[0]
	for n := range len(all) + 1 {
		var got []string
		var about metav1.ListMeta
		err := in.decode(bytes.NewReader(all[:n]), &about, func(o runtime.Object) error {
			got = append(got, o.(*corev1.Service).Name)
			return nil
		})
		complete := len(got) == 2 && about.ResourceVersion == "3"
		if err == nil && !complete {
			t.Errorf("%d of %d bytes are taken for the whole: %v", n, len(all), got)
		}
		if n == len(all) && err != nil {
			t.Error(err)
		}
	}
	if err := in.decode(strings.NewReader("k8s\x00\x12\xff\xff\xff\xff\x7f\x12\xff\xff\xff\xff\x0f"), nil, nil); err == nil {
		t.Error("an object of 4 GB is no error")
	}
}

// TestFirstListInterrupted: what a list that broke off has told of is deleted
// when the next one does not have it.
func TestFirstListInterrupted(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("plain %t", plain), func(t *testing.T) { firstListInterrupted(t, plain) })
	}
}

func firstListInterrupted(t *testing.T, plain bool) {
	s := newServer(t)
	s.put(service("s1"), service("s2"))
	if s.breakAt = 1; plain {
		s.plain, s.protobuf, s.breakAt, s.cut = true, true, 0, 40
	}
	r := run(t, s)
	r.awaitNames("the half of a list", "Service d/s1")
	if r.source.State().Synced {
		t.Error("the half of a list is taken for all")
	}
	s.remove(service("s1"))
	s.edit(func() { s.breakAt, s.cut = 0, 0 })
	r.awaitSynced()
	r.awaitNames("the whole", "Service d/s2")
}

// TestOutage: nothing changes while the API server is away, and what was
// deleted meanwhile goes when it is back, whether or not it still has the
// revisions in between.
func TestOutage(t *testing.T) {
	for _, expired := range []bool{false, true} {
		t.Run(fmt.Sprintf("history expired %t", expired), func(t *testing.T) {
			s := newServer(t)
			s.put(service("s1"), service("s2"), slice("e1"))
			r := run(t, s)
			r.awaitSynced()
			addr := strings.TrimPrefix(s.http.URL, "https://")
			s.stop()
			r.await("the loss is noticed", func() bool { return r.source.Err() != nil })
			if r.deleted != 0 || r.names() != "EndpointSlice d/e1, Service d/s1, Service d/s2" {
				t.Errorf("an outage deleted something: %s", r.names())
			}
			if st := r.source.State(); !st.Synced || st.Error == "" {
				t.Errorf("state %+v: want one that has synced and fails", st)
			}
			s.remove(service("s1"), slice("e1"))
			s.put(service("s3"))
			if expired {
				s.edit(func() { s.oldest = s.revision })
			}
			s.start(addr)
			r.awaitNames("after the outage", "Service d/s2, Service d/s3")
			r.awaitSynced()
		})
	}
}

// TestExpiredWatch: a server that forgot the revisions in between is no failure.
func TestExpiredWatch(t *testing.T) {
	s := newServer(t)
	s.put(service("s1"), service("s2"))
	r := run(t, s)
	r.awaitSynced()
	s.edit(func() {
		s.eventLocked(service("s1"), false)
		s.oldest = s.revision
	})
	r.awaitNames("after the relist", "Service d/s2")
	if err := r.source.Err(); err != nil {
		t.Errorf("a relist is reported as a failure: %v", err)
	}
}

// TestRefused: Services are served without a Node and the ranges, and the
// Services themselves cannot be done without.
func TestRefused(t *testing.T) {
	s := newServer(t)
	s.put(service("s1"), node("n1"))
	s.status = map[string]int{Nodes: http.StatusForbidden, ServiceCIDRs: http.StatusNotFound}
	r := run(t, s)
	r.awaitSynced()
	st := r.source.State()
	if r.node != nil || len(st.Problems) != 1 || !strings.Contains(st.Problems[0], "nodes") {
		t.Errorf("node %+v, problems %q: want one about nodes", r.node, st.Problems)
	}

	s = newServer(t)
	s.status = map[string]int{Services: http.StatusForbidden}
	r = run(t, s)
	r.await("the refusal is noticed", func() bool { return r.source.State().Error != "" })
	if r.source.State().Synced || r.synced[Services] > 0 {
		t.Error("synced without Services")
	}
	s.edit(func() { s.status = nil })
	r.awaitSynced()
}

// TestNode: what changes about the node is said, what does not is not.
func TestNode(t *testing.T) {
	s := newServer(t)
	n := node("n1")
	s.put(n)
	r := run(t, s)
	r.awaitSynced()
	n.Annotations, n.Status.Images = map[string]string{"heartbeat": "now"}, nil
	s.put(n)
	n.Spec.Taints = []corev1.Taint{{Key: "ToBeDeletedByClusterAutoscaler"}}
	s.put(n)
	is := func(cond func(*corev1.Node) bool) func() bool {
		return func() bool { r.mu.Lock(); defer r.mu.Unlock(); return cond(r.node) }
	}
	r.await("leaving", is(func(n *corev1.Node) bool { return len(n.Spec.Taints) == 1 }))
	if r.nodes != 2 {
		t.Errorf("SetNode was called %d times, want 2: a heartbeat is no news", r.nodes)
	}
	s.remove(n)
	r.await("gone", is(func(n *corev1.Node) bool { return n == nil }))
}

// TestKubeconfig: one that comes late, a token that is replaced, another
// server, and a broken file, which changes nothing.
func TestKubeconfig(t *testing.T) {
	r := run(t, nil)
	r.await("its absence is noticed", func() bool { st := r.source.State(); return st.Error != "" && st.Tried && !st.Synced })
	a, b := newServer(t), newServer(t)
	a.token, b.token = "first", "second"
	a.put(service("s1"), service("s2"))
	b.put(service("s2"))
	r.writeKubeconfig(a, "first")
	r.awaitNames("the first server", "Service d/s1, Service d/s2")
	if err := os.WriteFile(r.kubeconfig, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.await("a broken file is noticed", func() bool { return r.source.Err() != nil })
	a.put(service("s3"))
	r.awaitNames("with a broken file", "Service d/s1, Service d/s2, Service d/s3")
	r.writeKubeconfig(b, "second")
	r.awaitNames("the second server", "Service d/s2")
	r.awaitSynced()
	if got := r.source.State().Target; got != b.http.URL {
		t.Errorf("the target is %s, want %s", got, b.http.URL)
	}
}

// TestSelectors: the server is asked for this node alone, and for nothing
// that the proxy does not serve.
func TestSelectors(t *testing.T) {
	s := newServer(t)
	r := run(t, s)
	r.awaitSynced()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range s.requests {
		if strings.HasPrefix(q, Nodes) && !strings.Contains(q, "fieldSelector=metadata.name%3Dn1") {
			t.Errorf("all nodes are asked for: %s", q)
		}
		if (strings.HasPrefix(q, Services) || strings.HasPrefix(q, EndpointSlices)) && !strings.Contains(q, "service-proxy-name") {
			t.Errorf("another proxy's objects are asked for: %s", q)
		}
	}
}
