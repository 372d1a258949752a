package images

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// Runtime is what pulling needs of the container runtime. Every call is
// idempotent.
type Runtime interface {
	// ImageStatus finds an image by tag, digest or id; errdefs.ErrNotFound when
	// the node does not have it.
	ImageStatus(ctx context.Context, ref string) (*runtime.Image, error)
	// PullImage fetches and unpacks; it returns the image's id. auth nil pulls
	// anonymously.
	PullImage(ctx context.Context, ref string, auth *runtime.Auth) (string, error)
	Images(ctx context.Context) ([]runtime.Image, error)
	RemoveImage(ctx context.Context, ref string) error
	// PullProgress is how far the running pull of ref is, in bytes; total is 0
	// while unknown. errdefs.ErrNotFound when nothing is being fetched.
	PullProgress(ctx context.Context, ref string) (done, total int64, err error)
}

// EventFunc records a core/v1 Event on a pod; eventType is Normal or Warning.
type EventFunc func(pod *v1.Pod, container, eventType, reason, message string)

// Options of a Manager. Runtime is required; zero values take the defaults.
type Options struct {
	Runtime Runtime
	// MaxParallel bounds pulls in flight. Default 4.
	MaxParallel int
	// Backoff and BackoffMax: 10 s doubling to 300 s per image and pod.
	Backoff, BackoffMax time.Duration
	// ProgressDeadline ends a pull that fetched no byte for that long. Default 5 min.
	ProgressDeadline time.Duration
	// Credentials are the node's; nil: none.
	Credentials *Keyring
	// PullSecrets are the pod's own, and the names of those that are not there;
	// nil: pods have none.
	PullSecrets func(p *v1.Pod) (found []*v1.Secret, missing []string)
	Clock       clock.Clock
	// Events and Wake may be nil. Both are called without a lock held and must not block.
	Events EventFunc
	// Wake says that the next Request of that pod may answer differently.
	Wake func(types.UID)
	Log  *slog.Logger
}

// Manager answers how far the image of a container is and pulls what lacks.
// Its methods may be called from any goroutine; pulls run while Run runs.
type Manager struct {
	opts Options

	mu sync.Mutex
	// containers is keyed by pod, container name; it holds the newest attempt only.
	containers map[containerKey]*containerState
	backoffs   map[backoffKey]*backoff
	pulls      map[pullKey]*pull
	queue      []*pull // waiting for a place, oldest first
	running    int
	kick       chan struct{} // capacity 1: Run looks at the queue and deadlines again
}

type containerKey struct {
	uid  types.UID
	name string
}

// containerState is what is remembered between two Requests of one container.
type containerState struct {
	attempt uint32
	ref     string // normalised
	pull    *pull  // the pull that it waits for, nil for none
	// pulledID is set when this attempt's own pull has succeeded (policy Always
	// is satisfied once per attempt).
	pulledID string
	// said is the last event that was sent for this attempt, so that asking
	// again does not repeat it.
	said string
}

type backoffKey struct {
	uid types.UID
	ref string
}

// lookAgain is how soon the runtime is asked again for an image that somebody
// else has to bring, by a pull or an import.
const lookAgain = 5 * time.Second

// backoff is the failure history of one image for one pod.
type backoff struct {
	delay   time.Duration
	flip    time.Time // ErrImagePull before, ImagePullBackOff from here on
	retryAt time.Time
	err     string
	// credentials is the fingerprint of what was tried; with others there is no
	// reason to wait.
	credentials string
	flipped     bool // Wake was called for flip
	retried     bool // Wake was called for retryAt
}

// New returns a Manager; nothing is pulled before Run.
func New(o Options) (*Manager, error) {
	if o.Runtime == nil {
		return nil, fmt.Errorf("images: no runtime given: %w", errdefs.ErrInvalid)
	}
	if o.MaxParallel <= 0 {
		o.MaxParallel = 4
	}
	if o.Backoff <= 0 {
		o.Backoff = 10 * time.Second
	}
	if o.BackoffMax <= 0 {
		o.BackoffMax = 300 * time.Second
	}
	o.BackoffMax = max(o.BackoffMax, o.Backoff)
	if o.ProgressDeadline <= 0 {
		o.ProgressDeadline = 5 * time.Minute
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	if o.Events == nil {
		o.Events = func(*v1.Pod, string, string, string, string) {}
	}
	if o.Wake == nil {
		o.Wake = func(types.UID) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Manager{
		opts:       o,
		containers: map[containerKey]*containerState{},
		backoffs:   map[backoffKey]*backoff{},
		pulls:      map[pullKey]*pull{},
		kick:       make(chan struct{}, 1),
	}, nil
}

// event is an event that waits for the lock to be released.
type event struct {
	pod                              *v1.Pod
	container, kind, reason, message string
}

func (m *Manager) send(evs []event) {
	for _, e := range evs {
		m.opts.Events(e.pod, e.container, e.kind, e.reason, e.message)
	}
}

// Request says how far the image of container c is for its start number
// attempt, and sees to it that a needed pull is under way. It makes one
// ImageStatus call at most and never waits for a registry; Wake announces that
// asking again is worth it.
func (m *Manager) Request(ctx context.Context, p *v1.Pod, c *v1.Container, attempt uint32) State {
	ref, err := Normalize(c.Image)
	key := containerKey{p.UID, c.Name}
	m.mu.Lock()
	cs := m.stateOf(key, attempt, ref)
	if err != nil {
		msg := fmt.Sprintf("Failed to apply default image tag %q: %v", c.Image, err)
		evs := cs.once(nil, p, c, v1.EventTypeWarning, "InspectFailed", msg)
		m.mu.Unlock()
		m.send(evs)
		return State{Reason: ReasonInvalidName, Message: msg}
	}
	if cs.pull != nil {
		s := cs.pull.state(c.Image)
		m.mu.Unlock()
		return s
	}
	pulledID := cs.pulledID
	m.mu.Unlock()

	find := ref
	if pulledID != "" {
		find = pulledID // a tag may have moved on since
	}
	img, err := m.opts.Runtime.ImageStatus(ctx, find)
	m.mu.Lock()
	s, evs := m.decide(p, c, key, attempt, ref, img, err)
	m.mu.Unlock()
	m.send(evs)
	return s
}

// stateOf returns the container's state for this attempt and reference,
// forgetting an older one.
func (m *Manager) stateOf(key containerKey, attempt uint32, ref string) *containerState {
	cs := m.containers[key]
	if cs == nil || cs.attempt != attempt || cs.ref != ref {
		if cs != nil && cs.pull != nil {
			m.leave(cs.pull, func(w *waiter) bool { return w.key == key })
		}
		cs = &containerState{attempt: attempt, ref: ref}
		m.containers[key] = cs
	}
	return cs
}

// once appends an event unless it was the last one said for this attempt.
func (cs *containerState) once(evs []event, p *v1.Pod, c *v1.Container, kind, reason, message string) []event {
	if said := reason + "\x00" + message; cs.said != said {
		cs.said = said
		evs = append(evs, event{p, c.Name, kind, reason, message})
	}
	return evs
}

// decide is Request's second half, after the runtime was asked; mu is held.
func (m *Manager) decide(p *v1.Pod, c *v1.Container, key containerKey, attempt uint32, ref string,
	img *runtime.Image, err error) (State, []event) {
	cs := m.stateOf(key, attempt, ref)
	if cs.pull != nil { // started by another Request meanwhile
		return cs.pull.state(c.Image), nil
	}
	if err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		msg := fmt.Sprintf("Failed to inspect image %q: %v", c.Image, err)
		return State{Reason: ReasonInspectFailed, Message: msg, RetryAt: m.opts.Clock.Now().Add(lookAgain)},
			cs.once(nil, p, c, v1.EventTypeWarning, "InspectFailed", msg)
	}
	if img != nil && err == nil && (policyOf(c) != v1.PullAlways || cs.pulledID != "") {
		delete(m.backoffs, backoffKey{p.UID, ref}) // it came by other ways
		var evs []event
		if cs.pulledID == "" {
			evs = cs.once(nil, p, c, v1.EventTypeNormal, "Pulled", fmt.Sprintf(
				"Container image %q already present on machine and can be accessed by the pod", c.Image))
		}
		return State{Ready: true, Ref: img.ID, ID: img.ID}, evs
	}
	if policyOf(c) == v1.PullNever {
		msg := fmt.Sprintf("Container image %q is not present with pull policy of Never", c.Image)
		return State{Reason: ReasonNeverPull, Message: msg, RetryAt: m.opts.Clock.Now().Add(lookAgain)},
			cs.once(nil, p, c, v1.EventTypeWarning, ReasonNeverPull, msg)
	}
	auths, missing, err := m.credentials(p, ref)
	tried := fingerprint(auths)
	if b := m.backoffs[backoffKey{p.UID, ref}]; b != nil && m.opts.Clock.Now().Before(b.retryAt) && b.credentials == tried {
		return m.waiting(b, cs, p, c)
	}
	cs.pulledID = ""
	var evs []event
	if len(missing) > 0 {
		evs = append(evs, event{p, "", v1.EventTypeWarning, "FailedToRetrieveImagePullSecret", fmt.Sprintf(
			"Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", strings.Join(missing, ", "))})
	}
	if err != nil {
		b := m.fail(backoffKey{p.UID, ref}, tried, err)
		s, more := m.waiting(b, cs, p, c)
		return s, slices.Concat(evs, failedEvents(p, c.Name, c.Image, err), more)
	}
	pl := m.join(ref, auths, &waiter{pod: p, container: c.Name, image: c.Image, key: key})
	cs.pull = pl
	cs.said = ""
	return pl.state(c.Image), append(evs, event{p, c.Name, v1.EventTypeNormal, "Pulling", fmt.Sprintf("Pulling image %q", c.Image)})
}
