// Package probe asks containers whether they have started, live and are ready,
// as kubelet v1.37 does: over HTTP, TCP or gRPC, or with a command inside the
// container. It also runs their hooks.
//
// A Pod holds the probes of one pod, one goroutine for each probe. What answers mean
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

// Kind is what a probe is for, in the words of kubelet's events and metrics.
type Kind string

// The kinds of probes.
const (
	Startup   Kind = "Startup"
	Liveness  Kind = "Liveness"
	Readiness Kind = "Readiness"
)

// of is a container's probe of that kind, or nil.
func (k Kind) of(c *v1.Container) *v1.Probe {
	switch k {
	case Startup:
		return c.StartupProbe
	case Liveness:
		return c.LivenessProbe
	default:
		return c.ReadinessProbe
	}
}

// Probed says that a container has a probe of any kind.
func Probed(c *v1.Container) bool {
	return c.StartupProbe != nil || c.LivenessProbe != nil || c.ReadinessProbe != nil
}

// Container is one that runs and has probes.
type Container struct {
	Spec *v1.Container
	ID   string
	// Host is the pod's address.
	Host string
	// Began is when the container's process did.
	Began time.Time
	// Known is what was known of this container before it is probed here for the
	// first time: an agent that restarts must not take back what it said.
	Known Result
}

// Result is what the probes of a container have come to.
type Result struct {
	// Started is true once the startup probe was good, and without one from the
	// beginning; only then the other probes begin.
	Started bool
	// Ready is the verdict of the readiness probe; without one it is Started.
	Ready bool
	// Failed is the kind of the probe that wants the container to be ended.
	Failed Kind
}

// Pod holds the probes of one pod. Its methods are for one goroutine.
type Pod struct {
	prober  *Prober
	ctx     context.Context
	cancel  context.CancelFunc
	changed func()
	probes  map[string]*probes // by container ID
	counted map[string]*v1.Pod // containers with metrics, by name
	wg      sync.WaitGroup
}

// probes are the probes of one container.
type probes struct {
	c      Container
	cancel context.CancelFunc
	// quiet ends the probes that may end the container.
	quiet context.CancelFunc

	mu     sync.Mutex
	pod    *v1.Pod
	result Result
}

// Start begins with no probes. changed is called whenever a result has changed;
// it must not wait for anything.
func (p *Prober) Start(ctx context.Context, changed func()) *Pod {
	ctx, cancel := context.WithCancel(ctx)
	return &Pod{prober: p, ctx: ctx, cancel: cancel, changed: changed, probes: map[string]*probes{}, counted: map[string]*v1.Pod{}}
}

// Update has exactly these containers probed; what is probed already goes on.
// A pod that is to end is asked only whether it is ready.
func (p *Pod) Update(desired *v1.Pod, running []Container) {
	wanted := make(map[string]bool, len(running))
	for _, c := range running {
		wanted[c.ID] = true
		if p.probes[c.ID] == nil {
			p.begin(c, desired)
		}
	}
	for id, r := range p.probes {
		if !wanted[id] {
			r.cancel()
			delete(p.probes, id)
			continue
		}
		r.mu.Lock()
		r.pod = desired
		r.mu.Unlock()
		if desired.DeletionTimestamp != nil {
			r.quiet()
		}
	}
}

func (p *Pod) begin(c Container, desired *v1.Pod) {
	ctx, cancel := context.WithCancel(p.ctx)
	quiet, hush := context.WithCancel(ctx)
	c.Known.Started = c.Known.Started || c.Spec.StartupProbe == nil
	c.Known.Ready = c.Known.Started && (c.Known.Ready || c.Spec.ReadinessProbe == nil)
	r := &probes{c: c, cancel: cancel, quiet: hush, pod: desired, result: c.Known}
	p.probes[c.ID], p.counted[c.Spec.Name] = r, desired
	p.wg.Go(func() {
		if !c.Known.Started && !p.prober.run(quiet, r, Startup, p.changed) {
			return
		}
		if c.Spec.LivenessProbe != nil {
			p.wg.Go(func() { p.prober.run(quiet, r, Liveness, p.changed) })
		}
		if c.Spec.ReadinessProbe != nil {
			p.prober.run(ctx, r, Readiness, p.changed)
		}
	})
}

// Result is what is known of a container that is probed.
func (p *Pod) Result(id string) Result {
	r := p.probes[id]
	if r == nil {
		return Result{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.result
}

// Stop ends all probes and waits for them.
func (p *Pod) Stop() {
	p.cancel()
	p.wg.Wait()
	for name, desired := range p.counted {
		p.prober.o.Metrics.ProbesEnded(desired, name)
	}
}

func (r *probes) desired() *v1.Pod {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pod
}

// settle takes over a verdict and says whether it is news, and the last word of
// its probe: a container that has started is not asked again whether it has,
// and one that is to be ended is left alone until then.
func (r *probes) settle(k Kind, good bool) (news, last bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.result
	switch {
	case k == Readiness:
		r.result.Ready = good
	case !good:
		r.result.Failed = k
	case k == Startup:
		r.result.Started, r.result.Ready = true, r.c.Spec.ReadinessProbe == nil
	}
	return r.result != was, k == Startup || k == Liveness && !good
}

// run makes one probe of a container until it has said its last word, which it
// returns, or ctx ends.
func (p *Prober) run(ctx context.Context, r *probes, k Kind, changed func()) bool {
	spec := k.of(r.c.Spec)
	// Alive until it shows otherwise; neither started nor not.
	st := state{good: k == Liveness || k == Readiness && r.c.Known.Ready}
	var began time.Time
	for {
		select {
		case <-ctx.Done():
			return false
		case <-p.o.After(wait(spec, Period(r.desired(), r.c.Spec.Name, k), r.c.Began, began, p.o.Clock())):
		}
		began = p.o.Clock()
		a := p.ask(ctx, r.c, spec)
		if ctx.Err() != nil {
			return false // the answer may be that of a container that is being killed
		}
		p.report(r, k, a, p.o.Clock().Sub(began))
		if a.err != nil {
			continue // the question could not be put: that says nothing of the container
		}
		if st = st.after(a.good, spec); !st.settled {
			continue
		}
		news, last := r.settle(k, st.good)
		if news {
			changed()
		}
		if last {
			return st.good
		}
	}
}

// report tells users what a probe said, in kubelet's words.
func (p *Prober) report(r *probes, k Kind, a answer, took time.Duration) {
	desired, name := r.desired(), r.c.Spec.Name
	event := func(reason, format string, args ...any) {
		p.o.Recorder.PodEvent(desired, name, v1.EventTypeWarning, reason, string(k)+" "+fmt.Sprintf(format, args...))
	}
	switch {
	case a.err != nil:
		p.o.Log.Warn("cannot probe a container; will try again", "pod", pod.Describe(desired), "container", name, "probe", k, "err", a.err)
		event("Unhealthy", "probe errored and resulted in unknown state: %v", a.err)
		return
	case !a.good:
		event("Unhealthy", "probe failed: %s", a.output)
	case a.warning:
		event("ProbeWarning", "probe warning: %s", a.output)
	}
	p.o.Metrics.Probed(desired, name, string(k), a.good, took)
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
