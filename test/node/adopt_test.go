package node

import (
	"context"
	"maps"
	"os"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/pkg/config"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// kubeletPod makes a pod as kubelet does, with a container that was restarted
// three times, and returns the container's id.
func kubeletPod(t *testing.T, n *testbed.Node, name, uid, source string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), long)
	defer cancel()
	labels := map[string]string{pod.LabelPodName: name, pod.LabelPodNamespace: "default", pod.LabelPodUID: uid}
	box := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: uid},
		LogDirectory: n.Config.PodLogDir + "/default_" + name + "_" + uid,
		Labels:       labels,
		Annotations:  map[string]string{pod.AnnotationConfigSource: source},
		Linux:        &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "/" + n.Name + "/kubepods/besteffort/pod" + uid},
	}
	if err := os.MkdirAll(box.LogDirectory+"/main", 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := n.CRI().RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: box})
	if err != nil {
		t.Fatal(err)
	}
	labels = maps.Clone(labels)
	labels[pod.LabelContainerName] = "main"
	c, err := n.CRI().CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: s.PodSandboxId, SandboxConfig: box,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "main", Attempt: 3}, Labels: labels, LogPath: "main/3.log",
			Image:       &runtimeapi.ImageSpec{Image: "docker.io/library/busybox:latest", UserSpecifiedImage: "busybox"},
			Command:     []string{"/bin/sh", "-c", forever},
			Annotations: map[string]string{pod.AnnotationContainerHash: "1", pod.AnnotationRestartCount: "3"},
			Linux:       &runtimeapi.LinuxContainerConfig{},
		}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.CRI().StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		t.Fatal(err)
	}
	return c.ContainerId
}

// TestAdoptKubeletPods: of kubelet's pods, one that a manifest names by its UID
// runs on as it is, one from an API server is left alone, and a static one that
// no manifest names any more ends.
func TestAdoptKubeletPods(t *testing.T) {
	n := newNode(t)
	n.EditConfig(func(c *config.NodeAgentConfiguration) { c.Runtime.AdoptKubeletPods = true })
	n.StartAgent()
	n.WriteManifest("first.yaml", manifest{name: "first"}.String())
	n.WaitPods(long, testbed.Running("first")) // the network is there
	n.StopAgent()

	const uid = "11111111-1111-1111-1111-111111111111"
	wanted := kubeletPod(t, n, "wanted", uid, "api")
	foreign := kubeletPod(t, n, "foreign", "22222222-2222-2222-2222-222222222222", "api")
	kubeletPod(t, n, "static-node", "33333333333333333333333333333333", "file")
	n.WriteManifest("wanted.yaml", strings.Replace(manifest{name: "wanted"}.String(), "metadata:\n", "metadata:\n  uid: "+uid+"\n", 1))
	n.StartAgent()
	n.WaitPods(long, testbed.Running("first", "wanted"))
	n.Eventually(long, "the static pod ends", func() error { return absent(n, "static-node") })

	now := ids(t, n)
	if now["wanted/main"] != wanted || now["foreign/main"] != foreign {
		t.Errorf("containers %v; wanted's was %s, foreign's %s", now, wanted, foreign)
	}
	if s := get(t, n, "wanted").Status.ContainerStatuses[0]; s.RestartCount != 3 || s.ContainerID != "containerd://"+wanted {
		t.Errorf("wanted: %+v", s)
	}
}
