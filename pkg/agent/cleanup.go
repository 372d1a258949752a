package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/cgroup"
	"github.com/nodeagent/nodeagent/pkg/config"
	"github.com/nodeagent/nodeagent/pkg/nft"
	"github.com/nodeagent/nodeagent/pkg/podworker"
	"github.com/nodeagent/nodeagent/pkg/proxy"
	"github.com/nodeagent/nodeagent/pkg/proxy/kubeproxy"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/shutdown"
)

// cleanupGrace is what containers get to end in a cleanup.
const cleanupGrace = 10 * time.Second

// cleaner collects what goes wrong, so that one stubborn mount does not keep
// the rest from being removed.
type cleaner struct {
	*agent
	out  io.Writer
	errs []error
}

func (c *cleaner) did(what string, err error) {
	if err != nil {
		c.errs = append(c.errs, fmt.Errorf("%s: %w", what, err))
		fmt.Fprintf(c.out, "cannot remove %s: %v\n", what, err)
		return
	}
	fmt.Fprintf(c.out, "removed %s\n", what)
}

// folder removes a folder and is silent about one that is not there.
func (c *cleaner) folder(path string) {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		c.did(path, os.RemoveAll(path))
	}
}

// Cleanup removes everything that the agent with this configuration made on
// the host: pods, volumes, cgroups, network, the embedded runtime, its own
// state and logs. Manifests and the configuration are the user's and stay, and
// so do images on a shared runtime. The agent must not be running.
func Cleanup(ctx context.Context, cfg *config.NodeAgentConfiguration, out io.Writer) error {
	unlock, err := lockState(cfg.StateDir)
	if err != nil {
		return err
	}
	defer unlock()
	name, err := instance(cfg.StateDir, cfg.NodeName)
	if err != nil {
		return err
	}
	c := &cleaner{out: out, agent: &agent{cfg: cfg, log: slog.New(slog.DiscardHandler), instance: name}}
	if c.cni, err = c.newCNI(); err != nil {
		return err
	}
	c.volumes = c.newVolumes()
	uids := c.pods(ctx)
	c.leftovers(ctx, uids)
	c.did("cluster DNS address", c.settleLocal(nil))
	c.did("Services", proxy.Cleanup(ctx, c.proxyModes(), c.statePath(proxyFile)))
	c.did("pod network", c.cni.Cleanup(ctx))
	if removed, err := shutdown.Restore(ctx, shutdown.DropInDir); removed {
		c.did("logind's configuration", err)
	}
	empty, err := nft.Command(nil).RemoveEmpty(ctx)
	if err != nil || len(empty) > 0 { // of whoever made them: they come back for who wants them
		c.did("empty tables of iptables", err)
	}
	if c.supervisor != nil {
		c.did("embedded runtime", c.supervisor.Stop(ctx))
	}
	for _, dir := range []string{podsDir, filepath.Dir(objectsDir), resourcesDir, embeddedDir, config.CredentialsDir} {
		c.folder(c.statePath(dir))
	}
	c.folder(cfg.RunDir)
	if len(c.errs) == 0 {
		// Until then the next attempt has to know where the pods are.
		for _, file := range []string{runtimeFile, pressureFile, imageUseFile, shutdownFile} {
			if err := os.Remove(c.statePath(file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				c.did(c.statePath(file), err)
			}
		}
	}
	return errors.Join(c.errs...)
}

// CleanupKubeProxy removes what a kube-proxy left in the kernel. An agent may
// run meanwhile: nothing of it has such names.
func CleanupKubeProxy(ctx context.Context, out io.Writer) error {
	removed, err := kubeproxy.Remove(ctx)
	for _, what := range removed {
		fmt.Fprintf(out, "removed %s\n", what)
	}
	if len(removed) == 0 && err == nil {
		fmt.Fprintln(out, "a kube-proxy left nothing here")
	}
	return err
}

// pods ends the pods that the runtime shows as ours.
func (c *cleaner) pods(ctx context.Context) map[types.UID]bool {
	uids := map[types.UID]bool{}
	client, err := c.cleanupClient(ctx)
	if err != nil {
		c.did("pods", err)
		return uids
	}
	if client == nil {
		return uids
	}
	defer client.Close()
	pods, err := client.Pods(ctx)
	if err != nil {
		c.did("pods", err)
	}
	for i := range pods {
		p := &pods[i]
		uids[p.UID] = true
		c.did("pod "+p.Namespace+"/"+p.Name, endPod(ctx, client, p))
	}
	return uids
}

// cleanupClient connects to the runtime that the agent used. An embedded one
// that is not there has no pods; it is not started for that.
func (c *cleaner) cleanupClient(ctx context.Context) (*runtime.Client, error) {
	endpoint, err := keptRuntime(c.cfg.StateDir)
	if err != nil {
		return nil, err
	}
	if endpoint == "" {
		endpoint = c.cfg.Runtime.Endpoint
	}
	if _, err := os.Stat(c.statePath(embeddedDir)); err == nil {
		if c.supervisor, err = c.newSupervisor(); err != nil {
			return nil, err
		}
		if endpoint == config.EndpointAuto {
			endpoint = config.EndpointEmbedded
		}
	}
	switch endpoint {
	case config.EndpointEmbedded:
		if c.supervisor == nil {
			return nil, nil
		}
		if err := c.supervisor.Ensure(ctx); err != nil {
			return nil, err
		}
		return c.dial(ctx, c.supervisor.Endpoint())
	case config.EndpointAuto:
		for _, path := range config.RuntimeSockets() {
			if client, err := c.dial(ctx, "unix://"+path); err == nil {
				return client, nil
			}
		}
		return nil, nil
	}
	return c.dial(ctx, endpoint)
}

func endPod(ctx context.Context, client *runtime.Client, p *runtime.Pod) error {
	for i := range p.Containers {
		if ctr := &p.Containers[i]; ctr.State == runtime.StateRunning {
			if err := client.StopContainer(ctx, ctr.ID, cleanupGrace); err != nil {
				return err
			}
		}
	}
	for i := range p.Sandboxes {
		id := p.Sandboxes[i].ID
		if err := errors.Join(client.StopSandbox(ctx, id), client.RemoveSandbox(ctx, id)); err != nil {
			return err
		}
	}
	return nil
}

// leftovers gives back volumes, cgroups and logs, also of pods whose sandbox is
// gone.
func (c *cleaner) leftovers(ctx context.Context, uids map[types.UID]bool) {
	known, err := c.volumes.Pods()
	if err != nil {
		c.did("volumes", err)
	}
	for _, uid := range known {
		uids[uid] = true
	}
	if entries, err := os.ReadDir(c.statePath(podsDir)); err == nil {
		for _, e := range entries {
			uids[types.UID(e.Name())] = true
		}
	}
	cgroups, err := cgroup.New(cgroup.Options{Root: c.cfg.Runtime.CgroupRoot, Driver: c.cfg.Runtime.CgroupDriver, Log: c.log})
	if err != nil && len(uids) > 0 { // who only serves Services may have none mounted
		c.did("cgroups", err)
	}
	for uid := range uids {
		if err := c.volumes.TearDown(ctx, uid); err != nil {
			c.did("volumes of pod "+string(uid), err)
		}
		if cgroups != nil {
			if err := cgroups.Remove(ctx, uid); err != nil {
				c.did("cgroup of pod "+string(uid), err)
			}
		}
		if err := podworker.RemoveLogs(c.cfg.PodLogDir, c.cfg.ContainerLogDir, uid); err != nil {
			c.did("logs of pod "+string(uid), err)
		}
	}
	if cgroups != nil {
		c.did("cgroups", cgroups.Cleanup(ctx))
	}
}
