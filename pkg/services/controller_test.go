package services

//lint:file-ignore SA1019 Endpoints are deprecated, and still what people write by hand.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/nodeagent/nodeagent/pkg/dns"
	"github.com/nodeagent/nodeagent/pkg/events"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// fakeProxy keeps what it is fed with by kind and name, and refuses to delete
// what it was not given.
type fakeProxy struct {
	t       *testing.T
	mu      sync.Mutex
	objects map[string]any
	batch   bool // one is open
	synced  bool
}

func (p *fakeProxy) key(o any) string {
	r := o.(manifest.Resource)
	return manifest.KindOf(r) + " " + r.GetName()
}

func (p *fakeProxy) Upsert(o any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.together(o)
	p.objects[p.key(o)] = o
}

func (p *fakeProxy) Delete(o any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.together(o)
	if p.objects[p.key(o)] == nil {
		p.t.Errorf("deleted %s, which it was not given", p.key(o))
	}
	delete(p.objects, p.key(o))
}

// Batch marks what is served together.
func (p *fakeProxy) Batch(f func()) {
	p.setBatch(true)
	defer p.setBatch(false)
	f()
}

func (p *fakeProxy) setBatch(open bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.batch = open
}

// together: outside of a batch a pod that moves from one slice to another may
// be seen in neither.
func (p *fakeProxy) together(o any) {
	if !p.batch {
		p.t.Errorf("%s is given or taken on its own", p.key(o))
	}
}

func (p *fakeProxy) Synced(input string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.synced = input == Input
}

// all is what it holds now, and whether it may go on.
func (p *fakeProxy) all() (keys []string, synced bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.objects)), p.synced
}

func (p *fakeProxy) has(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.objects[key] != nil
}

// rig is a controller on a real store.
type rig struct {
	t      *testing.T
	store  *store.Store
	proxy  *fakeProxy
	c      *Controller
	mu     sync.Mutex
	names  dns.Snapshot
	events []string
	stop   func()
}

func newRig(t *testing.T, dir string) *rig {
	st, err := store.Open(store.Options{
		Dir: dir, NodeName: "here", Sources: []store.SourceDecl{{Name: store.SourceFile}}, Decode: manifest.Decode, Equal: manifest.SemanticEqual,
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, store: st, proxy: &fakeProxy{t: t, objects: map[string]any{}}}
	r.c = New(Options{
		Pools: testPools(), Place: Place{NodeName: "here"}, Store: st, Changes: st, Proxy: r.proxy, Clock: time.Now, Log: slog.New(slog.DiscardHandler),
		Event: func(_ events.ObjectRef, _, _, message string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events = append(r.events, message)
		},
	})
	r.c.Names(func(s dns.Snapshot) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.names = s
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = r.c.Run(ctx)
	}()
	r.stop = func() { cancel(); <-done }
	t.Cleanup(r.stop)
	return r
}

// apply is what the folder holds now.
func (r *rig) apply(text string) {
	r.t.Helper()
	objects, errs := manifest.Decode([]byte(text), manifest.Options{Origin: "/m/all.yaml", NodeName: "here"})
	if len(errs) > 0 {
		r.t.Fatal(errs)
	}
	r.store.Apply(store.SourceFile, store.Snapshot{Objects: objects})
}

func (r *rig) eventually(what string, cond func() error) {
	r.t.Helper()
	var err error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		r.mu.Lock()
		err = cond()
		r.mu.Unlock()
		if err == nil {
			return
		}
	}
	r.t.Fatalf("%s: %v", what, err)
}

// service is a Service as the store shows it.
func (r *rig) service(name string) (*v1.Service, store.Resource) {
	rec, ok := r.store.Resource("Service", pod.Key{Namespace: "default", Name: name})
	if !ok {
		return &v1.Service{}, rec
	}
	return rec.Object.(*v1.Service), rec
}

// An agent that remembers nothing hands on nothing before its sources have
// delivered: what another one left in the kernel may be theirs.
func TestWaitsForItsSources(t *testing.T) {
	r := newRig(t, t.TempDir())
	r.c.look(false)
	if _, synced := r.proxy.all(); synced {
		t.Error("handed on before the folder was read")
	}
	r.store.Fail(store.SourceFile, errors.New("it is away"))
	r.eventually("a folder that cannot be read holds up nothing", func() error {
		if _, synced := r.proxy.all(); !synced {
			return errors.New("not handed on")
		}
		return nil
	})
}

const twoServices = `
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: clash}, spec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: first}, spec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {app: web}}, spec: {containers: [{name: c, image: i}]}}
`

func TestControllerServesWhatTheStoreHolds(t *testing.T) {
	dir := t.TempDir()
	r := newRig(t, dir)
	r.apply(`{apiVersion: v1, kind: Service, metadata: {name: first}, spec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}}`)
	r.eventually("the first one is served", func() error {
		if !r.proxy.has("Service first") {
			return errors.New("it is not")
		}
		return nil
	})
	r.apply(twoServices)
	r.eventually("web gets an address, and its record says so", func() error {
		if s, rec := r.service("web"); s.Spec.ClusterIP == "" || rec.Problem != "" || !r.proxy.has("Service web") {
			return fmt.Errorf("%+v", rec)
		}
		return nil
	})
	r.eventually("the later of two is told", func() error {
		if _, rec := r.service("clash"); !strings.Contains(rec.Problem, "is the cluster IP of Service default/first") || len(r.events) != 1 {
			return fmt.Errorf("%+v, events %v", rec, r.events)
		}
		return nil
	})
	if r.proxy.has("Service clash") {
		t.Error("it is served all the same")
	}
	a, _ := r.store.Get(pod.Key{Namespace: "default", Name: "a"})
	status := runningPod("a", "web", "10.1.0.1", 80).Status
	if err := r.store.SetStatus(a.Pod.UID, status); err != nil {
		t.Fatal(err)
	}
	r.eventually("the ready pod is an endpoint that everybody sees", func() error {
		slice, ok := r.store.Resource("EndpointSlice", pod.Key{Namespace: "default", Name: "web-ipv4"})
		if !ok || slice.Source != store.SourceAgent || !r.proxy.has("EndpointSlice web-ipv4") || len(r.names.Services) != 2 {
			return fmt.Errorf("%+v %+v", slice, r.names)
		}
		return nil
	})
	web, _ := r.service("web")
	r.stop()

	// After a restart the pod has not been looked at yet.
	r = newRig(t, dir)
	r.eventually("everything that was is fed again", func() error {
		if s, _ := r.service("web"); s.Spec.ClusterIP != web.Spec.ClusterIP || !r.proxy.has("Service web") {
			return fmt.Errorf("cluster IP %s, was %s", s.Spec.ClusterIP, web.Spec.ClusterIP)
		}
		return nil
	})
	if _, synced := r.proxy.all(); synced {
		t.Error("the proxy is told to go on before the pods are known")
	}
	if err := r.store.SetStatus(a.Pod.UID, status); err != nil {
		t.Fatal(err)
	}
	<-r.c.Ready()
	r.apply(`{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {app: web}}, spec: {containers: [{name: c, image: i}]}}`)
	r.eventually("what the folder holds no more is gone", func() error {
		fed, synced := r.proxy.all()
		all, _ := r.store.Resources("")
		if len(fed) > 0 || len(all) > 0 || len(r.names.Services) > 0 || !synced {
			return fmt.Errorf("%v %v %v", fed, all, r.names)
		}
		return nil
	})
}

// TestControllerBesideTheUsersEndpoints: names that the user's objects have are
// left to them, and what counts for nothing says so.
func TestControllerBesideTheUsersEndpoints(t *testing.T) {
	const web = `
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {selector: {app: web}, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {app: web}}, spec: {containers: [{name: c, image: i}]}}
`
	const users = `
---
{apiVersion: v1, kind: Endpoints, metadata: {name: web}, subsets: [{addresses: [{ip: 10.1.0.9}], ports: [{port: 80}]}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: web-ipv4, labels: {kubernetes.io/service-name: other, endpointslice.kubernetes.io/managed-by: nodeagent}},
  addressType: IPv4, endpoints: [{addresses: [10.1.0.9]}], ports: [{port: 80}]}
`
	r := newRig(t, t.TempDir())
	r.apply(web)
	a, _ := r.store.Get(podKey("a"))
	if err := r.store.SetStatus(a.Pod.UID, runningPod("a", "web", "10.1.0.1", 80).Status); err != nil {
		t.Fatal(err)
	}
	// held says where the proxy and the view have the pod and the user's address.
	held := func(podIn, userIn string) func() error {
		return func() error {
			r.proxy.mu.Lock()
			defer r.proxy.mu.Unlock()
			for name, addr := range map[string]string{podIn: "10.1.0.1", userIn: "10.1.0.9"} {
				if name == "" {
					continue
				}
				fed, _ := r.proxy.objects["EndpointSlice "+name].(*discoveryv1.EndpointSlice)
				rec, _ := r.store.Resource("EndpointSlice", podKey(name))
				seen, _ := rec.Object.(*discoveryv1.EndpointSlice)
				for who, s := range map[string]*discoveryv1.EndpointSlice{"proxy": fed, "view": seen} {
					if s == nil || len(s.Endpoints) != 1 || s.Endpoints[0].Addresses[0] != addr {
						return fmt.Errorf("%s has as %s: %+v", who, name, s)
					}
				}
			}
			ours, _ := r.proxy.objects["Endpoints web"].(*v1.Endpoints)
			if ours == nil || ours.Subsets[0].Addresses[0].IP != "10.1.0.1" {
				return fmt.Errorf("the proxy has the Endpoints %+v", ours)
			}
			rec, _ := r.store.Resource("Endpoints", podKey("web"))
			if users := rec.Source == store.SourceFile; users != (userIn != "") || users != strings.HasPrefix(rec.Problem, "not used") {
				return fmt.Errorf("the view has the Endpoints of %s, problem %q", rec.Source, rec.Problem)
			}
			return nil
		}
	}
	r.eventually("alone", held("web-ipv4", ""))
	r.apply(web + users)
	r.eventually("beside the user's", held("web-ipv4-1", "web-ipv4"))
	r.apply(web)
	r.eventually("alone again", held("web-ipv4-1", ""))
	r.apply(strings.Replace(web, "selector: {app: web}, ", "", 1) + users)
	r.eventually("without a selector the user's counts", func() error {
		r.proxy.mu.Lock()
		defer r.proxy.mu.Unlock()
		rec, _ := r.store.Resource("Endpoints", podKey("web"))
		if e, _ := r.proxy.objects["Endpoints web"].(*v1.Endpoints); e == nil || e.Subsets[0].Addresses[0].IP != "10.1.0.9" || rec.Problem != "" {
			return fmt.Errorf("%+v, %q", e, rec.Problem)
		}
		return nil
	})
}
