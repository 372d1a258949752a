package testbed

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const bridge = `{"cniVersion":"0.4.0","name":"test","plugins":[
 {"type":"bridge","bridge":"cni0","isGateway":true,"hairpinMode":true,
  "ipam":{"type":"host-local","ranges":[[{"subnet":"10.88.0.0/16"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
 {"type":"portmap","capabilities":{"portMappings":true}}]}`

// TestNode runs a pod by bare CRI calls on a node and reboots the node.
func TestNode(t *testing.T) {
	for _, v := range []string{Containerd16, Containerd24} {
		t.Run(v, func(t *testing.T) {
			n := NewNode(t, WithContainerd(v), WithOutside())
			if err := os.WriteFile(n.Path("cni/net.d/10-test.conflist"), []byte(bridge), 0o644); err != nil {
				t.Fatal(err)
			}
			ip := runNginx(t, n)
			n.Eventually(20*time.Second, "nginx answers", func() error {
				_, err := n.HTTPGet("http://" + ip + "/")
				return err
			})
			if len(n.Shims()) != 1 || len(n.Addresses()) != 1 || len(n.PodCgroups()) != 1 {
				t.Fatalf("shims %v, addresses %v, cgroups %v: want one of each", n.Shims(), n.Addresses(), n.PodCgroups())
			}
			n.KillContainerd()
			n.StartContainerd()
			if c := n.Containers(); len(c) != 1 || c[0].State != runtimeapi.ContainerState_CONTAINER_RUNNING {
				t.Fatalf("after a kill of containerd: %v", c)
			}
			n.Reboot()
			if c := n.Containers(); len(c) != 1 || c[0].State == runtimeapi.ContainerState_CONTAINER_RUNNING {
				t.Fatalf("after a reboot: %v", c)
			}
			if s := n.Shims(); len(s) != 0 {
				t.Fatalf("shims after a reboot: %v", s)
			}
		})
	}
}

func runNginx(t *testing.T, n *Node) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	n.Eventually(20*time.Second, "the network is ready", func() error {
		st, err := n.CRI().Status(ctx, &runtimeapi.StatusRequest{})
		if err != nil {
			return err
		}
		for _, c := range st.Status.Conditions {
			if !c.Status && (c.Type == runtimeapi.RuntimeReady || c.Type == runtimeapi.NetworkReady) {
				return fmt.Errorf("%s: %s", c.Type, c.Message)
			}
		}
		return nil
	})
	img := &runtimeapi.ImageSpec{Image: "nginx:stable-alpine"}
	if _, err := n.CRIImages().PullImage(ctx, &runtimeapi.PullImageRequest{Image: img}); err != nil {
		t.Fatalf("pull through the loopback registry: %v", err)
	}
	sb := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "d", Uid: "u"},
		LogDirectory: n.Path("logs/pods/p"),
		Linux:        &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "/" + n.Name + "/podu"},
	}
	s, err := n.CRI().RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: sb})
	if err != nil {
		t.Fatal(err)
	}
	c, err := n.CRI().CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: s.PodSandboxId, SandboxConfig: sb,
		Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: img, LogPath: "c.log",
			Linux: &runtimeapi.LinuxContainerConfig{}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.CRI().StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		t.Fatal(err)
	}
	st, err := n.CRI().PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.PodSandboxId})
	if err != nil {
		t.Fatal(err)
	}
	if out, code := n.ExecSync(c.ContainerId, "hostname"); code != 0 {
		t.Fatalf("exec: %d %s", code, out)
	}
	return st.Status.Network.Ip
}
