package podworker

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/images"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/volumes"
)

var missing = volumes.SetUpError{errors.New(`MountVolume.SetUp failed for volume "x" : configmap "y" not found`), errors.New("second")}

// Files made of objects are looked at whenever anything wakes the worker, and
// what is wrong with them is said once, for each volume.
func TestVolumesFollowTheirObjects(t *testing.T) {
	n, dir := newNode(t), t.TempDir()
	n.want(testPod("a", v1.RestartPolicyAlways, "one"))
	a := n.agent(dir, nil)
	n.until("ready", n.ready("a"))
	n.mu.Lock()
	n.refreshErr = missing
	n.mu.Unlock()
	for _, label := range []string{"next", "last"} {
		n.edit("a", func(p *v1.Pod) { p.Labels = map[string]string{"app": label} })
		a.Wake("a")
		n.until("refreshed", func() bool { return slices.Contains(n.refreshed, label) })
	}
	n.until("told", func() bool { return slices.Contains(n.events, "web-a/ FailedMount: second") })
	a.stop()
	told := 0
	for _, e := range n.events {
		if e == "web-a/ FailedMount: "+missing[0].Error() {
			told++
		}
	}
	if told != 1 {
		t.Errorf("told %d times: %q", told, n.events)
	}
}

// A volume that cannot be set up is what the pod waits for, in kubelet's words.
func TestVolumeThatIsMissing(t *testing.T) {
	n, dir := newNode(t), t.TempDir()
	n.setUpErr = missing
	n.want(testPod("a", v1.RestartPolicyAlways, "one"))
	a := n.agent(dir, nil)
	n.until("told", func() bool {
		return slices.Contains(n.events, "web-a/ FailedMount: "+missing[0].Error()) && slices.Contains(n.events, "web-a/ FailedMount: second")
	})
	n.until("shown", func() bool {
		s := n.records["a"].Pod.Status.ContainerStatuses
		return len(s) == 1 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == "ContainerCreating" && s[0].State.Waiting.Message == missing.Error()
	})
	n.mu.Lock()
	n.setUpErr = nil
	n.mu.Unlock()
	a.WakeAll()
	n.until("ready", n.ready("a"))
}

// The image of a volume is waited for like that of a container.
func TestImageVolume(t *testing.T) {
	n, dir := newNode(t), t.TempDir()
	p := testPod("a", v1.RestartPolicyAlways, "one")
	p.Spec.Volumes = []v1.Volume{{Name: "data", VolumeSource: v1.VolumeSource{Image: &v1.ImageVolumeSource{Reference: "pages", PullPolicy: v1.PullIfNotPresent}}}}
	p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "data", MountPath: "/data", SubPathExpr: "DIR"}}
	p.Spec.Containers[0].Env = []v1.EnvVar{{Name: "DIR", Value: "html"}}
	n.noImage["pages"] = images.State{Reason: images.ReasonErrImagePull, Message: "no such image", RetryAt: time.Now().Add(time.Hour)}
	n.want(p)
	a := n.agent(dir, nil)
	n.until("waiting", func() bool {
		s := n.records["a"].Pod.Status.ContainerStatuses
		return len(s) == 1 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == images.ReasonErrImagePull
	})
	n.mu.Lock()
	delete(n.noImage, "pages")
	n.mu.Unlock()
	a.Wake("a")
	n.until("told that the runtime cannot", func() bool {
		s := n.records["a"].Pod.Status.ContainerStatuses
		return s[0].State.Waiting != nil && s[0].State.Waiting.Reason == "CreateContainerConfigError" && strings.Contains(s[0].State.Waiting.Message, "does not mount images")
	})
	n.mu.Lock()
	n.features.ImageVolumes = true
	n.mu.Unlock()
	a.WakeAll()
	n.until("ready", n.ready("a"))
	if m := n.mounts["one"]; len(m) == 0 || m[0].Image != "pages" || m[0].HostPath != "/sub/html" {
		t.Errorf("mounts %+v", m)
	}
}

func (n *node) Refresh(_ context.Context, p *v1.Pod) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refreshed = append(n.refreshed, p.Labels["app"])
	n.changed.Broadcast()
	return n.refreshErr
}

func (n *node) ContainerMounts(_ context.Context, _ *v1.Pod, c *v1.Container, _ map[string]volumes.Mounted, o volumes.MountOptions) (out []runtime.Mount, err error) {
	for _, m := range c.VolumeMounts {
		value, _ := o.Env(m.SubPathExpr)
		out = append(out, runtime.Mount{Name: m.Name, ContainerPath: m.MountPath, HostPath: "/sub/" + value, Image: o.Images[m.Name]})
	}
	return out, nil
}

func TestDebugContainerThatMountsMore(t *testing.T) {
	p := testPod("a", v1.RestartPolicyAlways, "one")
	p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "not even there"}}
	mounted := map[string]volumes.Mounted{"data": {}}
	if mountsMore(p, mounted) {
		t.Error("asks again for what no container for debugging mounts")
	}
	debug := v1.EphemeralContainer{}
	debug.VolumeMounts = []v1.VolumeMount{{Name: "data"}}
	p.Spec.EphemeralContainers = []v1.EphemeralContainer{debug}
	if mountsMore(p, mounted) {
		t.Error("asks again for what is set up")
	}
	debug.VolumeMounts = []v1.VolumeMount{{Name: "data"}, {Name: "keys"}}
	p.Spec.EphemeralContainers = []v1.EphemeralContainer{debug}
	if !mountsMore(p, mounted) {
		t.Error("the other volume is not set up")
	}
}
