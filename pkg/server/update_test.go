package server

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestUpdate(t *testing.T) {
	f := newFixture(t, nil)
	p := f.create(t, "web", "")
	put := func(p *v1.Pod) answer {
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		return f.call(t, "PUT", podsPath+"/web", string(b))
	}
	p.Spec.Containers[0].Image = "example.org/app:2"
	up := put(p).code(200).pod()
	if up.Spec.Containers[0].Image != "example.org/app:2" || up.UID != p.UID || up.ResourceVersion == p.ResourceVersion {
		t.Errorf("updated to %s, UID %s, version %s", up.Spec.Containers[0].Image, up.UID, up.ResourceVersion)
	}
	put(p).status(409, metav1.StatusReasonConflict) // the old resourceVersion

	bad := up.DeepCopy()
	bad.Spec.Containers[0].Command = []string{"x"}
	if s := put(bad).status(422, metav1.StatusReasonInvalid); len(s.Details.Causes) != 1 || s.Details.Causes[0].Field != "spec" {
		t.Errorf("causes %+v, want one of spec", s.Details.Causes)
	}
	renamed := up.DeepCopy()
	renamed.Name = "other"
	put(renamed).status(400, metav1.StatusReasonBadRequest)
	other := up.DeepCopy()
	other.UID = "other"
	put(other).status(409, metav1.StatusReasonConflict)

	// Without a version the change is made whatever happens meanwhile.
	free := up.DeepCopy()
	free.ResourceVersion = ""
	free.Labels = map[string]string{"a": "b"}
	f.rivals.Store(2)
	if got := put(free).code(200).pod(); got.Labels["a"] != "b" {
		t.Errorf("labels %v", got.Labels)
	}
	f.rivals.Store(changeTries)
	put(free).status(409, metav1.StatusReasonConflict)
	f.call(t, "PUT", podsPath+"/none", podYAML("none", ""), "Content-Type", mediaYAML).status(404, metav1.StatusReasonNotFound)
}

// TestUpdateRules: an update may change images, labels, annotations and add
// tolerations; everything else is refused by name, whatever the verb.
func TestUpdateRules(t *testing.T) {
	f := newFixture(t, nil)
	doc := podYAML("web", "  labels: {a: b}\n") + "    env: [{name: A, value: b}]\n  initContainers: [{name: init, image: i:1}]\n" +
		// 2^53+1 is no float.
		"  tolerations: [{key: k, operator: Exists, effect: NoExecute, tolerationSeconds: 9007199254740993}]\n"
	p := f.call(t, "POST", podsPath, doc, "Content-Type", mediaYAML).code(201).pod()
	shown := f.call(t, "GET", podsPath+"/web", "").Body.String()
	if same := f.call(t, "PUT", podsPath+"/web", shown).code(200).pod(); same.ResourceVersion != p.ResourceVersion || *same.Spec.Tolerations[0].TolerationSeconds != 1<<53+1 {
		t.Errorf("what was shown and is sent back changed the pod: version %s, %d s", same.ResourceVersion, *same.Spec.Tolerations[0].TolerationSeconds)
	}
	if same := f.call(t, "PUT", podsPath+"/web", doc, "Content-Type", mediaYAML).code(200).pod(); same.ResourceVersion != p.ResourceVersion {
		t.Error("the manifest sent again changed the pod")
	}
	for _, tt := range []struct {
		name  string
		edit  func(*v1.Pod)
		field string // of the refusal; empty: allowed
	}{
		{"image", func(p *v1.Pod) { p.Spec.Containers[0].Image = "x:2" }, ""},
		{"image of an init container", func(p *v1.Pod) { p.Spec.InitContainers[0].Image = "x:2" }, ""},
		{"labels", func(p *v1.Pod) { p.Labels = map[string]string{"c": "d"} }, ""},
		{"annotations", func(p *v1.Pod) { p.Annotations = map[string]string{"c": "d"} }, ""},
		{"another toleration", func(p *v1.Pod) {
			p.Spec.Tolerations = append(p.Spec.Tolerations, v1.Toleration{Key: "new", Operator: "Exists"})
		}, ""},
		{"no image", func(p *v1.Pod) { p.Spec.Containers[0].Image = "" }, "spec.containers[0].image"},
		{"a bad label", func(p *v1.Pod) { p.Labels = map[string]string{"c": "-"} }, "metadata.labels"},
		{"environment", func(p *v1.Pod) { p.Spec.Containers[0].Env[0].Value = "c" }, "spec"},
		{"command", func(p *v1.Pod) { p.Spec.Containers[0].Command = []string{"x"} }, "spec"},
		{"name of a container", func(p *v1.Pod) { p.Spec.Containers[0].Name = "x" }, "spec"},
		{"another container", func(p *v1.Pod) { p.Spec.Containers = append(p.Spec.Containers, v1.Container{Name: "x", Image: "x"}) }, "spec.containers"},
		{"restart policy", func(p *v1.Pod) { p.Spec.RestartPolicy = v1.RestartPolicyNever }, "spec"},
		{"host network", func(p *v1.Pod) { p.Spec.HostNetwork = true }, "spec"},
		{"node", func(p *v1.Pod) { p.Spec.NodeName = "elsewhere" }, "spec.nodeName"},
		{"grace period", func(p *v1.Pod) { p.Spec.TerminationGracePeriodSeconds = new(int64(1)) }, "spec"},
		{"a toleration less", func(p *v1.Pod) { p.Spec.Tolerations = nil }, "spec.tolerations"},
		{"a field that is not supported", func(p *v1.Pod) { p.Spec.ResourceClaims = []v1.PodResourceClaim{{Name: "r"}} }, "spec.resourceClaims"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var now v1.Pod
			f.call(t, "GET", podsPath+"/web", "").into(&now)
			rv := now.ResourceVersion
			old, err := json.Marshal(now)
			if err != nil {
				t.Fatal(err)
			}
			tt.edit(&now)
			edited, err := json.Marshal(now)
			if err != nil {
				t.Fatal(err)
			}
			patch, err := jsonpatch.CreateMergePatch(old, edited)
			if err != nil {
				t.Fatal(err)
			}
			if tt.field == "" {
				if up := f.call(t, "PUT", podsPath+"/web", string(edited)).code(200).pod(); up.ResourceVersion == rv || up.UID != now.UID {
					t.Errorf("version %s after %s, UID %s after %s", up.ResourceVersion, rv, up.UID, now.UID)
				}
				return
			}
			for method, body := range map[string]string{"PUT": string(edited), "PATCH": string(patch)} {
				media := map[string]string{"PUT": mediaJSON, "PATCH": "application/merge-patch+json"}[method]
				s := f.call(t, method, podsPath+"/web", body, "Content-Type", media).status(422, metav1.StatusReasonInvalid)
				if len(s.Details.Causes) == 0 || s.Details.Causes[0].Field != tt.field || s.Details.Name != "web" || s.Details.Kind != "Pod" {
					t.Errorf("%s: details %+v, want the field %s", method, s.Details, tt.field)
				}
			}
			if after := f.pod(t, "web"); after.ResourceVersion != rv {
				t.Error("a refused update changed the pod")
			}
		})
	}
}

func TestPatch(t *testing.T) {
	const (
		merge     = "application/merge-patch+json"
		strategic = "application/strategic-merge-patch+json"
		jsonPatch = "application/json-patch+json"
	)
	f := newFixture(t, nil)
	f.create(t, "web", "  labels: {a: b}\n")
	patch := func(media, patch string) answer {
		return f.call(t, "PATCH", podsPath+"/web", patch, "Content-Type", media)
	}

	p := patch(strategic, `{"spec":{"containers":[{"name":"app","image":"example.org/app:2"}]},"metadata":{"labels":{"c":"d"}}}`).code(200).pod()
	if len(p.Spec.Containers) != 1 || p.Spec.Containers[0].Image != "example.org/app:2" || p.Labels["a"] != "b" || p.Labels["c"] != "d" {
		t.Errorf("strategic: containers are merged by name, labels by key; got %+v, %v", p.Spec.Containers, p.Labels)
	}
	p = patch(merge, `{"metadata":{"labels":{"a":null}}}`).code(200).pod()
	if _, ok := p.Labels["a"]; ok || p.Labels["c"] != "d" {
		t.Errorf("merge: labels %v, want c alone", p.Labels)
	}
	p = patch(jsonPatch, `[{"op":"test","path":"/metadata/labels/c","value":"d"},{"op":"replace","path":"/spec/containers/0/image","value":"example.org/app:3"}]`).code(200).pod()
	if p.Spec.Containers[0].Image != "example.org/app:3" {
		t.Errorf("JSON patch: image %s", p.Spec.Containers[0].Image)
	}
	patch(jsonPatch, `[{"op":"test","path":"/metadata/labels/c","value":"x"}]`).status(422, metav1.StatusReasonInvalid)
	patch(jsonPatch, `{}`).status(400, metav1.StatusReasonBadRequest)
	patch(jsonPatch, "["+strings.Repeat(`{"op":"remove","path":"/x"},`, maxPatchOperations)+`{"op":"remove","path":"/x"}]`).status(413, metav1.StatusReasonRequestEntityTooLarge)
	// CVE-2019-1002100: a few copies would double the pod each time.
	doubling := `[{"op":"add","path":"/metadata/annotations","value":{"x":"` + strings.Repeat("y", 1000) + `"}}`
	for i := range 40 {
		doubling += fmt.Sprintf(`,{"op":"copy","from":"/metadata","path":"/metadata/x%d"}`, i)
	}
	patch(jsonPatch, doubling+"]").status(413, metav1.StatusReasonRequestEntityTooLarge)
	many := `[{"op":"add","path":"/metadata/x","value":1}` + strings.Repeat(`,{"op":"copy","from":"/metadata/x","path":"/metadata/y"}`, maxPatchCopies+1)
	patch(jsonPatch, many+"]").status(413, metav1.StatusReasonRequestEntityTooLarge)
	patch(merge, `[]`).status(400, metav1.StatusReasonBadRequest)
	patch(strategic, `nonsense`).status(400, metav1.StatusReasonBadRequest)
	patch(strategic, `{"spec":{"containers":[{"name":"new","image":"x"}]}}`).status(422, metav1.StatusReasonInvalid)
	patch(merge, `{"spec":{"foo":1}}`).status(400, metav1.StatusReasonBadRequest)
	patch(merge, `{"metadata":{"resourceVersion":"1"}}`).status(409, metav1.StatusReasonConflict)
	patch("application/apply-patch+yaml", podYAML("web", "")).status(422, metav1.StatusReasonInvalid) // it names no manager
	patch(mediaJSON, `{}`).status(415, metav1.StatusReasonUnsupportedMediaType)

	f.rivals.Store(2)
	if p := patch(merge, `{"metadata":{"labels":{"e":"f"}}}`).code(200).pod(); p.Labels["e"] != "f" {
		t.Errorf("after conflicts: labels %v", p.Labels)
	}
	// What a dry run shows is what the change would.
	before, _ := f.store.Get(key("web"))
	image := `{"spec":{"containers":[{"name":"app","image":"example.org/app:9"}]}}`
	dry := f.call(t, "PATCH", podsPath+"/web?dryRun=All", image, "Content-Type", strategic).code(200).pod()
	defer func() {
		real := patch(strategic, image).code(200).pod()
		dry.ResourceVersion = real.ResourceVersion
		if !reflect.DeepEqual(dry, real) {
			t.Errorf("a dry run shows %+v, the change %+v", dry, real)
		}
	}()
	f.call(t, "PATCH", podsPath+"/web?dryRun=All", `{"metadata":{"labels":{"g":"h"}}}`, "Content-Type", merge).code(200)
	if after, _ := f.store.Get(key("web")); after.Pod.ResourceVersion != before.Pod.ResourceVersion {
		t.Error("a dry run changed the pod")
	}
}
