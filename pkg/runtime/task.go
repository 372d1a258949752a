package runtime

import (
	"context"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"golang.org/x/sys/unix"
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
	_, err = tasks.Delete(ctx, &tasksapi.DeleteTaskRequest{ContainerID: id})
	return ignoreNotFound(translate("containerd delete task "+id, err))
}
