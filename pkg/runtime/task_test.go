package runtime

import (
	"context"
	"errors"
	"testing"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// fakeTasks is containerd's task service of a fake: it knows the strays.
type fakeTasks struct {
	tasksapi.UnimplementedTasksServer
	f *fakeRuntime
}

func (s fakeTasks) stray(ctx context.Context, id string, running bool) error {
	if md, _ := metadata.FromIncomingContext(ctx); len(md["containerd-namespace"]) != 1 || md["containerd-namespace"][0] != criNamespace {
		return status.Error(codes.InvalidArgument, "no namespace")
	}
	if got, ok := s.f.strays[id]; !ok {
		return status.Error(codes.NotFound, "no such task")
	} else if got && !running {
		return status.Error(codes.FailedPrecondition, "the task runs")
	}
	return nil
}

func (s fakeTasks) Kill(ctx context.Context, r *tasksapi.KillRequest) (*emptypb.Empty, error) {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	if err := s.stray(ctx, r.GetContainerID(), true); err != nil {
		return nil, err
	}
	s.f.strays[r.GetContainerID()] = r.GetSignal() != 9
	return &emptypb.Empty{}, nil
}

func (s fakeTasks) Wait(ctx context.Context, r *tasksapi.WaitRequest) (*tasksapi.WaitResponse, error) {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	return &tasksapi.WaitResponse{ExitStatus: 137}, s.stray(ctx, r.GetContainerID(), false)
}

func (s fakeTasks) Delete(ctx context.Context, r *tasksapi.DeleteTaskRequest) (*tasksapi.DeleteResponse, error) {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	if err := s.stray(ctx, r.GetContainerID(), false); err != nil {
		return nil, err
	}
	delete(s.f.strays, r.GetContainerID())
	return &tasksapi.DeleteResponse{}, nil
}

// TestRemoveStray: a start that was cut short left a task that CRI does not
// know of and that keeps it from removing the container.
func TestRemoveStray(t *testing.T) {
	for _, name := range []string{containerdName, "other"} {
		f := newFake(t, func(f *fakeRuntime) { f.name, f.ownEvents, f.strays = name, true, map[string]bool{} })
		c := dialFake(t, f, nil)
		p := onePod("u1")
		box, err := c.RunSandbox(t.Context(), p, SandboxOptions{})
		if err != nil {
			t.Fatal(err)
		}
		id, err := c.CreateContainer(t.Context(), p, &p.Spec.Containers[0], ctrOptions(box, 0))
		if err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		f.strays[id] = true
		f.mu.Unlock()
		err = c.RemoveContainer(t.Context(), id)
		if name != containerdName {
			if !errors.Is(err, errdefs.ErrConflict) {
				t.Errorf("on another runtime: %v", err)
			}
			continue
		}
		if err != nil {
			t.Errorf("the container stays: %v", err)
		}
		if left := mustPod(t, c, "u1").Containers; len(left) > 0 {
			t.Errorf("left: %+v", left)
		}
	}
}
