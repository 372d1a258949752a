// Package agent is the composition root: it builds every component from a
// validated configuration and runs them. It is the only package that knows
// them all; none of them knows it.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"reflect"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/cni"
	"github.com/nodeagent/nodeagent/pkg/config"
	"github.com/nodeagent/nodeagent/pkg/events"
	"github.com/nodeagent/nodeagent/pkg/journal"
	"github.com/nodeagent/nodeagent/pkg/metrics"
	nodeapi "github.com/nodeagent/nodeagent/pkg/node"
	"github.com/nodeagent/nodeagent/pkg/podworker"
	"github.com/nodeagent/nodeagent/pkg/proxy"
	"github.com/nodeagent/nodeagent/pkg/proxy/healthcheck"
	"github.com/nodeagent/nodeagent/pkg/runtime/embedded"
	"github.com/nodeagent/nodeagent/pkg/shutdown"
	"github.com/nodeagent/nodeagent/pkg/source/apiserver"
	"github.com/nodeagent/nodeagent/pkg/source/push"
	"github.com/nodeagent/nodeagent/pkg/store"
	"github.com/nodeagent/nodeagent/pkg/volumes"
)

// Build identifies the binary.
type Build struct{ Version, Commit string }

// Options are what a run needs besides its configuration.
type Options struct {
	Build Build
	// Load reads the configuration again.
	Load func() (*config.NodeAgentConfiguration, error)
	// Reload asks for Load and a change to what it returns.
	Reload <-chan os.Signal
	// LogTo receives the log.
	LogTo io.Writer
}

// errReload ends one run so that the next begins with another configuration.
var errReload = errors.New("reload")

// Run runs the agent until ctx ends. Pods go on running afterwards.
//
// A reload is a restart within the process: every component ends and begins
// again with the new configuration, on the same path that a crash takes. A
// configuration that does not load changes nothing, and one with which the
// agent does not come up (an address in use, a certificate that is not there)
// is given up for the old one.
func Run(ctx context.Context, cfg *config.NodeAgentConfiguration, o Options) error {
	log, err := newLogger(cfg.Log, o.LogTo)
	if err != nil {
		return err
	}
	unlock, err := lockState(cfg.StateDir)
	if err != nil {
		return err
	}
	defer unlock()
	service := systemd{log: log}
	defer service.stopping()
	var old *agent // the run before a reload
	var failed error
	for {
		a, err := newAgent(cfg, o, log)
		if err == nil {
			if failed != nil {
				a.nodeEvent(v1.EventTypeWarning, "InvalidConfiguration", failed.Error())
			}
			err = a.run(ctx)
		}
		switch {
		case errors.Is(err, errReload):
			old, failed = a, nil
			cfg, log = a.next, a.nextLog
		case err != nil && old != nil && (a == nil || !a.up.Load()):
			cfg, log, failed, old = old.cfg, old.log, err, nil
			log.Error("the agent does not come up with the new configuration; it goes back to the old one", "err", err)
		default:
			if err == nil {
				log.Info("stopped; pods keep running")
			}
			return err
		}
		service.log = log
	}
}

// agent is one run with one configuration.
type agent struct {
	cfg      *config.NodeAgentConfiguration
	o        Options
	log      *slog.Logger
	instance string
	started  time.Time
	endpoint string // of the runtime: the configured one, or what "auto" came to before

	metrics    *metrics.Metrics
	events     *events.Recorder
	store      *store.Store
	push       *push.Source
	cluster    *apiserver.Source // nil without a kubeconfig
	proxy      *proxy.Proxy
	health     *healthcheck.Server
	cni        *cni.Manager
	volumes    *volumes.Manager
	supervisor *embedded.Supervisor // nil unless the runtime is our own

	// node is set once the runtime has answered.
	node atomic.Pointer[node]
	// pressure is what the node runs short of.
	pressure atomic.Pointer[[]v1.NodeConditionType]
	shutdown *shutdown.Manager // nil: the host's shutdown does not wait for pods
	// idle is set while no runtime is needed.
	idle atomic.Bool
	// up is set once the agent is ready for the first time.
	up         atomic.Bool
	nodeObject *nodeapi.Keeper
	// unenforced is why limits of the node are not enforced; empty: they are.
	unenforced atomic.Pointer[string]
	// seen is what Info and the health paths answer from.
	seen atomic.Pointer[conditions]
	// reload carries requests over the API; the answer is sent back.
	reload  chan chan error
	again   chan struct{} // asks for a new run with the same configuration
	next    *config.NodeAgentConfiguration
	nextLog *slog.Logger
}

func newAgent(cfg *config.NodeAgentConfiguration, o Options, log *slog.Logger) (*agent, error) {
	name, err := instance(cfg.StateDir, cfg.NodeName)
	if err != nil {
		return nil, err
	}
	a := &agent{cfg: cfg, o: o, log: log, instance: name, started: time.Now(), reload: make(chan chan error), again: make(chan struct{})}
	if err := a.checkResources(); err != nil {
		return nil, err
	}
	a.metrics = metrics.New(metrics.Build{Version: o.Build.Version, Revision: o.Build.Commit, NodeName: cfg.NodeName})
	revisions := journal.NewCounter(time.Now())
	a.nodeObject = nodeapi.NewKeeper(revisions, time.Now)
	a.keepWishes()
	a.recallPressure()
	a.events = events.New(events.Options{NodeName: cfg.NodeName, NodeUID: a.nodeUID(), Revisions: revisions, Clock: time.Now})
	a.shutdown = a.newShutdown()
	a.see(&conditions{runtimeReason: notAnswered, networkReason: notLooked})
	if a.store, err = a.openStore(revisions); err != nil {
		return nil, err
	}
	if a.endpoint, err = settleRuntime(cfg, len(a.store.Records()) > 0); err != nil {
		return nil, err
	}
	if a.push, err = a.newPush(); err != nil {
		return nil, err
	}
	if a.cni, err = a.newCNI(); err != nil {
		return nil, err
	}
	a.volumes = a.newVolumes()
	a.newProxy()
	a.cluster = a.newCluster()
	return a, nil
}

// run runs everything; it returns errReload when a reload was asked for and
// its configuration is good.
func (a *agent) run(ctx context.Context) error {
	srv, err := a.newServer()
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, r := range a.sources() {
		g.Go(func() error { return r.Run(ctx, a.store) })
	}
	g.Go(func() error { return a.runProxy(ctx) })
	if a.cluster != nil {
		g.Go(func() error { return a.cluster.Run(ctx) })
	}
	g.Go(func() error { return a.runServices(ctx) })
	g.Go(func() error { return a.keepNamespaces(ctx) })
	g.Go(func() error { return a.newClaims().Run(ctx) })
	g.Go(func() error { return srv.Run(ctx) })
	g.Go(func() error { return a.runNode(ctx) })
	g.Go(func() error { return a.housekeep(ctx) })
	g.Go(func() error { return a.reportProblems(ctx) })
	g.Go(func() error { return a.announce(ctx) })
	g.Go(func() error { return systemd{log: a.log}.watchdog(ctx, a.alive) })
	g.Go(func() error { return a.awaitReload(ctx) })
	g.Go(func() error { return trim(ctx, a.log) })
	err = g.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

// awaitReload ends the run once a request brings a configuration that is good.
func (a *agent) awaitReload(ctx context.Context) error {
	for {
		var answer chan error
		select {
		case <-ctx.Done():
			return nil
		case <-a.o.Reload:
		case answer = <-a.reload:
		case <-a.again:
			a.next, a.nextLog = a.cfg, a.log
			systemd{log: a.log}.reloading()
			return errReload
		}
		err := a.prepareReload()
		if answer != nil {
			answer <- err
		}
		if err != nil {
			a.log.Error("the configuration is not taken over; the old one stays", "err", err)
			a.nodeEvent(v1.EventTypeWarning, "InvalidConfiguration", err.Error())
			continue
		}
		a.log.Info("configuration re-read")
		systemd{log: a.log}.reloading()
		return errReload
	}
}

func (a *agent) prepareReload() error {
	cfg, err := a.o.Load()
	if err != nil {
		return err
	}
	for name, pair := range map[string][2]any{
		"stateDir":             {a.cfg.StateDir, cfg.StateDir},
		"runDir":               {a.cfg.RunDir, cfg.RunDir},
		"nodeName":             {a.cfg.NodeName, cfg.NodeName},
		"podLogDir":            {a.cfg.PodLogDir, cfg.PodLogDir},
		"containerLogDir":      {a.cfg.ContainerLogDir, cfg.ContainerLogDir},
		"runtime.cgroupRoot":   {a.cfg.Runtime.CgroupRoot, cfg.Runtime.CgroupRoot},
		"runtime.cgroupDriver": {a.cfg.Runtime.CgroupDriver, cfg.Runtime.CgroupDriver},
		"network.confDir":      {a.cfg.Network.ConfDir, cfg.Network.ConfDir},
	} {
		if !reflect.DeepEqual(pair[0], pair[1]) {
			return cannotChange(name, pair[0], pair[1])
		}
	}
	// Even without pods: one may come before the next run has read this again.
	if _, err := settleRuntime(cfg, true); err != nil {
		return err
	}
	log, err := newLogger(cfg.Log, a.o.LogTo)
	if err != nil {
		return err
	}
	a.next, a.nextLog = cfg, log
	return nil
}

// nodeEvent records an event about the node itself.
func (a *agent) nodeEvent(eventType, reason, message string) {
	a.events.Event(events.ObjectRef{Kind: "Node", Name: a.cfg.NodeName}, eventType, reason, message)
}

// alive says why the main loops hang, if they do. A runtime that does not
// answer is no hang: the loops come round all the same.
func (a *agent) alive(within time.Duration) error {
	a.store.Revision() // hangs when the store's lock is never given back
	if n := a.node.Load(); n != nil {
		if last := n.workers.LastRelist(); time.Since(last) > within+podworker.RelistPatience*a.cfg.Runtime.RelistInterval.Duration {
			return fmt.Errorf("the last relist began %s ago", time.Since(last).Round(time.Second))
		}
	}
	return nil
}

// announce tells systemd that the agent is up: its configuration is good, the
// runtime answers and every source was tried once. A source that has not
// synced holds nothing up: an API server may be one of our own pods.
func (a *agent) announce(ctx context.Context) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for a.node.Load() == nil && !a.idle.Load() || !a.allTried() {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
	a.up.Store(true)
	a.log.Info("ready", "node", a.cfg.NodeName, "took", time.Since(a.started).Round(time.Millisecond))
	systemd{log: a.log}.ready("running pods of " + a.cfg.NodeName)
	return nil
}
