package runtime

import (
	"testing"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// TestCallersAnnotations: what the caller notes on a container comes back, the
// crash back-off lives there; what the runtime layer writes itself wins.
func TestCallersAnnotations(t *testing.T) {
	f := newFake(t, nil)
	c := dialFake(t, f, nil)
	p := onePod("u1")
	box, _ := startPod(t, c, p)
	o := ctrOptions(box, 1)
	o.Annotations = map[string]string{pod.AnnotationBackoffLevel: "4", pod.AnnotationRestartCount: "99"}
	if _, err := c.CreateContainer(t.Context(), p, &p.Spec.Containers[0], o); err != nil {
		t.Fatal(err)
	}
	got := mustPod(t, c, "u1").Newest("main").Annotations
	if got[pod.AnnotationBackoffLevel] != "4" || got[pod.AnnotationRestartCount] != "1" {
		t.Errorf("annotations %v", got)
	}
	if o.Annotations[pod.AnnotationRestartCount] != "99" {
		t.Error("the caller's map was written to")
	}
}
