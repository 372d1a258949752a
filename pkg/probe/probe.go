// Package probe asks containers whether they are well, as kubelet v1.37 does:
// over HTTP, TCP or gRPC, or with a command inside the container.
//
// A Pod holds the probes of one pod, one goroutine for each. What answers mean
// is a pure function of the answers so far (state.go); how to ask is in a file
// for each way.
package probe

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// Runtime runs commands in containers. The error is context.DeadlineExceeded
// when the command takes longer than timeout.
type Runtime interface {
	ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (stdout, stderr []byte, exit int32, err error)
}

// Recorder records events about a container.
type Recorder interface {
	PodEvent(pod *v1.Pod, container, eventType, reason, message string)
}

// Metrics counts probes.
type Metrics interface {
	// Probed counts one probe of that kind ("Readiness").
	Probed(p *v1.Pod, container, kind string, good bool, took time.Duration)
	// ProbesEnded forgets what was counted for a container.
	ProbesEnded(p *v1.Pod, container string)
}

// Options are what probes need; all parts are required.
type Options struct {
	Runtime  Runtime
	Recorder Recorder
	Metrics  Metrics
	Clock    func() time.Time
	// After is time.After: the channel delivers once d has passed.
	After func(d time.Duration) <-chan time.Time
	Log   *slog.Logger
}

// Prober makes the probes of all pods.
type Prober struct {
	o         Options
	transport *http.Transport
}

// New makes a prober; nothing is probed until Start and Update.
func New(o Options) *Prober { return &Prober{o: o, transport: newTransport()} }

// Container is one that runs and has a readiness probe.
type Container struct {
	Spec *v1.Container
	ID   string
	// Host is the pod's address.
	Host    string
	Started time.Time
	// Ready is what was known of this container before it is probed here for the
	// first time: an agent that restarts must not take back what it said.
	Ready bool
}

// Pod holds the probes of one pod. Its methods are for one goroutine.
type Pod struct {
	prober  *Prober
	ctx     context.Context
	cancel  context.CancelFunc
	changed func()
	probes  map[string]*readiness // by container ID
	counted map[string]*v1.Pod    // containers with metrics, by name
	wg      sync.WaitGroup
}

// readiness is the readiness probe of one container.
type readiness struct {
	pod    *v1.Pod
	name   string
	cancel context.CancelFunc

	mu    sync.Mutex
	ready bool
}

// Start begins with no probes. changed is called whenever a container has
// become ready or unready; it must not wait for anything.
func (p *Prober) Start(ctx context.Context, changed func()) *Pod {
	ctx, cancel := context.WithCancel(ctx)
	return &Pod{prober: p, ctx: ctx, cancel: cancel, changed: changed, probes: map[string]*readiness{}, counted: map[string]*v1.Pod{}}
}

// Update has exactly these containers probed; what is probed already goes on.
func (p *Pod) Update(desired *v1.Pod, running []Container) {
	wanted := make(map[string]bool, len(running))
	for _, c := range running {
		wanted[c.ID] = true
		if p.probes[c.ID] != nil {
			continue
		}
		ctx, cancel := context.WithCancel(p.ctx)
		r := &readiness{pod: desired, name: c.Spec.Name, cancel: cancel, ready: c.Ready}
		p.probes[c.ID], p.counted[r.name] = r, desired
		p.wg.Go(func() { p.prober.run(ctx, r, c, p.changed) })
	}
	for id, r := range p.probes {
		if !wanted[id] {
			r.cancel()
			delete(p.probes, id)
		}
	}
}

// Ready says whether a container that is probed is ready.
func (p *Pod) Ready(id string) bool {
	r := p.probes[id]
	if r == nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ready
}

// Stop ends all probes and waits for them.
func (p *Pod) Stop() {
	p.cancel()
	p.wg.Wait()
	for name, desired := range p.counted {
		p.prober.o.Metrics.ProbesEnded(desired, name)
	}
}

// run probes one container until ctx ends.
func (p *Prober) run(ctx context.Context, r *readiness, c Container, changed func()) {
	spec := c.Spec.ReadinessProbe
	st := state{good: c.Ready}
	var began time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.o.After(wait(spec, c.Started, began, p.o.Clock())):
		}
		began = p.o.Clock()
		a := p.ask(ctx, c, spec)
		if ctx.Err() != nil {
			return // the answer may be that of a container that is being killed
		}
		p.report(r, a, p.o.Clock().Sub(began))
		if a.err != nil {
			continue // the question could not be put: that says nothing of the container
		}
		was := st.good
		if st = st.after(a.good, spec); st.good != was {
			r.mu.Lock()
			r.ready = st.good
			r.mu.Unlock()
			changed()
		}
	}
}

// kind is how kubelet's events and metrics name the probe.
const kind = "Readiness"

// report tells users what a probe said, in kubelet's words.
func (p *Prober) report(r *readiness, a answer, took time.Duration) {
	event := func(reason, format string, args ...any) {
		p.o.Recorder.PodEvent(r.pod, r.name, v1.EventTypeWarning, reason, kind+" "+fmt.Sprintf(format, args...))
	}
	switch {
	case a.err != nil:
		p.o.Log.Warn("cannot probe a container; will try again", "pod", pod.Describe(r.pod), "container", r.name, "err", a.err)
		event("Unhealthy", "probe errored and resulted in unknown state: %v", a.err)
		return
	case !a.good:
		event("Unhealthy", "probe failed: %s", a.output)
	case a.warning:
		event("ProbeWarning", "probe warning: %s", a.output)
	}
	p.o.Metrics.Probed(r.pod, r.name, kind, a.good, took)
}

// answer is what a probe came to. err is set when it could not be made.
type answer struct {
	good, warning bool
	output        string
	err           error
}

func bad(format string, args ...any) answer { return answer{output: fmt.Sprintf(format, args...)} }

// tries is how often a probe is tried that cannot be made.
const tries = 3

func (p *Prober) ask(ctx context.Context, c Container, spec *v1.Probe) (a answer) {
	for range tries {
		if a = p.askOnce(ctx, c, spec); a.err == nil || ctx.Err() != nil {
			break
		}
	}
	return a
}

func (p *Prober) askOnce(ctx context.Context, c Container, spec *v1.Probe) answer {
	timeout := seconds(spec.TimeoutSeconds)
	if spec.Exec != nil {
		return p.exec(ctx, c, spec.Exec, timeout)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	switch {
	case spec.HTTPGet != nil:
		return p.httpGet(ctx, c, spec.HTTPGet)
	case spec.TCPSocket != nil:
		return tcpSocket(ctx, c, spec.TCPSocket)
	case spec.GRPC != nil:
		return grpcHealth(ctx, c, spec.GRPC)
	default:
		return answer{err: fmt.Errorf("container %s has a probe without a handler", c.Spec.Name)}
	}
}
