package runtime

import (
	"errors"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
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

// TestContainerConfig: what a container says of its process reaches the runtime
// as it was written.
func TestContainerConfig(t *testing.T) {
	term := v1.SIGUSR1
	c := v1.Container{
		Name: "main", Image: "web:1", WorkingDir: "/srv", Stdin: true, StdinOnce: true, TTY: true,
		Lifecycle: &v1.Lifecycle{StopSignal: &term},
	}
	p := onePod("u1")
	p.Spec.Containers = []v1.Container{c}
	o := ctrOptions("box", 3)
	o.ImageRef, o.Command, o.Args = "sha256:1", []string{"serve"}, []string{"-v", ""}
	o.Env = []EnvVar{{Name: "A", Value: "b"}}
	cfg, err := (&translator{}).container(p, &c, o)
	if err != nil {
		t.Fatal(err)
	}
	if !cfg.Stdin || !cfg.StdinOnce || !cfg.Tty || cfg.WorkingDir != "/srv" || cfg.StopSignal != cri.Signal_SIGNAL_SIGUSR1 {
		t.Errorf("%+v", cfg)
	}
	if cfg.Image.Image != "sha256:1" || cfg.Image.UserSpecifiedImage != "web:1" || cfg.Metadata.Name != "main" || cfg.Metadata.Attempt != 3 {
		t.Errorf("%+v", cfg)
	}
	if !slices.Equal(cfg.Command, []string{"serve"}) || !slices.Equal(cfg.Args, []string{"-v", ""}) || len(cfg.Envs) != 1 || string(cfg.Envs[0].Value) != "b" {
		t.Errorf("%+v", cfg)
	}
	none := v1.Signal("SIGNONE")
	c.Lifecycle.StopSignal = &none
	if _, err := (&translator{}).container(p, &c, o); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("a signal that there is not: %v", err)
	}
}
