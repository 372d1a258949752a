package runtime

import (
	"context"
	"errors"
	"fmt"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// endTask kills and deletes the containerd task of a container that CRI holds
// for ended. When a start's caller goes away in the midst of it (an agent that
// is killed), containerd cancels the start, notes the container as exited and
// can still leave its task behind; from then on CRI neither stops the
// container nor removes it. Ending what is not there succeeds.
func (c *Client) endTask(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(inNamespace(ctx), callTimeout)
	defer cancel()
	tasks := tasksapi.NewTasksClient(c.conn)
	_, err := tasks.Kill(ctx, &tasksapi.KillRequest{ContainerID: id, Signal: uint32(unix.SIGKILL), All: true})
	if err = ignoreNotFound(translate("containerd kill task "+id, err)); err != nil {
		return err
	}
	_, err = tasks.Wait(ctx, &tasksapi.WaitRequest{ContainerID: id})
	if err = ignoreNotFound(translate("containerd wait for task "+id, err)); err != nil {
		return err
	}
	// The shim can end before it has answered; the second try then finds nothing.
	for range 2 {
		_, err = tasks.Delete(ctx, &tasksapi.DeleteTaskRequest{ContainerID: id})
		if err = ignoreNotFound(translate("containerd delete task "+id, err)); err == nil {
			break
		}
	}
	return err
}

// leftoverLabel marks the record under which a task without one is ended.
const leftoverLabel = "nodeagent.dev/leftover"

// CollectTasks ends the tasks that belong to no container of containerd's, and
// returns their ids. A sandbox whose making is cut short by its caller's death
// can leave one behind, with its process, mounts and cgroup; CRI does not know
// of it. A container's record is there before its task and goes after it, so
// that a task which is listed first is never missed by mistake.
func (c *Client) CollectTasks(ctx context.Context) ([]string, error) {
	if ok, err := c.isContainerd(ctx); err != nil || !ok {
		return nil, err
	}
	nctx, cancel := context.WithTimeout(inNamespace(ctx), callTimeout)
	defer cancel()
	tasks, err := tasksapi.NewTasksClient(c.conn).List(nctx, &tasksapi.ListTasksRequest{})
	if err != nil {
		return nil, translate("containerd list tasks", err)
	}
	known, err := c.records(nctx, "!=")
	if err != nil {
		return nil, err
	}
	var ended []string
	for _, t := range tasks.GetTasks() {
		if known[t.GetID()] {
			continue
		}
		if err := c.endLeftover(ctx, t.GetID()); err != nil {
			return ended, err
		}
		ended = append(ended, t.GetID())
	}
	return ended, c.dropLeftovers(nctx)
}

// records are the ids of containerd's containers, sandboxes among them: those
// whose leftoverLabel is "==" or "!=" true.
func (c *Client) records(nctx context.Context, is string) (map[string]bool, error) {
	r, err := containersapi.NewContainersClient(c.conn).List(nctx, &containersapi.ListContainersRequest{
		Filters: []string{fmt.Sprintf("labels.%q%strue", leftoverLabel, is)},
	})
	if err != nil {
		return nil, translate("containerd list containers", err)
	}
	known := map[string]bool{}
	for _, c := range r.GetContainers() {
		known[c.GetID()] = true
	}
	return known, nil
}

// endLeftover ends a task that has no record. containerd reaches tasks by their
// records only, so it is given one for the moment.
func (c *Client) endLeftover(ctx context.Context, id string) error {
	nctx, cancel := context.WithTimeout(inNamespace(ctx), callTimeout)
	defer cancel()
	_, err := containersapi.NewContainersClient(c.conn).Create(nctx, &containersapi.CreateContainerRequest{Container: &containersapi.Container{
		ID: id, Labels: map[string]string{leftoverLabel: "true"},
		Runtime: &containersapi.Container_Runtime{Name: "io.containerd.runc.v2"},
		Spec:    &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: []byte("{}")},
	}})
	if err = translate("containerd create container "+id, err); err != nil && !errors.Is(err, errdefs.ErrExists) {
		return err
	}
	return c.endTask(ctx, id)
}

// dropLeftovers removes the records that endLeftover made, also in an earlier
// life of this agent.
func (c *Client) dropLeftovers(nctx context.Context) error {
	made, err := c.records(nctx, "==")
	if err != nil {
		return err
	}
	for id := range made {
		_, err := containersapi.NewContainersClient(c.conn).Delete(nctx, &containersapi.DeleteContainerRequest{ID: id})
		if err = ignoreNotFound(translate("containerd delete container "+id, err)); err != nil {
			return err
		}
	}
	return nil
}
