package server

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/store"
)

// serviceYAML is what one manager says of a Service.
func serviceYAML(ports, selector string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector: {%s}\n  ports: [%s]\n", selector, ports)
}

func (f *fixture) apply(t *testing.T, path, manager, body string) answer {
	t.Helper()
	return f.call(t, "PATCH", path+"?fieldManager="+manager, body, "Content-Type", string(types.ApplyYAMLPatchType))
}

func (a answer) service() *v1.Service {
	a.t.Helper()
	var s v1.Service
	a.into(&s)
	return &s
}

// managers are who has a record on an object.
func managers(o metav1.Object) string {
	var all []string
	for _, m := range o.GetManagedFields() {
		all = append(all, m.Manager+":"+string(m.Operation))
	}
	return strings.Join(all, " ")
}

func TestServerSideApply(t *testing.T) {
	f := newFixture(t, nil)
	const web = servicesPath + "/web"
	f.call(t, "PATCH", web, serviceYAML("", ""), "Content-Type", string(types.ApplyYAMLPatchType)).status(422, metav1.StatusReasonInvalid)
	made := f.apply(t, web, "a", serviceYAML("{port: 80, name: http}", "app: web")).code(201).service()
	if made.UID == "" || made.Spec.Type != v1.ServiceTypeClusterIP || managers(made) != "a:Apply" {
		t.Fatalf("%+v", made)
	}
	// Lists are merged by their keys: each manager has its own ports.
	two := f.apply(t, web, "b", "apiVersion: v1\nkind: Service\nmetadata: {name: web, labels: {by: b}}\nspec: {ports: [{port: 443, name: https}]}\n").code(200).service()
	if len(two.Spec.Ports) != 2 || two.Spec.Selector["app"] != "web" || two.Labels["by"] != "b" || managers(two) != "a:Apply b:Apply" {
		t.Fatalf("%+v", two)
	}
	// What another one has set is a conflict, unless it is forced.
	st := f.apply(t, web, "b", serviceYAML("{port: 443, name: https}", "app: other")).status(409, metav1.StatusReasonConflict)
	if !strings.Contains(st.Message, `conflict with "a"`) || len(st.Details.Causes) != 1 || st.Details.Causes[0].Field != ".spec.selector" {
		t.Errorf("%+v", st)
	}
	forced := f.apply(t, web, "b&force=true", serviceYAML("{port: 443, name: https}", "app: other")).code(200).service()
	if forced.Spec.Selector["app"] != "other" || forced.Labels["by"] != "" {
		t.Errorf("what b no longer says is still there: %+v", forced)
	}
	// The record outlives changes that are none, and knows other changes.
	same := f.apply(t, web, "b", serviceYAML("{port: 443, name: https}", "app: other")).code(200).service()
	if same.ResourceVersion != forced.ResourceVersion {
		t.Error("the same again is a change")
	}
	edited := f.call(t, "PATCH", web+"?fieldManager=c", `{"metadata":{"labels":{"x":"y"}}}`, "Content-Type", string(types.MergePatchType)).code(200).service()
	if managers(edited) != "a:Apply b:Apply c:Update" {
		t.Errorf("managers %q", managers(edited))
	}
	f.apply(t, web, "a", "apiVersion: v1\nkind: Service\nmetadata: {name: web, labels: {x: z}}\n").status(409, metav1.StatusReasonConflict)
}

func TestServerSideApplyRefused(t *testing.T) {
	f := newFixture(t, nil)
	f.fromFile(t, "file")
	const web = servicesPath + "/web"
	for body, code := range map[string]int{
		"a: [":                       400,
		"[]":                         400,
		podYAML("web", ""):           400,
		serviceYAML("{prt: 80}", ""): 400,
		serviceYAML("{port: 0}", ""): 422,
		"apiVersion: v1\nkind: Service\nmetadata: {name: other}\n":                                        400,
		"apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: other}\n":                        400,
		"apiVersion: v1\nkind: Service\nmetadata: {name: web, managedFields: [{manager: x}]}\nspec: {}\n": 400,
	} {
		if a := f.apply(t, web, "a", body); a.Code != code {
			t.Errorf("%q: %d, want %d: %s", body, a.Code, code, a.Body)
		}
	}
	f.apply(t, podsPath+"/file", "a", podYAML("file", "  labels: {a: b}\n")).status(403, metav1.StatusReasonForbidden)
	dry := f.apply(t, web, "a&dryRun=All", serviceYAML("{port: 80}", "")).code(201).service()
	if _, there := f.store.Resource("Service", key("web")); there || managers(dry) != "a:Apply" {
		t.Errorf("a dry run: %v, %q", there, managers(dry))
	}
}

// A pod takes part in it, within what may change of a pod.
func TestServerSideApplyOfPods(t *testing.T) {
	f := newFixture(t, nil)
	const web = podsPath + "/web"
	made := f.apply(t, web, "a", podYAML("web", "  labels: {a: b}\n")).code(201).pod()
	changed := f.apply(t, web, "a", strings.Replace(podYAML("web", "  labels: {a: c}\n"), "app:1", "app:2", 1)).code(200).pod()
	if changed.UID != made.UID || changed.Labels["a"] != "c" || changed.Spec.Containers[0].Image != "example.org/app:2" {
		t.Errorf("%+v", changed)
	}
	f.apply(t, web, "a", podYAML("web", "")+"  hostNetwork: true\n").status(422, metav1.StatusReasonInvalid)
	// The status is no part of what somebody wants.
	f.status(t, "web", v1.PodStatus{Phase: v1.PodRunning, PodIP: "10.0.0.1"})
	if p := f.apply(t, web, "b", "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {by: b}}\n").code(200).pod(); p.Status.Phase != v1.PodRunning || managers(p) != "a:Apply b:Apply" {
		t.Errorf("%q: %+v", managers(p), p.Status)
	}
	// An object without a record begins one: what is there belongs to whoever came before.
	f.create(t, "old", "  labels: {a: b}\n")
	st := f.apply(t, podsPath+"/old", "a", podYAML("old", "  labels: {a: c}\n")).status(409, metav1.StatusReasonConflict)
	if !strings.Contains(st.Message, "before-first-apply") {
		t.Error(st.Message)
	}
}

// TestManagedFieldsStay: what the store keeps on the disk has the record.
func TestManagedFieldsStay(t *testing.T) {
	f := newFixture(t, nil)
	f.apply(t, servicesPath+"/web", "a", serviceYAML("{port: 80}", "")).code(201)
	f.apply(t, podsPath+"/web", "a", podYAML("web", "")).code(201)
	rec, _ := f.store.Resource("Service", key("web"))
	pod, _ := f.store.Get(key("web"))
	for name, canonical := range map[string][]byte{"service": rec.Canonical, "pod": pod.Canonical} {
		var doc struct{ Metadata metav1.ObjectMeta }
		if err := json.Unmarshal(canonical, &doc); err != nil || managers(&doc.Metadata) != "a:Apply" {
			t.Errorf("%s: %v: %s", name, err, canonical)
		}
	}
	if rec.Source != store.SourcePush {
		t.Errorf("source %s", rec.Source)
	}
}
