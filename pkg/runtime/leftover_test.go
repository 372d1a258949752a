package runtime_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/nodeagent/nodeagent/internal/testbed"
)

// TestCollectTasks: a task whose record is gone, as after a sandbox whose making
// was cut short, is ended with its shim; what has a record is left alone.
func TestCollectTasks(t *testing.T) {
	eachContainerd(t, func(t *testing.T, n *testbed.Node, _ string) {
		c := connect(t, n)
		importImages(t, c)
		lost := newRunner(t, n, c, testPod("sleep", "1000")).sandbox()
		other := testPod("sleep", "1000")
		other.Name, other.UID = "other", "u-other"
		kept := newRunner(t, n, c, other).sandbox()
		if ended, err := c.CollectTasks(t.Context()); err != nil || len(ended) > 0 {
			t.Fatalf("collected %v, %v", ended, err)
		}

		conn, err := grpc.NewClient("unix://"+n.RuntimeSocket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ctx := metadata.AppendToOutgoingContext(t.Context(), "containerd-namespace", "k8s.io")
		records := containersapi.NewContainersClient(conn)
		if _, err := records.Delete(ctx, &containersapi.DeleteContainerRequest{ID: lost}); err != nil {
			t.Fatal(err)
		}
		if ended, err := c.CollectTasks(t.Context()); err != nil || !slices.Equal(ended, []string{lost}) {
			t.Fatalf("collected %v, %v; want %s", ended, err, lost)
		}
		n.Eventually(20*time.Second, "one shim is left", func() error {
			// containerd 2 may let the shim live after its last task.
			if _, err := c.CollectShims(t.Context()); err != nil {
				return err
			}
			shims := n.Shims()
			if len(shims) != 1 || !slices.Contains(shims[0].Args, kept) {
				return fmt.Errorf("shims %v", shims)
			}
			return nil
		})
		left, err := records.List(ctx, &containersapi.ListContainersRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if len(left.GetContainers()) != 1 || left.GetContainers()[0].GetID() != kept {
			t.Errorf("records %v", left.GetContainers())
		}
		if ended, err := c.CollectTasks(t.Context()); err != nil || len(ended) > 0 {
			t.Errorf("the second time: %v, %v", ended, err)
		}
		if err := errors.Join(c.StopSandbox(t.Context(), kept), c.RemoveSandbox(t.Context(), kept)); err != nil {
			t.Error(err)
		}
	})
}
