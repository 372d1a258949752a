package manifest

import (
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestValidateUpdate is the API server's rule of what an update may change; the
// judge in test/kubernetes compares the same changes with the real one.
func TestValidateUpdate(t *testing.T) {
	const manifest = `apiVersion: v1
kind: Pod
metadata: {name: web, uid: u-1, labels: {app: web}}
spec:
  nodeName: node-a
  tolerations: [{key: a, operator: Exists, effect: NoExecute, tolerationSeconds: 5}]
  initContainers: [{name: init, image: busybox:1}]
  containers: [{name: c, image: nginx:1, env: [{name: A, value: b}]}]
`
	old := one(t, manifest).Pod
	old.ResourceVersion = "9"
	old.CreationTimestamp = metav1.Unix(1_700_000_000, 0)
	for name, c := range map[string]struct {
		change func(*v1.Pod)
		fields []string
	}{
		"nothing": {func(p *v1.Pod) {}, nil},
		"no UID":  {func(p *v1.Pod) { p.UID = "" }, nil},
		"labels": {func(p *v1.Pod) {
			p.Labels = map[string]string{"app": "shop"}
			p.Annotations = map[string]string{"a": "b"}
		}, nil},
		"images":             {func(p *v1.Pod) { p.Spec.Containers[0].Image = "nginx:2"; p.Spec.InitContainers[0].Image = "busybox:2" }, nil},
		"toleration added":   {func(p *v1.Pod) { p.Spec.Tolerations = append(p.Spec.Tolerations, v1.Toleration{Operator: "Exists"}) }, nil},
		"toleration seconds": {func(p *v1.Pod) { p.Spec.Tolerations[0].TolerationSeconds = new(int64(9)) }, nil},
		"toleration removed": {func(p *v1.Pod) { p.Spec.Tolerations = nil }, []string{"spec.tolerations"}},
		"toleration changed": {func(p *v1.Pod) { p.Spec.Tolerations[0].Key = "b" }, []string{"spec.tolerations"}},
		"empty image":        {func(p *v1.Pod) { p.Spec.Containers[0].Image = "" }, []string{"spec.containers[0].image"}},
		"bad label":          {func(p *v1.Pod) { p.Labels["app"] = "a b" }, []string{"metadata.labels"}},
		"name":               {func(p *v1.Pod) { p.Name = "other" }, []string{"metadata.name"}},
		"UID":                {func(p *v1.Pod) { p.UID = "u-2" }, []string{"metadata.uid"}},
		"environment":        {func(p *v1.Pod) { p.Spec.Containers[0].Env[0].Value = "c" }, []string{"spec"}},
		"container's name":   {func(p *v1.Pod) { p.Spec.Containers[0].Name = "d" }, []string{"spec"}},
		"grace period":       {func(p *v1.Pod) { p.Spec.TerminationGracePeriodSeconds = new(int64(1)) }, []string{"spec"}},
		"container added": {func(p *v1.Pod) {
			p.Spec.Containers = append(p.Spec.Containers, p.Spec.Containers[0])
			p.Spec.Containers[1].Name = "d"
		}, []string{"spec.containers"}},
		"init container gone": {func(p *v1.Pod) { p.Spec.InitContainers = nil }, []string{"spec.initContainers"}},
		"mirror mark added":   {func(p *v1.Pod) { p.Annotations = map[string]string{annotationMirror: "x"} }, []string{"metadata.annotations[" + annotationMirror + "]"}},
		"another node":        {func(p *v1.Pod) { p.Spec.NodeName = "node-b" }, []string{"spec"}},
		"image and pull policy": {func(p *v1.Pod) {
			p.Spec.Containers[0].Image = "nginx:2"
			p.Spec.Containers[0].ImagePullPolicy = "Always"
		}, []string{"spec"}},
	} {
		t.Run(name, func(t *testing.T) {
			updated := old.DeepCopy()
			updated.ResourceVersion, updated.CreationTimestamp = "", metav1.Time{}
			c.change(updated)
			before, was := mustJSON(t, updated), mustJSON(t, old)
			var fields []string
			for _, e := range ValidateUpdate(updated, old) {
				fields = append(fields, e.Field)
			}
			slices.Sort(fields)
			if got := strings.Join(slices.Compact(fields), " "); got != strings.Join(c.fields, " ") {
				t.Errorf("errors at %q, want %q", got, c.fields)
			}
			if mustJSON(t, updated) != before || mustJSON(t, old) != was {
				t.Error("ValidateUpdate changes its arguments")
			}
		})
	}
	// Two manifests that no store has seen.
	fresh := one(t, manifest).Pod
	if errs := ValidateUpdate(fresh.DeepCopy(), fresh); len(errs) > 0 {
		t.Errorf("without resourceVersion: %v", errs)
	}
}
