// Package store keeps the desired objects of this node and the status that
// was computed for them.
//
// It merges the full snapshots of several sources, keeps one revision counter,
// a bounded history and watches (the local API's resourceVersion and ?watch
// are views of these), and a checkpoint on disk, so that a restarted agent
// knows what it ran before any source has answered.
//
// The rules that keep pods alive:
//   - a snapshot is complete: what it lacks is no longer wanted, but only by
//     the source that sent it;
//   - nothing goes on the word of a source that has not synced;
//   - objects of an origin (a file, a URL) that could not be read stay as they
//     are;
//   - a key (namespace/name) has one live pod: a replacement waits until the
//     pod worker has said that the old one has fully ended.
package store

import (
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// Names of sources, in the order of precedence when two of them name one pod.
const (
	SourceFile = "file"
	SourceHTTP = "http"
	SourcePush = "api"
	// SourceAgent are objects that the agent itself derives from others, such as
	// the EndpointSlices of a Service's pods. They are not kept on the disk, and
	// give way to what a real source wants under the same name.
	SourceAgent = "agent"
)

// Snapshot is everything a source wants now.
type Snapshot struct {
	Objects []manifest.Object
	// Problems are what the user must see; Keep holds on to what an unreadable
	// origin said before.
	Problems []Problem
}

// Problem is something wrong with what a source offered.
type Problem struct {
	Origin string // file path or URL
	Object string // "Pod default/web" or empty
	Err    error
	// Keep is true when the origin as a whole could not be understood: objects
	// known from it stay as they are until it can be read again or is gone.
	Keep bool
}

// String names origin and object unless the error does.
func (p Problem) String() string {
	text := p.Err.Error()
	if p.Object != "" && !strings.Contains(text, p.Object) {
		text = p.Object + ": " + text
	}
	if p.Origin != "" && !strings.Contains(text, p.Origin) {
		text = p.Origin + ": " + text
	}
	return text
}

// Sink is where a source delivers. Both calls return quickly and may be made
// from any goroutine, but one at a time per source.
type Sink interface {
	// Apply replaces all that the source wanted before and marks it synced.
	Apply(source string, s Snapshot)
	// Fail says that the source was tried and could not be read at all; what it
	// wanted before stays. It counts as "tried", not as "synced".
	Fail(source string, err error)
}

// Record is one pod as the store knows it. Records are immutable: a change
// makes a new one. Callers must not modify what they are handed.
type Record struct {
	// Pod is the desired pod, with UID, resourceVersion, deletionTimestamp and
	// deletionGracePeriodSeconds set by the store, and .status as last computed.
	Pod *v1.Pod
	// Canonical and SpecHash as in manifest.Object.
	Canonical []byte
	SpecHash  string
	// Source is SourceFile, …; Origin the file or URL.
	Source, Origin string
	// Accepted is when the store first saw this UID.
	Accepted time.Time
}

// Resource is one object that is no pod, as the store knows it. It is as
// immutable as a Record.
type Resource struct {
	// Object is the object as everybody sees it: what the source wants, with what
	// SetResource wrote (or carried over from before a change of the manifest),
	// and with UID, resourceVersion, generation and creationTimestamp set by the
	// store.
	Object manifest.Resource
	// Wanted is what the source wants, defaulted, without what was allocated. It
	// is the same pointer for as long as that does not change.
	Wanted manifest.Resource
	// Resolved says that SetResource has written to the object, be it before a
	// restart: its allocations count.
	Resolved bool
	// Problem is why the object cannot be served; empty when it can.
	Problem string
	// Canonical as in manifest.Object.
	Canonical []byte
	// Source is SourceFile, …, or SourceAgent; Origin the file or URL.
	Source, Origin string
	// Accepted is when the store first saw this object, Order a number that grows
	// from one such object to the next, also over restarts: who came first.
	Accepted time.Time
	Order    uint64
}

// Kind is "Service", ….
func (r Resource) Kind() string { return manifest.KindOf(r.Object) }

// Key is the object's namespace and name.
func (r Resource) Key() pod.Key {
	return pod.Key{Namespace: r.Object.GetNamespace(), Name: r.Object.GetName()}
}

// ResourceChange is one step in the life of a Resource. Of a Deleted one,
// Resource is what was last known.
type ResourceChange struct {
	Type     string
	Resource Resource
	Revision uint64
}

// SourceState is what `nodeagent get sources` shows.
type SourceState struct {
	Name     string    `json:"name"`
	Target   string    `json:"target"` // folder, URL, socket
	Tried    bool      `json:"tried"`
	Synced   bool      `json:"synced"`
	LastSync time.Time `json:"lastSync,omitzero"`
	Objects  int       `json:"objects"`
	Error    string    `json:"error,omitempty"` // of the last attempt as a whole
	Problems []string  `json:"problems,omitempty"`
}

// Types of a Change, as in a Kubernetes watch.
const (
	Added    = "ADDED"
	Modified = "MODIFIED"
	Deleted  = "DELETED"
)

// Change is one step in the life of a record. Of a Deleted one, Record is what
// was last known.
type Change struct {
	Type     string
	Record   Record
	Revision uint64
}
