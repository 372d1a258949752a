package server

import (
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"

	"github.com/nodeagent/nodeagent/pkg/manifest"
)

// TestProtobuf: a client that speaks nothing but protobuf sees what others see.
func TestProtobuf(t *testing.T) {
	_, config := remote(t)
	plain := clientset(t, config)
	config.ContentType, config.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf
	cs, ctx := clientset(t, config), deadline(t)

	services := cs.CoreV1().Services("default")
	made, err := services.Create(ctx, &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Labels: map[string]string{"a": "b"}},
		Spec:       v1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []v1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("http")}}},
	}, metav1.CreateOptions{})
	if err != nil || made.UID == "" || made.Spec.Ports[0].TargetPort.StrVal != "http" {
		t.Fatalf("%+v, %v", made, err)
	}
	same, err := plain.CoreV1().Services("default").Get(ctx, "web", metav1.GetOptions{})
	if err != nil || same.String() != made.String() {
		t.Errorf("JSON says\n%+v, protobuf\n%+v", same, made)
	}
	list, err := services.List(ctx, metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 || list.Items[0].Name != "web" || list.ResourceVersion == "" {
		t.Fatalf("%+v, %v", list, err)
	}
	w, err := services.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	made.Labels["a"] = "c"
	if _, err := services.Update(ctx, made, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if e := <-w.ResultChan(); e.Type != watch.Modified || e.Object.(*v1.Service).Labels["a"] != "c" {
		t.Errorf("%+v", e)
	}
	if err := services.Delete(ctx, "web", metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions("other")}); !apierrors.IsConflict(err) {
		t.Errorf("the options of a deletion are not read: %v", err)
	}
	if err := services.Delete(ctx, "web", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := services.Get(ctx, "web", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("%v", err)
	}
	if _, err := services.Watch(ctx, metav1.ListOptions{ResourceVersion: "1"}); err != nil {
		t.Errorf("an error of a watch comes inside of it: %v", err)
	}
	evict := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "none"}}
	if err := cs.PolicyV1().Evictions("default").Evict(ctx, evict); !apierrors.IsNotFound(err) {
		t.Errorf("an eviction in protobuf: %v", err)
	}
	nodes, err := cs.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil || len(nodes.Items) != 1 || nodes.Items[0].Status.Capacity.Cpu().Value() != 2 {
		t.Errorf("%+v, %v", nodes, err)
	}
}

// TestMetadataClient: garbage collectors and the like want no more than metadata.
func TestMetadataClient(t *testing.T) {
	s, config := remote(t)
	s.create(t, "web", "  labels: {a: b}\n")
	c, err := metadata.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	pods := c.Resource(v1.SchemeGroupVersion.WithResource("pods")).Namespace("default")
	one, err := pods.Get(deadline(t), "web", metav1.GetOptions{})
	if err != nil || one.Labels["a"] != "b" {
		t.Errorf("%+v, %v", one, err)
	}
	if list, err := pods.List(deadline(t), metav1.ListOptions{}); err != nil || len(list.Items) != 1 || list.Items[0].UID != one.UID {
		t.Errorf("%+v, %v", list, err)
	}
}

// TestPages: pages are of one moment, for as long as it is remembered.
func TestPages(t *testing.T) {
	now := epoch
	f := newFixture(t, nil)
	f.snapshots.now = func() time.Time { return now }
	for i := range 5 {
		f.create(t, fmt.Sprintf("p%d", i), "")
	}
	page := func(query string, want string) v1.PodList {
		t.Helper()
		var list v1.PodList
		f.call(t, "GET", podsPath+"?limit=2"+query, "").code(200).into(&list)
		var names []string
		for _, p := range list.Items {
			names = append(names, p.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Fatalf("page %q, want %q", got, want)
		}
		return list
	}
	first := page("", "p0 p1")
	if first.Continue == "" || first.RemainingItemCount == nil || *first.RemainingItemCount != 3 {
		t.Fatalf("%+v", first.ListMeta)
	}
	f.create(t, "p25", "")
	second := page("&continue="+first.Continue, "p2 p3")
	if second.ResourceVersion != first.ResourceVersion {
		t.Error("the second page is of another revision")
	}
	if last := page("&continue="+second.Continue, "p4"); last.Continue != "" || last.RemainingItemCount != nil {
		t.Errorf("%+v", last.ListMeta)
	}
	now = now.Add(2 * snapshotLife)
	st := f.call(t, "GET", podsPath+"?limit=2&continue="+first.Continue, "").status(410, metav1.StatusReasonExpired)
	page("&continue="+st.Continue, "p2 p25")
}

// TestListRevisions: what a client says of the revision that it wants to see.
func TestListRevisions(t *testing.T) {
	f := newFixture(t, nil)
	f.create(t, "web", "")
	for query, code := range map[string]int{
		"resourceVersion=0": 200, "resourceVersion=1": 200, "resourceVersion=1&resourceVersionMatch=NotOlderThan": 200,
		"resourceVersion=1&resourceVersionMatch=Exact": 410, "resourceVersion=99999999999999999": 504, "resourceVersion=x": 400,
		"resourceVersionMatch=Exact": 422, "resourceVersion=1&resourceVersionMatch=x": 400,
	} {
		if a := f.call(t, "GET", podsPath+"?"+query, ""); a.Code != code {
			t.Errorf("%s: %d, want %d: %s", query, a.Code, code, a.Body)
		}
	}
}

// TestSchemas: every kind that is served has its schema, and a client that has a
// document need not have it again.
func TestSchemas(t *testing.T) {
	f := newFixture(t, nil)
	var index struct {
		Paths map[string]struct{ ServerRelativeURL string }
	}
	f.call(t, "GET", "/openapi/v3", "").code(200).into(&index)
	known := map[string]bool{}
	for _, p := range index.Paths {
		a := f.call(t, "GET", p.ServerRelativeURL, "").code(200)
		var doc struct {
			Components struct {
				Schemas map[string]struct {
					GVK []struct{ Group, Version, Kind string } `json:"x-kubernetes-group-version-kind"`
				}
			}
		}
		a.into(&doc)
		for _, s := range doc.Components.Schemas {
			for _, k := range s.GVK {
				known[k.Group+"/"+k.Version+"/"+k.Kind] = true
			}
		}
		if !strings.Contains(a.Header().Get("Cache-Control"), "immutable") {
			t.Errorf("%s may not be kept: %v", p.ServerRelativeURL, a.Header())
		}
		f.call(t, "GET", p.ServerRelativeURL, "", "If-None-Match", a.Header().Get("Etag")).code(304)
	}
	kinds := []servedKind{podKind, nodeKind, eventKind}
	for _, k := range manifest.Kinds() {
		kinds = append(kinds, servedKind{k})
	}
	for _, k := range kinds {
		if name := k.group() + "/" + k.version() + "/" + k.Name; !known[name] {
			t.Errorf("%s has no schema: add it in test/kubernetes/openapi and make the files anew", name)
		}
	}
}

// TestFieldValidation: unknown fields are refused, or dropped with a word or
// without one, as the client says; what is known and not supported never is.
func TestFieldValidation(t *testing.T) {
	f := newFixture(t, nil)
	odd := strings.Replace(podYAML("web", ""), "image:", "imaeg: x\n    image:", 1) + "  odd.field: {a: b}\n"
	for _, mode := range []string{"", "?fieldValidation=Strict"} {
		st := f.call(t, "POST", podsPath+mode, odd, "Content-Type", mediaYAML).status(400, metav1.StatusReasonBadRequest)
		if !strings.Contains(st.Message, `unknown field "spec.containers[0].imaeg"`) {
			t.Error(st.Message)
		}
	}
	warned := f.call(t, "POST", podsPath+"?fieldValidation=Warn&dryRun=All", odd, "Content-Type", mediaYAML).code(201)
	if got := warned.Header().Values("Warning"); len(got) != 2 || !strings.Contains(got[0]+got[1], `unknown field \"spec.containers[0].imaeg\"`) {
		t.Errorf("warnings %q", got)
	}
	made := f.call(t, "POST", podsPath+"?fieldValidation=Ignore", odd, "Content-Type", mediaYAML).code(201)
	if made.pod().Spec.Containers[0].Image != "example.org/app:1" || len(made.Header().Values("Warning")) != 0 {
		t.Errorf("%s", made.Body)
	}
	f.call(t, "PATCH", podsPath+"/web?fieldValidation=Ignore", `{"spec":{"odd":1},"metadata":{"labels":{"a":"b"}}}`,
		"Content-Type", "application/merge-patch+json").code(200)
	f.call(t, "POST", podsPath+"?fieldValidation=Ignore", podYAML("other", "")+"  ephemeralContainers: [{name: x}]\n", "Content-Type", mediaYAML).
		status(422, metav1.StatusReasonInvalid)
}
