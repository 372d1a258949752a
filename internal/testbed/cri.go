package testbed

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CRI is a plain client of the node's runtime, for assertions: it sees what is
// there and not what the agent believes.
func (n *Node) CRI() runtimeapi.RuntimeServiceClient {
	return runtimeapi.NewRuntimeServiceClient(n.conn())
}

// CRIImages is the image half of CRI.
func (n *Node) CRIImages() runtimeapi.ImageServiceClient {
	return runtimeapi.NewImageServiceClient(n.conn())
}

func (n *Node) conn() *grpc.ClientConn {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.grpc == nil {
		c, err := grpc.NewClient("unix://"+n.RuntimeSocket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: fastBackoff, MinConnectTimeout: time.Second}))
		if err != nil {
			n.t.Fatal(err)
		}
		n.grpc = c
	}
	return n.grpc
}

// Containers lists the runtime's containers, dead ones too.
func (n *Node) Containers() []*runtimeapi.Container {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r, err := n.CRI().ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		n.t.Fatalf("list containers: %v", err)
	}
	return r.Containers
}

// Sandboxes lists the runtime's pod sandboxes, dead ones too.
func (n *Node) Sandboxes() []*runtimeapi.PodSandbox {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r, err := n.CRI().ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		n.t.Fatalf("list sandboxes: %v", err)
	}
	return r.Items
}

// ContainerPID is the first process of a container, by its PID inside the node.
func (n *Node) ContainerPID(id string) int {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r, err := n.CRI().ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		n.t.Fatalf("status of container %s: %v", id, err)
	}
	return pidOf(n.t, r.Info["info"])
}

// ExecSync runs a command in a container and returns its output and exit code.
func (n *Node) ExecSync(id string, argv ...string) (stdout string, code int) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	r, err := n.CRI().ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: argv, Timeout: 30})
	if err != nil {
		n.t.Fatalf("exec %q in container %s: %v", argv, id, err)
	}
	return string(r.Stdout) + string(r.Stderr), int(r.ExitCode)
}

// fastBackoff: a test that has just restarted containerd wants to see it now.
var fastBackoff = backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: 200 * time.Millisecond}

// pidOf reads the pid out of the verbose status's JSON.
func pidOf(t testing.TB, info string) int {
	t.Helper()
	var v struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(info), &v); err != nil || v.PID == 0 {
		t.Fatalf("no pid in the verbose status %q: %v", info, err)
	}
	return v.PID
}
