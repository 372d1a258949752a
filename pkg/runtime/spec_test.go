package runtime

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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

// TestLackedSandboxImage: containerd 2.x names its sandbox image only when it
// cannot pull it.
func TestLackedSandboxImage(t *testing.T) {
	c := dialFake(t, newFake(t, nil), nil)
	for said, want := range map[string]string{
		`failed to pull image "registry.k8s.io/pause:3.10.2": failed to do request: Head "https://registry.k8s.io/v2/": i/o timeout`: "registry.k8s.io/pause:3.10.2",
		`failed to setup network for sandbox "x": cni plugin not initialized`:                                                        "",
	} {
		c.lacked = ""
		c.noteLacked(translate("runtime run_podsandbox", status.Error(codes.Unknown, said)))
		if c.lacked != want {
			t.Errorf("%s: %q, want %q", said, c.lacked, want)
		}
	}
	c.about.sandboxImage, c.lacked = "", "pause:10"
	if got, err := c.SandboxImage(t.Context()); got != "pause:10" || err != nil {
		t.Errorf("SandboxImage %q, %v", got, err)
	}
}
