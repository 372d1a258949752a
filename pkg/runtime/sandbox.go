package runtime

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// A create that meets a reserved name asks again this often and this long: the
// runtime rolls back the call of an agent that was killed, and frees the name
// when it is done.
const (
	conflictEvery = 50 * time.Millisecond
	conflictLimit = 3 * time.Second
)

// errTaken says that a conflicting object stands in the way and has to stay.
var errTaken = errors.New("taken")

// RunSandbox makes and starts the pod's sandbox, with its network, and returns
// its id. Repeated for the same (UID, attempt) it returns the sandbox that is
// there when it is ready; a half-made one without containers is replaced.
func (c *Client) RunSandbox(ctx context.Context, p *v1.Pod, o SandboxOptions) (string, error) {
	if err := c.allowUsers(ctx, o); err != nil {
		return "", err
	}
	cfg, err := c.spec.sandbox(p, o)
	if err != nil {
		return "", err
	}
	create := func() (string, error) {
		r, err := invoke(ctx, c, "run_podsandbox", pod.Describe(p), sandboxTimeout, c.rt.RunPodSandbox,
			&cri.RunPodSandboxRequest{Config: cfg, RuntimeHandler: o.Handler})
		return r.GetPodSandboxId(), err
	}
	id, err := c.createOnce(ctx, create, func() (string, error) { return c.adoptSandbox(ctx, p, o.Attempt) })
	c.noteLacked(err)
	if err != nil {
		return "", fmt.Errorf("sandbox of pod %s, attempt %d: %w", pod.Describe(p), o.Attempt, err)
	}
	c.index.learn(id, p.UID, true, true)
	return id, nil
}

// allowUsers refuses a sandbox with users of its own where the runtime does not
// say that it can make one: containerd 1.6 gives it the host's instead.
func (c *Client) allowUsers(ctx context.Context, o SandboxOptions) error {
	if o.FirstUser == 0 {
		return nil
	}
	f, err := c.Features(ctx)
	switch {
	case err != nil || slices.Contains(f.UserNamespaces, o.Handler):
		return err
	case o.Handler != "":
		return errdefs.Errorf(ErrConfig, "can't set `spec.hostUsers: false`, RuntimeClass handler %q does not support user namespaces", o.Handler)
	}
	return errdefs.Errorf(ErrConfig, "can't set `spec.hostUsers: false`, runtime does not support user namespaces")
}

// createOnce runs create and, while its name is reserved, adopt: which returns
// the id of the object that is there, or "" when it made way or is not listed
// yet, and errTaken when it has to stay.
func (c *Client) createOnce(ctx context.Context, create, adopt func() (string, error)) (string, error) {
	id, err := create()
	if !errors.Is(err, errdefs.ErrExists) {
		return id, err
	}
	tick := time.NewTicker(conflictEvery)
	defer tick.Stop()
	limit := time.NewTimer(conflictLimit)
	defer limit.Stop()
	for {
		id, aerr := adopt()
		switch {
		case errors.Is(aerr, errTaken):
			return "", fmt.Errorf("%w (%w)", err, aerr)
		case aerr != nil:
			return "", aerr
		case id != "":
			return id, nil
		}
		id, err = create()
		if !errors.Is(err, errdefs.ErrExists) {
			return id, err
		}
		select {
		case <-ctx.Done():
			return "", translate("wait for a reserved name", ctx.Err())
		case <-limit.C:
			return "", fmt.Errorf("%w: the runtime still works on an earlier try: %w", errdefs.ErrTransient, err)
		case <-tick.C:
		}
	}
}

// adoptSandbox finds the sandbox that holds the name.
func (c *Client) adoptSandbox(ctx context.Context, p *v1.Pod, attempt uint32) (string, error) {
	list, err := c.listSandboxes(ctx, map[string]string{pod.LabelPodUID: string(p.UID)})
	if err != nil {
		return "", err
	}
	for _, s := range list {
		if s.GetMetadata().GetAttempt() != attempt || s.GetMetadata().GetName() != p.Name || s.GetMetadata().GetNamespace() != p.Namespace {
			continue
		}
		if !c.ours(s.GetLabels()) {
			return "", fmt.Errorf("sandbox %s of owner %q holds the name: %w", s.GetId(), s.GetLabels()[pod.LabelOwner], errTaken)
		}
		if s.GetState() == cri.PodSandboxState_SANDBOX_READY && !c.index.sandboxEnded(s.GetId()) {
			return s.GetId(), nil
		}
		used, err := c.sandboxUsed(ctx, s.GetId())
		if err != nil {
			return "", err
		}
		if used {
			// Its containers hold exit codes and restart counts.
			return "", fmt.Errorf("sandbox %s is dead and has containers, use the next attempt: %w", s.GetId(), errTaken)
		}
		if err := c.StopSandbox(ctx, s.GetId()); err != nil {
			return "", err
		}
		return "", c.RemoveSandbox(ctx, s.GetId())
	}
	return "", nil
}

func (c *Client) sandboxUsed(ctx context.Context, id string) (bool, error) {
	r, err := invoke(ctx, c, "list_containers", "", callTimeout, c.rt.ListContainers,
		&cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: id}})
	return len(r.GetContainers()) > 0, err
}

// StopSandbox kills what runs in the sandbox and takes its network down.
func (c *Client) StopSandbox(ctx context.Context, id string) error {
	_, err := invoke(ctx, c, "stop_podsandbox", id, sandboxTimeout, c.rt.StopPodSandbox,
		&cri.StopPodSandboxRequest{PodSandboxId: id})
	return ignoreNotFound(err)
}

// RemoveSandbox removes the sandbox and its containers; they are killed when
// they still run.
func (c *Client) RemoveSandbox(ctx context.Context, id string) error {
	_, err := invoke(ctx, c, "remove_podsandbox", id, callTimeout, c.rt.RemovePodSandbox,
		&cri.RemovePodSandboxRequest{PodSandboxId: id})
	if err = ignoreNotFound(err); err != nil {
		return err
	}
	c.index.drop(id)
	return nil
}

// PortForwardURL is where the runtime serves a port forward into the sandbox.
func (c *Client) PortForwardURL(ctx context.Context, sandboxID string, ports []int32) (string, error) {
	r, err := invoke(ctx, c, "port_forward", sandboxID, callTimeout, c.rt.PortForward,
		&cri.PortForwardRequest{PodSandboxId: sandboxID, Port: ports})
	return r.GetUrl(), err
}

// lookup finds the pod of an id that the index does not know; ok is false for
// what is not ours or gone.
func (c *Client) lookup(ctx context.Context, id string) (uid types.UID, ok bool, err error) {
	cs, err := invoke(ctx, c, "list_containers", id, callTimeout, c.rt.ListContainers,
		&cri.ListContainersRequest{Filter: &cri.ContainerFilter{Id: id}})
	if err != nil {
		return "", false, err
	}
	if found := cs.GetContainers(); len(found) > 0 {
		if labels := found[0].GetLabels(); c.ours(labels) {
			uid = types.UID(labels[pod.LabelPodUID])
			c.index.learn(id, uid, false, false)
			return uid, true, nil
		}
		return "", false, nil
	}
	ss, err := invoke(ctx, c, "list_podsandbox", id, callTimeout, c.rt.ListPodSandbox,
		&cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{Id: id}})
	if err != nil {
		return "", false, err
	}
	for _, l := range ss.GetItems() {
		if c.ours(l.GetLabels()) {
			c.index.learn(id, uidOf(l), true, false)
			return uidOf(l), true, nil
		}
	}
	return "", false, nil
}
