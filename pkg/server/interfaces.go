package server

import (
	"context"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/server/api"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// Pods is the store as the API reads it. What it returns is shared and never
// changed by the server.
type Pods interface {
	// List is all pods, in a stable order, and the revision they are of.
	List() ([]store.Record, uint64)
	Get(key pod.Key) (store.Record, bool)
	// Revision grows with every change.
	Revision() uint64
	// Watch delivers every change after revision since, in order, until ctx ends
	// or the reader falls behind the history; then the channel is closed. A
	// since that is older than the history, or of the future, is
	// errdefs.ErrExpired.
	Watch(ctx context.Context, since uint64) (<-chan store.Change, error)
}

// Resources is the store's objects that are no pods. What it returns is shared
// and never changed by the server.
type Resources interface {
	// Resources are all objects of a kind, in a stable order, and the revision
	// they are of.
	Resources(kind string) ([]store.Resource, uint64)
	Resource(kind string, key pod.Key) (store.Resource, bool)
	// WatchResources is as Pods.Watch, and of every kind.
	WatchResources(ctx context.Context, since uint64) (<-chan store.ResourceChange, error)
}

// PushResources is Push for objects that are no pods.
type PushResources interface {
	CreateResource(ctx context.Context, o manifest.Object) (store.Resource, error)
	UpdateResource(ctx context.Context, o manifest.Object, resourceVersion string) (store.Resource, error)
	DeleteResource(ctx context.Context, kind string, key pod.Key, uid types.UID, resourceVersion string) (store.Resource, error)
}

// Push accepts what clients write. Objects are validated by the server first;
// Push judges conflicts and keeps them across restarts.
type Push interface {
	// Create is errdefs.ErrExists when the key is taken.
	Create(ctx context.Context, o manifest.Object) (*v1.Pod, error)
	// Update is errdefs.ErrConflict when resourceVersion is not empty and not
	// the current one.
	Update(ctx context.Context, key pod.Key, o manifest.Object, resourceVersion string) (*v1.Pod, error)
	// Delete starts the pod's end; grace nil means the pod's own. A uid or
	// resourceVersion that is not empty must be the current one.
	Delete(ctx context.Context, key pod.Key, grace *int64, uid types.UID, resourceVersion string) (*v1.Pod, error)
}

// Events is the recorder's memory.
type Events interface {
	// List is all events, the one with the oldest news first, and the revision
	// they are of.
	List() ([]v1.Event, uint64)
	// Watch is as of Pods; a Count of 1 means that the event is new.
	Watch(ctx context.Context, since uint64) (<-chan v1.Event, error)
}

// Streams finds containers and opens sessions in them; the URLs are the
// runtime's streaming server's, good for one use.
type Streams interface {
	Pod(ctx context.Context, uid types.UID) (runtime.Pod, error)
	ExecURL(ctx context.Context, containerID string, cmd []string, o runtime.StreamOptions) (string, error)
	AttachURL(ctx context.Context, containerID string, o runtime.StreamOptions) (string, error)
	PortForwardURL(ctx context.Context, sandboxID string, ports []int32) (string, error)
}

// Node is what the agent tells of itself. Info and Sources answer from memory
// at once, as health checks use them; the others may ask the runtime.
type Node interface {
	Info() api.Info
	Sources() []api.Source
	Containers(ctx context.Context) ([]api.Container, error)
	Volumes(ctx context.Context) ([]api.Volume, error)
	// Config is the effective configuration, to be encoded as JSON or YAML.
	Config() any
	// Reload reads the configuration again. An error means that nothing was
	// changed.
	Reload(ctx context.Context) error
}

// NodeObject is the node as Kubernetes describes one.
type NodeObject interface {
	// Node is the object, which nobody changes, and the revision it is of.
	Node() (*v1.Node, uint64)
	// WatchNode is as Pods.Watch.
	WatchNode(ctx context.Context, since uint64) (<-chan *v1.Node, error)
	// Wish makes the node what a client wants, as far as that is the client's to
	// say, and returns it. It is errdefs.ErrConflict when the node is not of that
	// revision any more; dry changes nothing.
	Wish(want *v1.Node, resourceVersion string, dry bool) (*v1.Node, field.ErrorList, error)
}

// Images is the node's images.
type Images interface {
	// Images lists what is there and what is being pulled.
	Images(ctx context.Context) ([]api.Image, []api.PullProgress, error)
	// Pull fetches an image and calls progress now and then from this
	// goroutine, with Complete set at the end. It returns when the pull ends or
	// ctx does.
	Pull(ctx context.Context, image string, progress func(api.PullProgress)) error
}
