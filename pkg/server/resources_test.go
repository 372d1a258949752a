package server

//lint:file-ignore SA1019 Endpoints are deprecated, and still what people write by hand.

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/store"
)

const (
	servicesPath = "/api/v1/namespaces/default/services"
	tableJSON    = "application/json;as=Table;v=v1;g=meta.k8s.io"
)

// allocate does what the controller of Services does with one.
func (f *fixture) allocate(t *testing.T, name, ip string, nodePort int32) {
	t.Helper()
	rec, ok := f.store.Resource("Service", pod.Key{Namespace: "default", Name: name})
	if !ok {
		t.Fatalf("no service %s", name)
	}
	s := rec.Object.DeepCopyObject().(*v1.Service)
	s.Spec.ClusterIP, s.Spec.ClusterIPs = ip, []string{ip}
	s.Spec.Ports[0].NodePort = nodePort
	if s.Spec.Type == v1.ServiceTypeLoadBalancer {
		s.Status.LoadBalancer.Ingress = []v1.LoadBalancerIngress{{IP: "192.0.2.7", IPMode: new(v1.LoadBalancerIPModeVIP)}}
	}
	rec.Object = s
	if err := f.store.SetResource(rec); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) wanted(t *testing.T, name string) *v1.Service {
	t.Helper()
	rec, _ := f.store.Resource("Service", pod.Key{Namespace: "default", Name: name})
	return rec.Wanted.(*v1.Service)
}

// TestClientGoServices goes through a Service's life with the Kubernetes client.
func TestClientGoServices(t *testing.T) {
	s, config := remote(t)
	cs, ctx := clientset(t, config).CoreV1().Services("default"), deadline(t)
	w, err := cs.Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	made, err := cs.Create(ctx, &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Labels: map[string]string{"app": "web"}},
		Spec:       v1.ServiceSpec{Type: v1.ServiceTypeNodePort, Ports: []v1.ServicePort{{Port: 80}}, Selector: map[string]string{"app": "web"}},
	}, metav1.CreateOptions{})
	if err != nil || made.UID == "" || made.Spec.Ports[0].TargetPort.IntValue() != 80 || made.Spec.SessionAffinity != v1.ServiceAffinityNone {
		t.Fatalf("%+v, %v", made, err)
	}
	if _, err := cs.Create(ctx, &v1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: made.Spec}, metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("made twice: %v", err)
	}
	s.allocate(t, "web", "10.96.0.1", 30001)

	// Who sends back what was shown does not wish for it; who names another
	// cluster IP is refused.
	got, err := cs.Get(ctx, "web", metav1.GetOptions{})
	if err != nil || got.Spec.ClusterIP != "10.96.0.1" || got.Kind != "Service" && got.Kind != "" {
		t.Fatalf("%+v, %v", got, err)
	}
	got.Spec.Ports[0].Port = 81
	up, err := cs.Update(ctx, got, metav1.UpdateOptions{})
	if err != nil || up.Spec.ClusterIP != "10.96.0.1" || up.Spec.Ports[0].NodePort != 30001 || up.Spec.Ports[0].Port != 81 || up.Generation != 2 {
		t.Fatalf("%+v, %v", up, err)
	}
	if wish := s.wanted(t, "web").Spec; wish.ClusterIP != "" || wish.Ports[0].NodePort != 0 {
		t.Errorf("what was shown became a wish: %+v", wish)
	}
	got = up.DeepCopy()
	got.Spec.ClusterIP, got.Spec.ClusterIPs = "10.96.0.2", []string{"10.96.0.2"}
	if _, err := cs.Update(ctx, got, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "spec.clusterIPs[0]") {
		t.Errorf("another cluster IP: %v", err)
	}
	got = up.DeepCopy()
	got.ResourceVersion = made.ResourceVersion
	if _, err := cs.Update(ctx, got, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("an old version: %v", err)
	}

	// kubectl's patches, and a type that has no cluster IP.
	patch := `{"spec":{"type":"ExternalName","externalName":"example.com","ports":[{"$patch":"delete","port":81}]}}`
	up, err = cs.Patch(ctx, "web", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil || up.Spec.ClusterIP != "" || up.Spec.ExternalName != "example.com" || len(up.Spec.Ports) != 0 {
		t.Errorf("%+v, %v", up, err)
	}
	list, err := cs.List(ctx, metav1.ListOptions{LabelSelector: "app=web", FieldSelector: "spec.type=ExternalName"})
	if err != nil || len(list.Items) != 1 || list.Kind != "ServiceList" && list.Kind != "" {
		t.Errorf("%+v, %v", list, err)
	}
	if err := cs.Delete(ctx, "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := cs.Delete(ctx, "web", metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("deleted twice: %v", err)
	}
	for _, want := range []watch.EventType{watch.Added, watch.Modified, watch.Modified, watch.Modified, watch.Deleted} {
		if e := <-w.ResultChan(); e.Type != want || e.Object.(*v1.Service).Name != "web" {
			t.Errorf("watched %s %+v, want %s", e.Type, e.Object, want)
		}
	}
}

// TestClientGoEndpoints: the other kinds, one in a group of its own.
func TestClientGoEndpoints(t *testing.T) {
	s, config := remote(t)
	cs, ctx := clientset(t, config), deadline(t)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "web-", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}}, AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}}}, Ports: []discoveryv1.EndpointPort{{Port: new(int32(80))}},
	}
	made, err := cs.DiscoveryV1().EndpointSlices("default").Create(ctx, slice, metav1.CreateOptions{})
	if err != nil || !strings.HasPrefix(made.Name, "web-") || *made.Ports[0].Protocol != v1.ProtocolTCP {
		t.Fatalf("%+v, %v", made, err)
	}
	slice.Endpoints[0].Addresses[0] = "127.0.0.1"
	if _, err := cs.DiscoveryV1().EndpointSlices("default").Create(ctx, slice, metav1.CreateOptions{}); !apierrors.IsInvalid(err) ||
		!strings.Contains(err.Error(), "endpoints[0].addresses[0]") {
		t.Errorf("a loopback address: %v", err)
	}
	made.AddressType = discoveryv1.AddressTypeIPv6
	if _, err := cs.DiscoveryV1().EndpointSlices("default").Update(ctx, made, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("another address type: %v", err)
	}
	endpoints := &v1.Endpoints{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Subsets: []v1.EndpointSubset{{Addresses: []v1.EndpointAddress{{IP: "10.0.0.1"}}}}}
	if _, err := cs.CoreV1().Endpoints("default").Create(ctx, endpoints, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := cs.DiscoveryV1().EndpointSlices("default").DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	if list, _ := s.store.Resources(""); len(list) != 1 || list[0].Kind() != "Endpoints" {
		t.Errorf("what is left: %+v", list)
	}
}

// TestStatusOfAServiceIsAWish on creation; what comes back of it later is not.
func TestStatusOfAServiceIsAWish(t *testing.T) {
	f := newFixture(t, nil)
	text := `{"apiVersion":"v1","kind":"Service","metadata":{"name":"lb"},"spec":{"type":"LoadBalancer","ports":[{"port":80}]}%s}`
	f.call(t, "POST", servicesPath, strings.Replace(text, "%s", `,"status":{"loadBalancer":{"ingress":[{"ip":"172.17.18.43"}]}}`, 1)).code(201)
	if in := f.wanted(t, "lb").Status.LoadBalancer.Ingress; len(in) != 1 || *in[0].IPMode != v1.LoadBalancerIPModeVIP {
		t.Errorf("got %+v", in)
	}
	f.call(t, "DELETE", servicesPath+"/lb", "").code(200)
	f.call(t, "POST", servicesPath, strings.Replace(text, "%s", "", 1)).code(201)
	f.allocate(t, "lb", "10.96.0.3", 30003)
	patch := `{"metadata":{"labels":{"a":"b"}}}`
	var now v1.Service
	f.call(t, "PATCH", servicesPath+"/lb", patch, "Content-Type", "application/merge-patch+json").code(200).into(&now)
	if len(now.Status.LoadBalancer.Ingress) != 1 || now.Labels["a"] != "b" || now.Spec.Ports[0].NodePort != 30003 {
		t.Errorf("got %+v", now)
	}
	if len(f.wanted(t, "lb").Status.LoadBalancer.Ingress) != 0 {
		t.Error("the status that the agent computed became a wish")
	}
}

// TestResourcesOfOthers: what a file or the agent itself made is shown, and
// nobody changes it here.
func TestResourcesOfOthers(t *testing.T) {
	f := newFixture(t, nil)
	objects, errs := manifest.Decode([]byte(`{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},"spec":{"ports":[{"port":80}]}}`),
		manifest.Options{Origin: "/m/a.yaml", NodeName: nodeName})
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	f.store.Apply(store.SourceFile, store.Snapshot{Objects: objects})
	if err := f.store.PutDerived(&discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-1"}}); err != nil {
		t.Fatal(err)
	}
	sliceAt := "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/web-1"
	for path, says := range map[string]string{servicesPath + "/web": "/m/a.yaml", sliceAt: "the agent derives it"} {
		var o metav1.PartialObjectMetadata
		f.call(t, "GET", path, "").code(200).into(&o)
		if o.Kind == "" || o.APIVersion == "" {
			t.Errorf("%s has no type: %+v", path, o)
		}
		for _, method := range []string{"DELETE", "PUT", "PATCH"} {
			st := f.call(t, method, path, "{}", "Content-Type", map[string]string{"PATCH": "application/merge-patch+json"}[method]).status(http.StatusForbidden, metav1.StatusReasonForbidden)
			if !strings.Contains(st.Message, says) {
				t.Errorf("%s: %s", path, st.Message)
			}
		}
	}
}

// TestResourceTables has kubectl's columns and what it puts there.
func TestResourceTables(t *testing.T) {
	f := newFixture(t, func(o *Options) { o.Now = func() time.Time { return epoch } })
	for _, body := range []string{
		`{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"},"spec":{"selector":{"x":"y"},"type":"NodePort","clusterIP":"10.96.0.9","ports":[{"name":"h","port":80,"nodePort":30080},{"name":"d","port":53,"protocol":"UDP"}]}}`,
		`{"apiVersion":"v1","kind":"Service","metadata":{"name":"b"},"spec":{"type":"ExternalName","externalName":"example.com"}}`,
		`{"apiVersion":"v1","kind":"Service","metadata":{"name":"c"},"spec":{"type":"LoadBalancer","ports":[{"port":80}]}}`,
	} {
		f.call(t, "POST", servicesPath, body).code(201)
	}
	f.call(t, "POST", "/api/v1/namespaces/default/endpoints",
		`{"apiVersion":"v1","kind":"Endpoints","metadata":{"name":"e"},"subsets":[{"addresses":[{"ip":"10.0.0.1"},{"ip":"10.0.0.2"}],"ports":[{"name":"h","port":80},{"name":"i","port":81}]}]}`).code(201)
	f.call(t, "POST", "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
		`{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"s"},"addressType":"IPv6","endpoints":[{"addresses":["fd00::1"]}],"ports":[{"port":80}]}`).code(201)
	for path, want := range map[string][]string{
		servicesPath: {"a|NodePort|10.96.0.9|<none>|80:30080/TCP,53/UDP|0s|x=y|<none>", "b|ExternalName|<none>|example.com|<none>|0s|<none>|<none>",
			"c|LoadBalancer|<none>|<pending>|80/TCP|0s|<none>|<none>"},
		"/api/v1/endpoints": {"e|10.0.0.1:80,10.0.0.1:81,10.0.0.2:80 + 1 more...|0s|<none>"},
		"/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/s": {"s|IPv6|80|fd00::1|0s|<none>"},
	} {
		var got metav1.Table
		f.call(t, "GET", path, "", "Accept", tableJSON).code(200).into(&got)
		var rows []string
		for _, r := range got.Rows {
			var cells []string
			for _, c := range r.Cells {
				cells = append(cells, c.(string))
			}
			rows = append(rows, strings.Join(cells, "|"))
			var m metav1.PartialObjectMetadata
			if err := json.Unmarshal(r.Object.Raw, &m); err != nil || m.Name == "" || len(r.Cells) != len(got.ColumnDefinitions) {
				t.Errorf("row %s: %v", r.Object.Raw, err)
			}
		}
		if !slices.Equal(rows, want) {
			t.Errorf("%s: %q, want %q", path, rows, want)
		}
	}
}
