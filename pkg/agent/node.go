package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	goruntime "runtime"
	"time"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/cgroup"
	"github.com/nodeagent/nodeagent/pkg/config"
	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/eviction"
	"github.com/nodeagent/nodeagent/pkg/images"
	"github.com/nodeagent/nodeagent/pkg/images/pause"
	"github.com/nodeagent/nodeagent/pkg/logs"
	"github.com/nodeagent/nodeagent/pkg/podworker"
	"github.com/nodeagent/nodeagent/pkg/podworker/lifecycle"
	"github.com/nodeagent/nodeagent/pkg/probe"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/runtime/embedded"
	"github.com/nodeagent/nodeagent/pkg/stats"
)

// connectRetry is the pause between attempts to reach a runtime that is away.
const connectRetry = 500 * time.Millisecond

// node is what can be built only once the runtime has answered.
type node struct {
	client  *runtime.Client
	images  *images.Manager
	cgroups *cgroup.Manager
	workers *podworker.Manager
	stats   *stats.Reader
	logs    *logs.Rotator

	eviction  *eviction.Manager
	collector *images.Collector
}

// awaitPods returns when a container runtime is needed. An agent that serves
// Services only takes the place of kube-proxy, and the runtime is kubelet's: it
// is not touched before there is a pod of our own.
func (a *agent) awaitPods(ctx context.Context) error {
	if !a.cfg.ServicesOnly() {
		return nil
	}
	changed := make(chan struct{}, 1)
	a.store.Notify(func(types.UID) {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	for len(a.store.Records()) == 0 {
		if !a.idle.Swap(true) {
			a.log.Info("no pods: the container runtime is left alone")
			a.see(&conditions{runtime: runtime.Info{Name: "none", Reason: "there are no pods"}})
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
	if a.idle.Swap(false) {
		a.see(&conditions{runtimeReason: notAnswered, networkReason: notLooked})
	}
	return nil
}

// runNode waits for the runtime and then runs pods on it.
func (a *agent) runNode(ctx context.Context) error {
	if err := a.awaitPods(ctx); err != nil {
		return err
	}
	if err := a.cni.Ensure(ctx); err != nil && ctx.Err() == nil {
		// Housekeeping tries again; pods on the host's network need none of it.
		a.log.Warn("pod networking is not ready", "err", err)
		a.nodeEvent(v1.EventTypeWarning, "NetworkNotReady", err.Error())
	}
	g, ctx := errgroup.WithContext(ctx)
	client, err := a.connect(ctx, g)
	if err != nil {
		return errors.Join(err, g.Wait())
	}
	defer client.Close()
	n, err := a.newNode(ctx, client)
	if err != nil {
		return err
	}
	g.Go(func() error { return n.images.Run(ctx) })
	g.Go(func() error { return n.logs.Run(ctx) })
	n.eviction.Look(ctx) // before any pod is judged
	a.store.Notify(n.workers.Wake)
	a.store.NotifyResources(objects{a.store}.changed(n.workers))
	a.node.Store(n)
	a.look(ctx, n)
	g.Go(func() error { return n.stats.Run(ctx) })
	g.Go(func() error { return n.workers.Run(ctx) })
	g.Go(func() error { return n.eviction.Run(ctx) })
	g.Go(func() error { return a.watchStalls(ctx, n.eviction) })
	g.Go(func() error { return n.collector.Run(ctx) })
	if a.shutdown != nil {
		g.Go(func() error { return a.shutdown.Run(ctx) })
	}
	return g.Wait()
}

// connect tries until a runtime answers or ctx ends. The embedded one is
// started first and then supervised in g.
func (a *agent) connect(ctx context.Context, g *errgroup.Group) (*runtime.Client, error) {
	last := ""
	for {
		client, err := a.tryConnect(ctx, g)
		if err == nil || ctx.Err() != nil {
			return client, err
		}
		if err.Error() != last {
			last = err.Error()
			a.log.Error("the container runtime does not answer; pods that run are not affected; will keep trying", "err", err)
			a.nodeEvent(v1.EventTypeWarning, "RuntimeNotReady", last)
			a.see(&conditions{runtimeReason: last, networkReason: "unknown while the runtime does not answer"})
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(connectRetry):
		}
	}
}

// What answers is noted down: the pods are there from now on.
func (a *agent) tryConnect(ctx context.Context, g *errgroup.Group) (*runtime.Client, error) {
	endpoint := a.endpoint
	if endpoint == config.EndpointAuto {
		endpoint = a.findRuntime(ctx)
	}
	client, err := a.connectTo(ctx, g, endpoint)
	if err != nil {
		return nil, err
	}
	if err := keepRuntime(a.cfg.StateDir, endpoint); err != nil {
		// A full disk must not keep pods from being looked after.
		a.log.Warn("the next start may choose another runtime", "err", err)
	}
	return client, nil
}

// findRuntime is the first runtime of the host that answers, else our own. One
// without CRI (docker's containerd has it switched off) is passed over.
func (a *agent) findRuntime(ctx context.Context) string {
	for _, path := range config.RuntimeSockets() {
		if _, err := os.Stat(path); err != nil {
			continue
		}
		client, err := a.dial(ctx, "unix://"+path)
		if err == nil {
			_ = client.Close() // it was only asked whether it is one
			return "unix://" + path
		}
		a.log.Warn("a runtime's socket is there but does not speak CRI", "socket", path, "err", err)
	}
	return config.EndpointEmbedded
}

func (a *agent) connectTo(ctx context.Context, g *errgroup.Group, endpoint string) (*runtime.Client, error) {
	if endpoint != config.EndpointEmbedded {
		return a.dial(ctx, endpoint)
	}
	if a.supervisor == nil {
		s, err := a.newSupervisor()
		if err != nil {
			return nil, err
		}
		a.supervisor = s
	}
	if err := a.supervisor.Ensure(ctx); err != nil {
		return nil, err
	}
	client, err := a.dial(ctx, a.supervisor.Endpoint())
	if err == nil {
		g.Go(func() error { return a.supervisor.Run(ctx) })
	}
	return client, err
}

func (a *agent) dial(ctx context.Context, endpoint string) (*runtime.Client, error) {
	return runtime.Connect(ctx, runtime.Options{
		Endpoint: endpoint, Owner: a.instance, AdoptKubelet: a.cfg.Runtime.AdoptKubeletPods,
		StartsDir: a.statePath(startsDir), SeccompRoot: a.statePath(seccompDir), Policy: a.policy(), Log: a.log,
		Observe: a.metrics.RuntimeOperation,
	})
}

func (a *agent) newSupervisor() (*embedded.Supervisor, error) {
	return embedded.New(embedded.Options{
		StateDir:   a.statePath(embeddedDir),
		CNIConfDir: a.cfg.Network.ConfDir, CNIBinDir: a.cfg.Network.BinDir, Program: a.cfg.Runtime.Containerd,
		CgroupDriver: a.cfg.Runtime.CgroupDriver, SandboxImage: a.pauseImage(),
		RegistryConfigDir: a.statePath("registries"), Log: a.log,
	})
}

func (a *agent) pauseImage() string {
	if a.cfg.Images.PauseImage != "" {
		return a.cfg.Images.PauseImage
	}
	return pause.Ref
}

// newNode builds what runs pods on a runtime that has answered.
func (a *agent) newNode(ctx context.Context, client *runtime.Client) (*node, error) {
	info, err := client.Info(ctx)
	if err != nil {
		return nil, err
	}
	a.log.Info("runtime", "name", info.Name, "version", info.Version, "endpoint", info.Endpoint, "handlers", info.Handlers, "events", info.Events)
	if err := a.importPause(ctx, client); err != nil {
		// With a registry at hand the runtime may still pull its own.
		a.log.Warn("cannot import the pause image", "err", err)
	}
	a.importImages(ctx, client)
	cgroups, err := a.newCgroups(info.CgroupDriver)
	if err != nil {
		return nil, err
	}
	a.enforce(ctx, cgroups)
	n := &node{client: client, cgroups: cgroups}
	n.images, err = images.New(images.Options{
		Runtime: client, MaxParallel: a.cfg.Images.MaxParallelPulls,
		Backoff: a.cfg.Images.PullBackoff.Duration, BackoffMax: a.cfg.Images.PullBackoffMax.Duration,
		ProgressDeadline: a.cfg.Images.PullProgressDeadline.Duration,
		Credentials:      images.NewKeyring(a.credentialsFile(), a.log),
		PullSecrets:      objects{a.store}.pullSecrets,
		Events:           a.events.PodEvent,
		Wake: func(uid types.UID) {
			if n := a.node.Load(); n != nil {
				n.workers.Wake(uid)
			}
		},
		Log: a.log,
	})
	if err != nil {
		return nil, err
	}
	hook := killHook()
	n.logs = logs.NewRotator(logs.RotateOptions{
		Root: a.cfg.PodLogDir, MaxSize: a.cfg.LogMaxSize(), MaxFiles: a.cfg.ContainerLogMaxFiles, Interval: a.cfg.ContainerLogMonitorInterval.Duration,
		Reopen: client.ReopenLog, Clock: time.Now, Log: a.log, Hook: hook,
	})
	memory, _, err := memory()
	if err != nil {
		return nil, err
	}
	n.workers = podworker.New(podworker.Options{
		Store: a.store, Observer: client, Sandboxes: client, Containers: client, Images: n.images, Volumes: a.volumes,
		Objects: objects{a.store}, Allocatable: a.allocatable,
		Cgroups: cgroups, Network: a.cni, Logs: n.logs, Recorder: a.events, Metrics: a.metrics, Features: client.Features,
		Probes: probe.New(probe.Options{
			Runtime: client, Recorder: a.events, Metrics: a.metrics, Clock: time.Now, After: time.After, Log: a.log,
		}),
		Classes:       objects{a.store},
		Admit:         a.refuseAtShutdown(n.admission(podworker.Admission(a.nodeLabels, a.nodeSecurity(ctx, client)))),
		Unschedulable: a.unschedulable, ShuttingDown: a.shuttingDown,
		Hostname: a.cfg.NodeName, NodeIPs: a.cfg.NodeIP, NodeMemory: memory, RuntimeName: info.Name,
		DNS: resolver{
			path: a.cfg.Network.ResolvConf, clusterDNS: a.cfg.DNS.ClusterDNS, clusterDomain: a.cfg.DNS.ClusterDomain,
			event: a.events.PodEvent, log: a.log,
		}.forPod,
		ClusterDomain: a.cfg.DNS.ClusterDomain,
		HostsFile:     "/etc/hosts", PodsDir: a.statePath(podsDir), PodLogDir: a.cfg.PodLogDir, ContainerLogDir: a.cfg.ContainerLogDir,
		Backoff: lifecycle.Backoff{
			Base: a.cfg.Pods.CrashBackoff.Duration, Max: a.cfg.Pods.CrashBackoffMax.Duration, Reset: a.cfg.Pods.CrashBackoffReset.Duration,
		},
		KeepDead: a.cfg.Pods.MaxDeadContainers, MaxStarts: a.cfg.Runtime.MaxParallelStarts,
		RelistInterval: a.cfg.Runtime.RelistInterval.Duration, Clock: time.Now, Log: a.log, Hook: hook,
	})
	image, err := a.sandboxImage(ctx, client)
	if err != nil {
		return nil, err
	}
	n.stats = a.newStats(n, cgroups, image)
	n.collector = a.newCollector(n)
	n.eviction = a.newEviction(n, cgroups)
	return n, nil
}

func (a *agent) credentialsFile() string {
	if a.cfg.Images.CredentialsFile != "" {
		return a.cfg.Images.CredentialsFile
	}
	return a.statePath("config.json")
}

// sandboxImage is what the runtime makes sandboxes from.
func (a *agent) sandboxImage(ctx context.Context, client *runtime.Client) (string, error) {
	ref, err := client.SandboxImage(ctx)
	if ref == "" {
		ref = a.pauseImage()
	}
	return ref, err
}

// importPause puts our pause image where the runtime looks for its sandbox
// image, unless it has one, and keeps it from being collected: pods then start
// with no registry in reach.
func (a *agent) importPause(ctx context.Context, client *runtime.Client) error {
	ref, err := a.sandboxImage(ctx, client)
	if err != nil {
		return err
	}
	_, err = client.ImageStatus(ctx, ref)
	if errors.Is(err, errdefs.ErrNotFound) {
		var archive []byte
		if archive, err = pause.Archive(ref, goruntime.GOARCH); err == nil {
			_, err = client.ImportImages(ctx, bytes.NewReader(archive))
		}
	}
	if err != nil {
		return fmt.Errorf("sandbox image %s: %w", ref, err)
	}
	return client.PinImage(ctx, ref)
}

// keepPause brings the sandbox image back when somebody removed it, as
// `crictl rmi --prune` does on a containerd that knows no pinned images.
func (a *agent) keepPause(ctx context.Context, client *runtime.Client) (news bool) {
	ref, err := a.sandboxImage(ctx, client)
	if err == nil {
		_, err = client.ImageStatus(ctx, ref)
	}
	if !errors.Is(err, errdefs.ErrNotFound) {
		return false
	}
	if err := a.importPause(ctx, client); err != nil {
		a.log.Warn("cannot import the pause image again; will try again", "err", err)
		return false
	}
	a.log.Info("imported the pause image again: somebody removed it", "image", ref)
	return true
}

// importImages imports the archives that lie in the state folder.
func (a *agent) importImages(ctx context.Context, client *runtime.Client) (news bool) {
	done, err := images.ImportFolder(ctx, a.statePath(imagesDir), client)
	if err != nil && ctx.Err() == nil {
		a.log.Warn("cannot look for image archives", "err", err)
	}
	for _, d := range done {
		if d.Err != nil {
			a.log.Warn("cannot import an image archive", "file", d.File, "err", d.Err)
			a.nodeEvent(v1.EventTypeWarning, "ImageImportFailed", d.Err.Error())
			continue
		}
		news = true
		a.log.Info("imported images", "file", d.File, "images", d.Images)
	}
	return news
}
