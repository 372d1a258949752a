package podworker

import (
	"context"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/images"
	"github.com/nodeagent/nodeagent/pkg/logs"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/store"
	"github.com/nodeagent/nodeagent/pkg/volumes"
)

// Store is what the workers need of the desired state.
type Store interface {
	Records() []store.Record
	ByUID(uid types.UID) (store.Record, bool)
	// SetStatus writes the status everybody sees; writing the same again is free.
	SetStatus(uid types.UID, st v1.PodStatus) error
	// Finished says that nothing of a deleted pod is left.
	Finished(uid types.UID) error
	// Synced says whether the source has delivered since the agent started, or
	// is no source any more.
	Synced(source string) bool
}

// Observer shows what runs.
type Observer interface {
	Pods(ctx context.Context) ([]runtime.Pod, error)
	Pod(ctx context.Context, uid types.UID) (runtime.Pod, error)
	Watch(ctx context.Context, fn func(runtime.Event)) error
}

// Sandboxes makes and ends sandboxes. Creating one that exists (same UID and
// attempt) returns it; ending one that is gone succeeds.
type Sandboxes interface {
	RunSandbox(ctx context.Context, pod *v1.Pod, o runtime.SandboxOptions) (string, error)
	StopSandbox(ctx context.Context, id string) error
	RemoveSandbox(ctx context.Context, id string) error
}

// Containers makes and ends containers, with the same idempotency.
type Containers interface {
	CreateContainer(ctx context.Context, pod *v1.Pod, c *v1.Container, o runtime.ContainerOptions) (string, error)
	StartContainer(ctx context.Context, id string) error
	StopContainer(ctx context.Context, id string, grace time.Duration) error
	RemoveContainer(ctx context.Context, id string) error
	// UpdateContainer gives a running container the CPU and memory of its spec.
	UpdateContainer(ctx context.Context, id string, pod *v1.Pod, c *v1.Container, oomScore int64) error
}

// Images answers how far an image is; it never waits for a registry.
type Images interface {
	Request(ctx context.Context, pod *v1.Pod, c *v1.Container, attempt uint32) images.State
	Forget(uid types.UID)
}

// Volumes sets up and takes down all of a pod's volumes.
type Volumes interface {
	SetUp(ctx context.Context, pod *v1.Pod) (map[string]volumes.Mounted, error)
	// Refresh brings what is set up in line with the objects it is made of.
	Refresh(ctx context.Context, pod *v1.Pod) error
	// ContainerMounts are the mounts of one container, of what SetUp returned.
	ContainerMounts(ctx context.Context, pod *v1.Pod, c *v1.Container, mounted map[string]volumes.Mounted, o volumes.MountOptions) ([]runtime.Mount, error)
	TearDown(ctx context.Context, uid types.UID) error
}

// Cgroups makes and removes the pod's own cgroup.
type Cgroups interface {
	Parent(pod *v1.Pod) string
	Ensure(ctx context.Context, pod *v1.Pod) error
	Remove(ctx context.Context, uid types.UID) error
}

// Network holds the collector of leaked addresses off while a sandbox is made.
type Network interface {
	// Creating returns once no collection runs; done lets it run again.
	Creating() (done func())
}

// Logs keeps the logs of running containers small.
type Logs interface {
	// Follow says which containers of a pod run, in place of what was said before.
	Follow(uid types.UID, running []logs.Container)
}

// Recorder records events about a pod; container is empty for the pod itself.
type Recorder interface {
	PodEvent(pod *v1.Pod, container, eventType, reason, message string)
}

// Metrics counts what dashboards show.
type Metrics interface {
	// ContainerStarted counts a start; reason is empty when it succeeded.
	ContainerStarted(init bool, reason string)
	SandboxStarted(err error)
	PodStarted(took time.Duration)
	// PodWorker measures one pass of a worker: create is its first, sync any other.
	PodWorker(operation string, took time.Duration)
	// ExitHandled is how long after a container's exit its worker decided.
	ExitHandled(late time.Duration)
	Relisted(took time.Duration)
	Running(pods int, containers map[string]int)
}
