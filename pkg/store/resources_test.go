package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

func yamlService(name, port, rest string) string {
	return "apiVersion: v1\nkind: Service\nmetadata: {name: " + name + "}\nspec:\n  ports: [{port: " + port + "}]\n" + rest
}

func (h *host) service(name string) Resource {
	h.Helper()
	r, ok := h.Resource("Service", pod.Key{Namespace: "default", Name: name})
	if !ok {
		h.Fatalf("service %s is not known", name)
	}
	return r
}

func (h *host) services() (names []string) {
	all, _ := h.Resources("Service")
	for _, r := range all {
		names = append(names, r.Key().Name)
	}
	return names
}

func (h *host) wantServices(names ...string) {
	h.Helper()
	if got := h.services(); !slices.Equal(got, names) {
		h.Errorf("the services are %q, want %q", got, names)
	}
}

// resolve does what the controller of Services does.
func (h *host) resolve(name, ip string) {
	h.Helper()
	r := h.service(name)
	s := r.Object.DeepCopyObject().(*v1.Service)
	s.Spec.ClusterIP, s.Spec.ClusterIPs = ip, []string{ip}
	r.Object = s
	if err := h.SetResource(r); err != nil {
		h.Fatal(err)
	}
}

// TestResourcesFollowTheirSource: a Service shares a name with a pod, changes in
// place and goes with its manifest.
func TestResourcesFollowTheirSource(t *testing.T) {
	h := newHost(t)
	h.apply(SourceFile, h.decode("a.yaml", yamlPod("web", "x"), yamlService("web", "80", "")))
	first := h.service("web")
	if h.web().Pod.Name != "web" || first.Object.GetResourceVersion() == "" || first.Object.GetGeneration() != 1 ||
		first.Object.GetAnnotations()[pod.AnnotationOrigin] != "a.yaml" || first.Resolved {
		t.Errorf("got %+v", first)
	}
	if n := h.Sources()[0].Objects; n != 2 {
		t.Errorf("the source has %d objects, want 2", n)
	}
	revision := h.Revision()
	h.apply(SourceFile, h.decode("a.yaml", yamlPod("web", "x"), yamlService("web", "80", "")))
	if again := h.service("web"); h.Revision() != revision || again.Wanted != first.Wanted {
		t.Error("the same again is a change")
	}
	h.apply(SourceFile, h.decode("a.yaml", yamlPod("web", "x")), h.decode("b.yaml", yamlService("web", "80", "  type: ClusterIP\n")))
	moved := h.service("web")
	if moved.Origin != "b.yaml" || moved.Wanted != first.Wanted || moved.Object.GetGeneration() != 1 {
		t.Errorf("after a move that changes nothing: %+v", moved)
	}
	h.apply(SourceFile, h.decode("a.yaml", yamlPod("web", "x"), yamlService("web", "81", "")))
	changed := h.service("web")
	if changed.Object.GetUID() != first.Object.GetUID() || changed.Order != first.Order || !changed.Accepted.Equal(first.Accepted) ||
		changed.Object.GetGeneration() != 2 || changed.Object.(*v1.Service).Spec.Ports[0].Port != 81 {
		t.Errorf("after a change: %+v", changed)
	}
	h.apply(SourceFile, h.decode("a.yaml", yamlPod("web", "x")))
	h.wantServices()
	if files, err := os.ReadDir(filepath.Join(h.o.ResourceDir, "services")); err != nil || len(files) > 0 {
		t.Errorf("%v is left of it: %v", files, err)
	}
}

// TestResourcesOutliveTheAgent: what is known, who was first and what was
// allocated is there before any source has answered, and nothing goes on the
// word of a source that has not.
func TestResourcesOutliveTheAgent(t *testing.T) {
	h := newHost(t)
	h.apply(SourceHTTP, h.decode("u", yamlService("late", "80", "")))
	h.apply(SourceFile, h.decode("a.yaml", yamlService("web", "80", "")))
	h.resolve("web", "10.96.0.1")
	before := h.service("web")
	h.open()
	h.wantServices("late", "web")
	after := h.service("web")
	if after.Object.(*v1.Service).Spec.ClusterIP != "10.96.0.1" || !after.Resolved || after.Wanted.(*v1.Service).Spec.ClusterIP != "" ||
		after.Order != before.Order || !after.Accepted.Equal(before.Accepted) || after.Object.GetUID() != before.Object.GetUID() {
		t.Errorf("after a restart: %+v, want %+v", after, before)
	}
	if late := h.service("late"); late.Order >= after.Order || late.Resolved {
		t.Errorf("the first one has order %d, the second one %d", late.Order, after.Order)
	}
	h.apply(SourceFile, h.decode("a.yaml", yamlService("web", "81", ""), yamlService("new", "80", "")))
	h.wantServices("late", "new", "web")
	if r := h.service("web"); r.Object.(*v1.Service).Spec.ClusterIP != "10.96.0.1" || h.service("new").Order <= r.Order {
		t.Errorf("the changed one: %+v", r)
	}
	h.Apply(SourceFile, Snapshot{Problems: []Problem{keep("a.yaml")}})
	h.wantServices("late", "new", "web")
	h.apply(SourceHTTP)
	h.wantServices("new", "web")
	h.sources = h.sources[1:]
	h.open()
	h.wantServices() // of a source that is no longer configured
}

// TestDamagedResourceCheckpoint is set aside and comes back from the source.
func TestDamagedResourceCheckpoint(t *testing.T) {
	h := newHost(t)
	h.apply(SourceFile, h.decode("a.yaml", yamlService("web", "80", "")))
	path := h.resourcePath(h.others[objectKey{"Service", web()}])
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.open()
	h.wantServices()
	if _, err := os.Stat(path + ".broken"); err != nil {
		t.Error(err)
	}
	h.apply(SourceFile, h.decode("a.yaml", yamlService("web", "80", "")))
	h.wantServices("web")
}

// TestResourceConflicts: the source that comes first has the name.
func TestResourceConflicts(t *testing.T) {
	h := newHost(t)
	h.apply(SourceHTTP, h.decode("u", yamlService("web", "80", "")))
	h.resolve("web", "10.96.0.9")
	h.apply(SourceFile, h.decode("a.yaml", yamlService("web", "81", ""), yamlService("web", "82", "")))
	if r := h.service("web"); r.Source != SourceFile || r.Object.(*v1.Service).Spec.Ports[0].Port != 81 || r.Object.(*v1.Service).Spec.ClusterIP != "10.96.0.9" {
		t.Errorf("got %+v", r)
	}
	h.wantProblem(SourceHTTP, "u:1: service default/web is already defined by file a.yaml:1")
	h.wantProblem(SourceFile, "a.yaml:7: service default/web is already defined by a.yaml:1")
	h.apply(SourceFile)
	if r := h.service("web"); r.Source != SourceHTTP {
		t.Errorf("got %+v", r)
	}
	// Another UID is another object.
	own := "apiVersion: v1\nkind: Service\nmetadata: {name: web, uid: mine}\nspec: {ports: [{port: 80}]}\n"
	before := h.service("web")
	h.apply(SourceHTTP, h.decode("u", own))
	if r := h.service("web"); r.Object.GetUID() != "mine" || r.Order == before.Order || r.Resolved {
		t.Errorf("got %+v", r)
	}
}

func TestFullDiskKeepsResourcesOut(t *testing.T) {
	h := newHost(t)
	h.fill(true)
	h.apply(SourceFile, h.decode("a.yaml", yamlService("web", "80", "")))
	h.wantServices()
	h.wantProblem(SourceFile, "cannot checkpoint service default/web; will try again")
	h.fill(false)
	h.Retry()
	h.wantServices("web")
	h.wantProblem(SourceFile, "")
	r := h.service("web")
	r.Problem = "x"
	h.fill(true)
	if err := h.SetResource(r); !errors.Is(err, errdefs.ErrTransient) || h.service("web").Problem != "" {
		t.Errorf("%v, %+v", err, h.service("web"))
	}
}

// TestSetResource refuses what was decided on an old state, and shows problems.
func TestSetResource(t *testing.T) {
	h := newHost(t)
	h.apply(SourceFile, h.decode("a.yaml", yamlService("web", "80", "  type: LoadBalancer\n")))
	old := h.service("web")
	h.resolve("web", "10.96.0.1")
	if err := h.SetResource(old); !errors.Is(err, errdefs.ErrConflict) {
		t.Errorf("writing on an old state: %v", err)
	}
	r := h.service("web")
	revision := h.Revision()
	if err := h.SetResource(r); err != nil || h.Revision() != revision {
		t.Errorf("the same again: %v", err)
	}
	s := r.Object.DeepCopyObject().(*v1.Service)
	s.Labels = map[string]string{"not": "mine"}
	s.Status.LoadBalancer.Ingress = []v1.LoadBalancerIngress{{IP: "192.0.2.1"}}
	r.Object, r.Problem = s, "spec.ports[0].nodePort: 30000 is taken"
	if err := h.SetResource(r); err != nil {
		t.Fatal(err)
	}
	h.open()
	got := h.service("web")
	if got.Problem != r.Problem || got.Object.GetAnnotations()[pod.AnnotationProblem] != r.Problem || len(got.Object.GetLabels()) > 0 ||
		got.Object.(*v1.Service).Status.LoadBalancer.Ingress[0].IP != "192.0.2.1" {
		t.Errorf("got %+v", got)
	}
	h.apply(SourceFile)
	if err := h.SetResource(got); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("writing what is gone: %v", err)
	}
}

func derived(address string) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{address}}},
	}
}

// TestDerivedResources are the agent's own: no file, and second to a source's.
func TestDerivedResources(t *testing.T) {
	h := newHost(t)
	changes, err := h.WatchResources(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	get := func() (Resource, bool) { return h.Resource("EndpointSlice", web()) }
	for _, address := range []string{"10.0.0.1", "10.0.0.2", "10.0.0.2"} {
		if err := h.PutDerived(derived(address)); err != nil {
			t.Fatal(err)
		}
	}
	if r, ok := get(); !ok || r.Source != SourceAgent || r.Object.GetUID() == "" || r.Object.GetGeneration() != 2 {
		t.Errorf("got %+v", r)
	}
	h.apply(SourceFile) // not this source's to remove
	if _, ok := get(); !ok {
		t.Error("it went with another source's snapshot")
	}
	text := "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web}\naddressType: IPv4\nports: []\nendpoints: []\n"
	h.apply(SourceFile, h.decode("a.yaml", text))
	if r, _ := get(); r.Source != SourceFile {
		t.Errorf("got %+v", r)
	}
	if err := h.PutDerived(derived("10.0.0.3")); !errors.Is(err, errdefs.ErrExists) {
		t.Errorf("taking a user's name: %v", err)
	}
	h.DeleteDerived("EndpointSlice", web())
	if r, _ := get(); r.Source != SourceFile {
		t.Error("the user's object was deleted")
	}
	for _, want := range []string{Added, Modified, Deleted, Added} {
		if c := <-changes; c.Type != want || c.Resource.Kind() != "EndpointSlice" || c.Resource.Object.GetResourceVersion() == "" {
			t.Errorf("%s %+v, want %s", c.Type, c.Resource, want)
		}
	}
	h.apply(SourceFile)
	if err := h.PutDerived(derived("10.0.0.3")); err != nil {
		t.Fatal(err)
	}
	h.open()
	if _, ok := get(); ok {
		t.Error("a derived object outlived the agent")
	}
}

// TestWatchResources begins with what there is, and shares its revisions with
// the pods' watch.
func TestWatchResources(t *testing.T) {
	h := newHost(t)
	h.apply(SourceFile, h.decode("a.yaml", yamlService("web", "80", "")))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	all, err := h.WatchResources(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	list, revision := h.Resources("")
	later, err := h.WatchResources(ctx, revision)
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	h.apply(SourceFile, h.decode("a.yaml", yamlService("web", "81", "")))
	if c := <-all; c.Type != Added || c.Resource.Object.(*v1.Service).Spec.Ports[0].Port != 80 {
		t.Errorf("got %+v", c)
	}
	for _, w := range []<-chan ResourceChange{all, later} {
		if c := <-w; c.Type != Modified || c.Revision <= revision || c.Resource.Object.(*v1.Service).Spec.Ports[0].Port != 81 {
			t.Errorf("got %+v", c)
		}
	}
	if _, err := h.WatchResources(ctx, h.Revision()+1); !errors.Is(err, errdefs.ErrExpired) {
		t.Error(err)
	}
}
