package runtime

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// CreateContainer makes a container in a sandbox, without starting it, and its
// log folder. Repeated for the same (UID, name, attempt) it returns the
// container that is there.
func (c *Client) CreateContainer(ctx context.Context, p *v1.Pod, ctr *v1.Container, o ContainerOptions) (string, error) {
	id, err := c.createContainer(ctx, p, ctr, o)
	if errors.Is(err, ErrConfig) {
		return "", err // in kubelet's words, which say where
	}
	if err != nil {
		return "", fmt.Errorf("container %s of pod %s, attempt %d: %w", ctr.Name, pod.Describe(p), o.Attempt, err)
	}
	// Before start: the process may end before StartContainer returns.
	c.index.learn(id, p.UID, false, true)
	return id, nil
}

func (c *Client) createContainer(ctx context.Context, p *v1.Pod, ctr *v1.Container, o ContainerOptions) (string, error) {
	sandbox, err := c.spec.sandbox(p, o.Sandbox)
	if err != nil {
		return "", err
	}
	cfg, err := c.spec.container(p, ctr, o)
	if err != nil {
		return "", err
	}
	if err := c.applyImageUser(ctx, p, ctr, o.ImageRef, cfg.GetLinux().GetSecurityContext()); err != nil {
		return "", err
	}
	if o.Sandbox.LogDir != "" && o.LogPath != "" {
		// The runtime opens the log file and does not make its folder.
		dir := filepath.Dir(filepath.Join(o.Sandbox.LogDir, o.LogPath))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", fmt.Errorf("%w: make log folder: %w", errdefs.ErrTransient, err)
		}
	}
	create := func() (string, error) {
		r, err := invoke(ctx, c, "create_container", ctr.Name, callTimeout, c.rt.CreateContainer,
			&cri.CreateContainerRequest{PodSandboxId: o.SandboxID, Config: cfg, SandboxConfig: sandbox})
		return r.GetContainerId(), err
	}
	return c.createOnce(ctx, create, func() (string, error) { return c.adoptContainer(ctx, p, ctr, o) })
}

// adoptContainer finds the container that holds the name.
func (c *Client) adoptContainer(ctx context.Context, p *v1.Pod, ctr *v1.Container, o ContainerOptions) (string, error) {
	list, err := c.listContainers(ctx, map[string]string{
		pod.LabelPodUID: string(p.UID), pod.LabelContainerName: ctr.Name,
	})
	if err != nil {
		return "", err
	}
	for _, l := range list {
		if l.GetMetadata().GetAttempt() != o.Attempt {
			continue
		}
		if !c.ours(l.GetLabels()) {
			return "", fmt.Errorf("container %s of owner %q holds the name: %w", l.GetId(), l.GetLabels()[pod.LabelOwner], errTaken)
		}
		same := l.GetPodSandboxId() == o.SandboxID
		image, said := l.GetAnnotations()[pod.AnnotationContainerImage]
		if same && (!said || image == ctr.Image) {
			return l.GetId(), nil
		}
		if l.GetState() != cri.ContainerState_CONTAINER_CREATED {
			return "", fmt.Errorf("container %s is there already in sandbox %s, use the next attempt: %w", l.GetId(), l.GetPodSandboxId(), errTaken)
		}
		// Made for another sandbox or image and never started.
		return "", c.RemoveContainer(ctx, l.GetId())
	}
	return "", nil
}

// applyImageUser settles what depends on the image's user, which is asked for
// at every start, and not from a cache (CVE-2019-11245): it refuses a container
// that must not run as root and would, or might, and it names the user when only
// a group is given, because CRI wants both or none.
func (c *Client) applyImageUser(ctx context.Context, p *v1.Pod, ctr *v1.Container, ref string, s *cri.LinuxContainerSecurityContext) error {
	e := effectiveSecurity(p, ctr)
	nonRoot := e.RunAsNonRoot != nil && *e.RunAsNonRoot
	if e.RunAsUser != nil {
		if nonRoot && *e.RunAsUser == 0 {
			return errdefs.Errorf(ErrConfig, "container's runAsUser breaks non-root policy (pod: %q, container: %s)", kubeletName(p), ctr.Name)
		}
		return nil
	}
	if !nonRoot && e.RunAsGroup == nil {
		return nil // the runtime takes the image's user and group by itself
	}
	img, err := c.imageStatus(ctx, ref)
	if err != nil {
		return err
	}
	if nonRoot {
		if err := verifyNonRoot(img); err != nil {
			return errdefs.Errorf(ErrConfig, "container has runAsNonRoot and %w (pod: %q, container: %s)", err, kubeletName(p), ctr.Name)
		}
	}
	if e.RunAsGroup != nil {
		if s.RunAsUsername = img.GetUsername(); s.RunAsUsername == "" {
			s.RunAsUser = &cri.Int64Value{Value: img.GetUid().GetValue()}
		}
	}
	return nil
}

// verifyNonRoot says why an image may run as root. A name may stand for user 0
// in the image's own passwd file, and a number that is too large for one has
// (CVE-2024-40635).
func verifyNonRoot(img *cri.Image) error {
	uid := img.GetUid()
	switch {
	case uid == nil && img.GetUsername() != "":
		return fmt.Errorf("image has non-numeric user (%s), cannot verify user is non-root", img.GetUsername())
	case uid.GetValue() == 0:
		return errors.New("image will run as root")
	}
	if msgs := validation.IsValidUserID(uid.GetValue()); len(msgs) > 0 {
		return fmt.Errorf("image has an invalid user id (%d). (Must be 1-(%d)): %s", uid.GetValue(), math.MaxInt32, strings.Join(msgs, "; "))
	}
	return nil
}

// kubeletName is how kubelet's messages name a pod.
func kubeletName(p *v1.Pod) string { return fmt.Sprintf("%s_%s(%s)", p.Name, p.Namespace, p.UID) }

// StartContainer starts a created container. It succeeds when the container
// was started already, also when it has ended since.
func (c *Client) StartContainer(ctx context.Context, id string) error {
	first := c.starts.begin(id)
	_, err := invoke(ctx, c, "start_container", id, callTimeout, c.rt.StartContainer,
		&cri.StartContainerRequest{ContainerId: id})
	// After a start that was cut short the next one may fail for that alone.
	if err == nil || first && answered(err) {
		c.starts.end(id)
	}
	if err == nil || errors.Is(err, errdefs.ErrNotFound) || errors.Is(err, errdefs.ErrUnavailable) || ctx.Err() != nil {
		return err
	}
	// The runtime refuses what is not in the created state, without a code.
	if st, serr := c.containerStatus(ctx, id); serr == nil && st.GetStartedAt() > 0 {
		return nil
	}
	return err
}

// StopContainer sends TERM (or the container's stop signal) and, after grace,
// KILL; it returns when the container has ended.
func (c *Client) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	grace = max(grace, 0)
	_, err := invoke(ctx, c, "stop_container", id, grace+callTimeout, c.rt.StopContainer,
		&cri.StopContainerRequest{ContainerId: id, Timeout: wholeSeconds(grace)})
	return ignoreNotFound(err)
}

// UpdateContainer gives a running container the CPU and memory of its spec. A
// memory limit below what it uses is refused: the kernel would kill it.
func (c *Client) UpdateContainer(ctx context.Context, id string, p *v1.Pod, ctr *v1.Container, oomScore int64) error {
	r := c.spec.containerResources(p, ctr)
	r.OomScoreAdj = oomScore
	if r.MemoryLimitInBytes > 0 {
		st, err := invoke(ctx, c, "container_stats", id, callTimeout, c.rt.ContainerStats, &cri.ContainerStatsRequest{ContainerId: id})
		if err != nil {
			return err
		}
		if used := st.GetStats().GetMemory().GetWorkingSetBytes().GetValue(); used >= uint64(r.MemoryLimitInBytes) {
			return fmt.Errorf("%w: attempting to set container %q memory limit (%d) below current usage (%d)", errdefs.ErrInvalid, ctr.Name, r.MemoryLimitInBytes, used)
		}
	}
	_, err := invoke(ctx, c, "update_container_resources", id, callTimeout, c.rt.UpdateContainerResources,
		&cri.UpdateContainerResourcesRequest{ContainerId: id, Linux: r})
	return err
}

// wholeSeconds rounds up: a grace of 0.3 s must not become a KILL at once.
func wholeSeconds(d time.Duration) int64 {
	return int64(math.Ceil(d.Seconds()))
}

// RemoveContainer removes a container; it is killed when it still runs.
func (c *Client) RemoveContainer(ctx context.Context, id string) error {
	err := c.removeContainer(ctx, id)
	if errors.Is(err, errdefs.ErrConflict) {
		if ours, cerr := c.isContainerd(ctx); cerr != nil || !ours {
			return errors.Join(err, cerr)
		}
		if terr := c.endTask(ctx, id); terr != nil {
			return errors.Join(err, terr)
		}
		err = c.removeContainer(ctx, id)
	}
	if err != nil {
		return err
	}
	c.starts.end(id)
	c.index.drop(id)
	return nil
}

func (c *Client) removeContainer(ctx context.Context, id string) error {
	_, err := invoke(ctx, c, "remove_container", id, callTimeout, c.rt.RemoveContainer,
		&cri.RemoveContainerRequest{ContainerId: id})
	return ignoreNotFound(err)
}

// ReopenLog has a running container's log opened by its name again.
func (c *Client) ReopenLog(ctx context.Context, id string) error {
	_, err := invoke(ctx, c, "reopen_container_log", id, callTimeout, c.rt.ReopenContainerLog, &cri.ReopenContainerLogRequest{ContainerId: id})
	return err
}

// ExecSync runs cmd in the container and returns its output and exit code. The
// error is context.DeadlineExceeded (and errdefs.ErrTransient) when it takes
// longer than timeout; 0 sets none.
func (c *Client) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (stdout, stderr []byte, exit int32, err error) {
	limit := time.Duration(0)
	if timeout > 0 {
		// The runtime kills the process at its own timeout; ours comes later.
		limit = timeout + callTimeout
	}
	r, err := invoke(ctx, c, "exec_sync", id, limit, c.rt.ExecSync,
		&cri.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: wholeSeconds(timeout)})
	if err != nil {
		return nil, nil, 0, err
	}
	return r.GetStdout(), r.GetStderr(), r.GetExitCode(), nil
}

// ExecURL is where the runtime serves an interactive exec.
func (c *Client) ExecURL(ctx context.Context, id string, cmd []string, o StreamOptions) (string, error) {
	r, err := invoke(ctx, c, "exec", id, callTimeout, c.rt.Exec, &cri.ExecRequest{
		ContainerId: id, Cmd: cmd, Tty: o.TTY, Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr && !o.TTY,
	})
	return r.GetUrl(), err
}

// AttachURL is where the runtime serves the streams of the container's own process.
func (c *Client) AttachURL(ctx context.Context, id string, o StreamOptions) (string, error) {
	r, err := invoke(ctx, c, "attach", id, callTimeout, c.rt.Attach, &cri.AttachRequest{
		ContainerId: id, Tty: o.TTY, Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr && !o.TTY,
	})
	return r.GetUrl(), err
}
