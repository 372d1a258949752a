package server

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	ephemeralPath = podsPath + "/web/ephemeralcontainers"
	debugPatch    = `{"spec":{"ephemeralContainers":[{"name":"debugger","image":"busybox","stdin":true,"tty":true,"targetContainerName":"app","resources":{}}]}}`
)

var strategic = []string{"Content-Type", string(types.StrategicMergePatchType)}

// TestDebugContainers: what kubectl debug sends, for pods of any source.
func TestDebugContainers(t *testing.T) {
	for _, source := range []string{"api", "file"} {
		f := newFixture(t, nil)
		if source == "file" {
			f.fromFile(t, "web")
		} else {
			f.create(t, "web", "")
		}
		if p := f.call(t, "PATCH", ephemeralPath+"?dryRun=All", debugPatch, strategic...).code(200).pod(); len(p.Spec.EphemeralContainers) != 1 {
			t.Errorf("%s: a dry run gives %+v", source, p.Spec.EphemeralContainers)
		}
		if p := f.call(t, "GET", ephemeralPath, "").code(200).pod(); len(p.Spec.EphemeralContainers) != 0 {
			t.Errorf("%s: the dry run was done", source)
		}
		p := f.call(t, "PATCH", ephemeralPath, debugPatch, strategic...).code(200).pod()
		if e := p.Spec.EphemeralContainers; len(e) != 1 || e[0].TargetContainerName != "app" || e[0].ImagePullPolicy != v1.PullAlways || p.Generation != 2 {
			t.Errorf("%s: %+v", source, p)
		}
		f.call(t, "PATCH", ephemeralPath, `{"spec":{"ephemeralContainers":[{"name":"second","image":"busybox"}]}}`, strategic...).code(200)
		for what, patch := range map[string]string{
			"a change of one":     `{"spec":{"ephemeralContainers":[{"name":"debugger","image":"other"}]}}`,
			"no such target":      `{"spec":{"ephemeralContainers":[{"name":"x","image":"i","targetContainerName":"none"}]}}`,
			"a name that is used": `{"spec":{"ephemeralContainers":[{"name":"app","image":"i"}]}}`,
			"a probe":             `{"spec":{"ephemeralContainers":[{"name":"x","image":"i","livenessProbe":{"exec":{"command":["x"]}}}]}}`,
			"another field":       `{"spec":{"hostNetwork":true}}`,
		} {
			f.call(t, "PATCH", ephemeralPath, patch, strategic...).status(422, metav1.StatusReasonInvalid)
			_ = what
		}
		f.call(t, "DELETE", ephemeralPath, "").status(405, metav1.StatusReasonMethodNotAllowed)
	}
}

// TestPodComesBackWithDebugContainers: a client that replaces a pod sends what
// it was shown.
func TestPodComesBackWithDebugContainers(t *testing.T) {
	f := newFixture(t, nil)
	f.create(t, "web", "")
	f.call(t, "PATCH", ephemeralPath, debugPatch, strategic...).code(200)
	p := f.call(t, "PATCH", podsPath+"/web", `{"metadata":{"labels":{"a":"b"}}}`, strategic...).code(200).pod()
	if p.Labels["a"] != "b" || len(p.Spec.EphemeralContainers) != 1 {
		t.Errorf("%+v", p)
	}
	f.call(t, "PATCH", podsPath+"/web", debugPatch[:len(debugPatch)-4]+`},{"name":"more","image":"i"}]}}`, strategic...).status(422, metav1.StatusReasonInvalid)
}

// TestPodConditions: somebody opens a readiness gate; what the agent computes is
// left to it.
func TestPodConditions(t *testing.T) {
	f := newFixture(t, nil)
	f.fromFile(t, "web")
	f.status(t, "web", v1.PodStatus{Phase: v1.PodRunning, Conditions: []v1.PodCondition{{Type: v1.PodReady, Status: v1.ConditionFalse}}})
	patch := `{"status":{"phase":"Failed","conditions":[{"type":"example.com/open","status":"True"},{"type":"Ready","status":"True"}]}}`
	p := f.call(t, "PATCH", podsPath+"/web/status", patch, strategic...).code(200).pod()
	got := map[v1.PodConditionType]v1.ConditionStatus{}
	for _, c := range p.Status.Conditions {
		got[c.Type] = c.Status
	}
	if len(got) != 2 || got["example.com/open"] != v1.ConditionTrue || got[v1.PodReady] != v1.ConditionFalse || p.Status.Phase != v1.PodRunning {
		t.Errorf("%+v", p.Status)
	}
	f.call(t, "PATCH", podsPath+"/web/status", `{"status":{"conditions":[{"type":"example.com/open","status":"Maybe"}]}}`, strategic...).status(422, metav1.StatusReasonInvalid)
	f.call(t, "PUT", podsPath+"/web/status", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"other"}}`, "Content-Type", mediaJSON).code(400)
	f.call(t, "PUT", podsPath+"/none/status", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"none"}}`, "Content-Type", mediaJSON).code(404)
}

// TestResizePods: CPU and memory change while the pod runs, and nothing else.
func TestResizePods(t *testing.T) {
	f := newFixture(t, nil)
	body := `apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  initContainers: [{name: setup, image: i}]
  containers:
  - {name: app, image: i, resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {memory: 128Mi, hugepages-2Mi: 2Mi}}}
  - {name: other, image: i}
`
	f.call(t, "POST", podsPath, body, "Content-Type", mediaYAML).code(201)
	const path = podsPath + "/web/resize"
	resize := func(resources string) string {
		return `{"spec":{"containers":[{"name":"app","resources":` + resources + `}]}}`
	}
	p := f.call(t, "PATCH", path, resize(`{"requests":{"cpu":"200m"},"limits":{"cpu":"1","memory":"256Mi"}}`), strategic...).code(200).pod()
	r := p.Spec.Containers[0].Resources
	if r.Requests.Cpu().String() != "200m" || r.Limits.Cpu().String() != "1" || r.Limits.Memory().String() != "256Mi" || p.Generation != 2 {
		t.Errorf("generation %d, %+v", p.Generation, r)
	}
	for what, patch := range map[string]string{
		"another QoS class":       `{"spec":{"containers":[{"name":"app","resources":{"requests":{"cpu":"1","memory":"256Mi"}}},{"name":"other","resources":{"requests":{"cpu":"1","memory":"1Gi"},"limits":{"cpu":"1","memory":"1Gi"}}}],"initContainers":[{"name":"setup","resources":{"requests":{"cpu":"1","memory":"1Gi"},"limits":{"cpu":"1","memory":"1Gi"}}}]}}`,
		"more than the limit":     resize(`{"requests":{"cpu":"2"}}`),
		"a request is taken away": resize(`{"requests":{"memory":null}}`),
		"another resource":        resize(`{"limits":{"hugepages-2Mi":"4Mi"}}`),
		"an image":                `{"spec":{"containers":[{"name":"app","image":"other"}]}}`,
		"another container":       `{"spec":{"containers":[{"name":"more","image":"i"}]}}`,
	} {
		if a := f.call(t, "PATCH", path, patch, strategic...); a.Code != 422 {
			t.Errorf("%s: code %d: %s", what, a.Code, a.Body)
		}
	}
	// The pod comes back as it was shown.
	if p = f.call(t, "PATCH", podsPath+"/web", `{"metadata":{"labels":{"a":"b"}}}`, strategic...).code(200).pod(); p.Labels["a"] != "b" ||
		p.Spec.Containers[0].Resources.Limits.Cpu().String() != "1" {
		t.Errorf("%+v", p.Spec.Containers[0].Resources)
	}
}
