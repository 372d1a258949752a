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
