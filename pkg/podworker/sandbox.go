package podworker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/cgroup"
	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/podworker/lifecycle"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/volumes"
)

// maxHostname is the kernel's and DNS's limit of a host name label, in bytes.
const maxHostname = 63

// errMount marks a failure that users look for under FailedMount.
var errMount = errors.New("cannot set up volumes")

// failureReason is the event reason for a pod that cannot get its sandbox.
func failureReason(err error) string {
	if errors.Is(err, errMount) {
		return "FailedMount"
	}
	return "FailedCreatePodSandBox"
}

// prepare makes what a pod's containers stand on: folders, cgroup, volumes. It
// runs once per worker and sandbox; all of it is idempotent, so after a
// restart of the agent it finds what is there.
func (s *turn) prepare(ctx context.Context, p *v1.Pod) error {
	if s.mounted != nil && !mountsMore(p, s.mounted) {
		return nil
	}
	for _, dir := range []string{s.m.podDir(s.uid), s.m.logDir(p)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("cannot make the folder of pod %s: %w", pod.Describe(p), err)
		}
	}
	on, err := s.m.findGround(p)
	if err != nil {
		return err
	}
	if err := s.m.Cgroups.Ensure(ctx, on.weighted(p)); err != nil {
		return fmt.Errorf("cannot make the cgroup of pod %s: %w", pod.Describe(p), err)
	}
	s.m.Hook("between cgroup and volumes")
	mounted, err := s.m.Volumes.SetUp(ctx, p)
	if err != nil {
		return errdefs.Errorf(errMount, "%w", err)
	}
	if mounted == nil {
		mounted = map[string]volumes.Mounted{}
	}
	s.mounted, s.ground = mounted, on
	s.released.Store(false)
	return nil
}

func (s *turn) createSandbox(ctx context.Context, p *v1.Pod, a lifecycle.Action) error {
	// Pulls can start while the sandbox is made.
	for i := range p.Spec.Containers {
		c := &p.Spec.Containers[i]
		if len(p.Spec.InitContainers) > 0 {
			c = &p.Spec.InitContainers[0]
		}
		if c.ImagePullPolicy != v1.PullAlways {
			s.m.Images.Request(ctx, p, c, 0)
		}
	}
	start, done := s.abandonable(ctx)
	defer done()
	if err := s.makeSandbox(start, p, a.Attempt); err != nil {
		if start.Err() != nil && ctx.Err() == nil {
			return fmt.Errorf("%w: %w", errAbandoned, err)
		}
		return err
	}
	for name, w := range s.waiting {
		if w.Message != "" {
			delete(s.waiting, name)
		}
	}
	return nil
}

func (s *turn) makeSandbox(ctx context.Context, p *v1.Pod, attempt uint32) error {
	if err := s.take(ctx); err != nil {
		return err
	}
	if name := s.m.kernelName(p); len(name) > pod.MaxFQDN {
		return fmt.Errorf("Failed to construct FQDN from Pod hostname and cluster domain, FQDN %s is too long (%d characters is the max, %d characters requested)", //lint:ignore ST1005 kubelet's own words
			name, pod.MaxFQDN, len(name))
	}
	s.mounted = nil // what a reboot took is set up again
	if err := s.prepare(ctx, p); err != nil {
		return err
	}
	done := s.m.Network.Creating()
	defer done()
	_, err := s.m.Sandboxes.RunSandbox(ctx, p, s.sandboxOptions(p, attempt))
	s.m.Metrics.SandboxStarted(err)
	return err
}

// sandboxOptions depend on the pod, its ground and its settings only, so that the same
// options come out again for a container that is made later.
func (s *turn) sandboxOptions(p *v1.Pod, attempt uint32) runtime.SandboxOptions {
	return runtime.SandboxOptions{
		Attempt: attempt, LogDir: s.m.logDir(p), CgroupParent: s.m.Cgroups.Parent(p),
		DNS: s.m.DNS(p), Hostname: s.m.kernelName(p),
		Handler: s.ground.handler, FirstUser: s.ground.firstUser, Overhead: s.ground.overhead,
	}
}

// kernelName is what uname tells in the pod: its full name, if it asks for that.
func (m *Manager) kernelName(p *v1.Pod) string {
	if full := m.fqdn(p); full != "" && !p.Spec.HostNetwork && p.Spec.SetHostnameAsFQDN != nil && *p.Spec.SetHostnameAsFQDN {
		return full
	}
	return m.hostname(p)
}

// hostname is the one that the pod asks for, else its name, cut to what the
// kernel takes; pods on the host's network have the node's.
func (m *Manager) hostname(p *v1.Pod) string {
	switch {
	case p.Spec.HostNetwork:
		return m.Hostname
	case p.Spec.HostnameOverride != nil:
		return *p.Spec.HostnameOverride
	}
	name := cmp.Or(p.Spec.Hostname, p.Name)
	if len(name) > maxHostname {
		name = strings.TrimRight(name[:maxHostname], "-.")
	}
	return name
}

// fqdn is what DNS calls a pod that has a subdomain; else empty.
func (m *Manager) fqdn(p *v1.Pod) string {
	if p.Spec.Subdomain == "" || p.Spec.HostnameOverride != nil {
		return ""
	}
	return m.hostname(p) + "." + p.Spec.Subdomain + "." + p.Namespace + ".svc." + m.ClusterDomain
}

func (m *Manager) oomScore(p *v1.Pod, c *v1.Container) int64 {
	return cgroup.OOMScoreAdj(p, c, m.NodeMemory)
}

// mounts are the container's binds: its volumes, the termination log and,
// unless the pod mounts its own or has the host's, /etc/hosts.
func (s *turn) mounts(ctx context.Context, p *v1.Pod, spec *v1.Container, sandbox *runtime.Sandbox, attempt uint32, o volumes.MountOptions) ([]runtime.Mount, error) {
	list, err := s.m.Volumes.ContainerMounts(ctx, p, spec, s.mounted, o)
	if err != nil {
		return nil, err
	}
	ownHosts := p.Spec.HostNetwork && len(p.Spec.HostAliases) == 0
	for _, m := range list {
		ownHosts = ownHosts || m.ContainerPath == "/etc/hosts"
	}
	if !ownHosts {
		path, err := s.m.writeHosts(p, sandbox.IPs)
		if err != nil {
			return nil, err
		}
		list = append(list, runtime.Mount{Name: "etc-hosts", HostPath: path, ContainerPath: "/etc/hosts"})
	}
	if spec.TerminationMessagePath != "" {
		path, err := s.m.makeMessageFile(p, spec.Name, attempt)
		if err != nil {
			return nil, err
		}
		list = append(list, runtime.Mount{Name: "termination-log", HostPath: path, ContainerPath: spec.TerminationMessagePath})
	}
	return list, nil
}
