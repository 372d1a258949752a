// Package events keeps the node's recent core/v1 Events, deduplicated with
// counts, for `nodeagent get events`, `describe` and the local API.
package events

import (
	"container/list"
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/journal"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

const (
	component = "nodeagent"
	// The limits of one object are those of client-go's spam filter: a burst,
	// then one in five minutes.
	defaultBurst  = 25
	defaultRefill = 5 * time.Minute
	defaultLimit  = 1000
	// maxMessage is the API server's limit for an event's message, in bytes.
	maxMessage = 1024
)

// ObjectRef says what an event is about.
type ObjectRef struct {
	Kind      string // "Pod", "Node"
	Namespace string // empty for a Node
	Name      string
	UID       types.UID
	FieldPath string // "spec.containers{web}", or empty
}

// Options of a recorder. The zero value of each field has a default.
type Options struct {
	NodeName string // where events come from
	// NodeUID is what events about the node refer to.
	NodeUID types.UID
	// Limit is how many events are kept, and how many changes watchers may lag
	// behind. Default 1,000.
	Limit int
	// Burst events about one object are shown as they come, then one every
	// Refill. Defaults 25 and 5 minutes.
	Burst  int
	Refill time.Duration
	// Revisions may be shared with the store. Default: a counter of its own.
	Revisions *journal.Counter
	Clock     func() time.Time
}

// Recorder holds the last events. All methods may be called from any
// goroutine and none of them waits for anything.
type Recorder struct {
	o       Options
	journal *journal.Journal[v1.Event]

	mu      sync.Mutex
	byTime  *list.List // of *record, the one that was longest without news first
	byKey   map[identity]*list.Element
	objects map[object]*bucket
}

// object is who a flood is attributed to.
type object struct {
	kind, namespace, name string
	uid                   types.UID
}

// identity is what makes two events one that happened twice.
type identity struct {
	ref                        ObjectRef
	eventType, reason, message string
}

type record struct {
	id    identity
	event v1.Event
}

// bucket holds the tokens of one object and how many of its events are kept.
type bucket struct {
	tokens float64
	at     time.Time
	kept   int
}

// New makes an empty recorder.
func New(o Options) *Recorder {
	if o.Limit == 0 {
		o.Limit = defaultLimit
	}
	if o.Burst == 0 {
		o.Burst = defaultBurst
	}
	if o.Refill == 0 {
		o.Refill = defaultRefill
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Revisions == nil {
		o.Revisions = journal.NewCounter(o.Clock())
	}
	return &Recorder{
		o: o, journal: journal.New[v1.Event](o.Revisions, o.Limit),
		byTime: list.New(), byKey: map[identity]*list.Element{}, objects: map[object]*bucket{},
	}
}

// PodEvent records what happened to a pod, or to a container of it when
// container is not empty. eventType is v1.EventTypeNormal or …Warning.
func (r *Recorder) PodEvent(p *v1.Pod, container, eventType, reason, message string) {
	ref := ObjectRef{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID}
	if container != "" {
		field := "containers"
		if _, init, _ := pod.Container(p, container); init {
			field = "initContainers"
		}
		ref.FieldPath = fmt.Sprintf("spec.%s{%s}", field, container)
	}
	r.Event(ref, eventType, reason, message)
}

// Event records what happened. The same thing again raises the count of the
// event that is there. During a flood about one object, repetitions are counted
// without telling watchers, and what is new is dropped.
func (r *Recorder) Event(ref ObjectRef, eventType, reason, message string) {
	if ref.Kind == "Node" && ref.UID == "" {
		ref.UID = r.o.NodeUID
	}
	id := identity{ref, eventType, reason, shorten(message)}
	now := r.o.Clock()
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.bucket(ref, now)
	known := r.byKey[id]
	calm := b.tokens >= 1
	if calm {
		b.tokens--
	}
	switch {
	case known != nil:
		rec := known.Value.(*record)
		rec.event.Count++
		rec.event.LastTimestamp = metav1.NewTime(now)
		r.byTime.MoveToBack(known)
		if calm {
			r.publish(rec)
		}
	case calm:
		rec := &record{id: id, event: r.event(id, now)}
		r.byKey[id] = r.byTime.PushBack(rec)
		b.kept++
		r.publish(rec)
		r.shrink()
	}
}

// publish gives an event a revision and tells watchers; mu is held.
func (r *Recorder) publish(rec *record) {
	revision := r.o.Revisions.Next()
	rec.event.ResourceVersion = strconv.FormatUint(revision, 10)
	if rec.event.Name == "" {
		// As client-go names them, but for the number, which is unique here.
		rec.event.Name = fmt.Sprintf("%s.%x", rec.id.ref.Name, revision)
	}
	r.journal.Append(revision, rec.event)
}

func (r *Recorder) event(id identity, now time.Time) v1.Event {
	namespace := id.ref.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault // where events of nodes live
	}
	at := metav1.NewTime(now)
	return v1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, CreationTimestamp: at},
		InvolvedObject: v1.ObjectReference{
			APIVersion: "v1", Kind: id.ref.Kind, Namespace: id.ref.Namespace, Name: id.ref.Name, UID: id.ref.UID, FieldPath: id.ref.FieldPath,
		},
		Type: id.eventType, Reason: id.reason, Message: id.message,
		Source:              v1.EventSource{Component: component, Host: r.o.NodeName},
		ReportingController: component, ReportingInstance: r.o.NodeName,
		FirstTimestamp: at, LastTimestamp: at, Count: 1,
	}
}

// bucket returns the object's bucket with what has flowed into it by now.
func (r *Recorder) bucket(ref ObjectRef, now time.Time) *bucket {
	key := object{ref.Kind, ref.Namespace, ref.Name, ref.UID}
	b := r.objects[key]
	if b == nil {
		b = &bucket{tokens: float64(r.o.Burst), at: now}
		r.objects[key] = b
	}
	if d := now.Sub(b.at); d > 0 {
		b.tokens = min(float64(r.o.Burst), b.tokens+float64(d)/float64(r.o.Refill))
	}
	b.at = now
	return b
}

// shrink forgets the oldest events, and the buckets of objects that have none
// left: so there are never more buckets than events.
func (r *Recorder) shrink() {
	for r.byTime.Len() > r.o.Limit {
		rec := r.byTime.Remove(r.byTime.Front()).(*record)
		delete(r.byKey, rec.id)
		key := object{rec.id.ref.Kind, rec.id.ref.Namespace, rec.id.ref.Name, rec.id.ref.UID}
		if b := r.objects[key]; b != nil {
			if b.kept--; b.kept == 0 {
				delete(r.objects, key)
			}
		}
	}
}

// List returns the events, the one with the oldest news first, and the revision
// they are of.
func (r *Recorder) List() ([]v1.Event, uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]v1.Event, 0, r.byTime.Len())
	for el := r.byTime.Front(); el != nil; el = el.Next() {
		out = append(out, el.Value.(*record).event)
	}
	return out, r.o.Revisions.Current()
}

// Watch delivers every event that is new or happened again after revision
// since, until ctx ends or the reader falls behind; then the channel is closed.
// A Count of 1 means that it is new. A since of 0 begins with all that are
// kept; one that is older than the history is errdefs.ErrExpired.
func (r *Recorder) Watch(ctx context.Context, since uint64) (<-chan v1.Event, error) {
	// Nothing is recorded while the lock is held: events and revision fit.
	r.mu.Lock()
	defer r.mu.Unlock()
	var initial []v1.Event
	if since == 0 {
		since = r.o.Revisions.Current()
		for el := r.byTime.Front(); el != nil; el = el.Next() {
			initial = append(initial, el.Value.(*record).event)
		}
	}
	return r.journal.Follow(ctx, since, initial)
}

// shorten cuts a message at the limit, between two characters.
func shorten(s string) string {
	const more = "…"
	if len(s) <= maxMessage {
		return s
	}
	cut := maxMessage - len(more)
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + more
}
