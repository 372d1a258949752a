// Package runtime is the only package that speaks CRI and containerd.
//
// Everything above it sees Pods as they are observed (this file) and asks for
// changes in terms of a core/v1 Pod; it never sees a CRI type. Every call is
// idempotent: stopping or removing what is gone succeeds.
package runtime

import (
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Pod is what the runtime shows for one pod UID: sandboxes and containers,
// running or dead, newest first.
type Pod struct {
	UID             types.UID
	Namespace, Name string
	Sandboxes       []Sandbox
	Containers      []Container
}

// Sandbox is one CRI pod sandbox.
type Sandbox struct {
	ID        string
	Attempt   uint32
	Ready     bool // SANDBOX_READY
	CreatedAt time.Time
	// IPs are the pod's addresses, primary first; empty for host network and
	// for a sandbox that is not ready.
	IPs         []string
	Labels      map[string]string
	Annotations map[string]string
}

// ContainerState follows CRI.
type ContainerState string

// The states of a container.
const (
	StateCreated ContainerState = "created"
	StateRunning ContainerState = "running"
	StateExited  ContainerState = "exited"
	StateUnknown ContainerState = "unknown"
)

// Container is one CRI container.
type Container struct {
	ID        string
	Name      string
	SandboxID string
	Attempt   uint32 // = restart count of the name
	Init      bool
	State     ContainerState
	// Interrupted goes with StateCreated: a start was cut short because the
	// caller died. Nothing ran, and the runtime will not start it again.
	Interrupted bool
	CreatedAt   time.Time
	// StartedAt and FinishedAt are zero while they have not happened.
	StartedAt, FinishedAt time.Time
	ExitCode              int32
	// Reason and Message are the runtime's: "OOMKilled", "Completed", "Error",
	// "StartError", …
	Reason, Message string
	// SpecImage is the image as the pod's spec wrote it when the container was
	// made, ImageRef the resolved digest reference, ImageID the runtime's id.
	SpecImage, ImageRef, ImageID string
	LogPath                      string
	// User is whom its first process began as; nil when the runtime does not tell.
	User                *v1.LinuxContainerUser
	Labels, Annotations map[string]string
}

// Sandbox returns the newest sandbox, or nil.
func (p *Pod) Sandbox() *Sandbox {
	if p == nil || len(p.Sandboxes) == 0 {
		return nil
	}
	return &p.Sandboxes[0]
}

// Newest returns the newest container of that name, or nil.
func (p *Pod) Newest(name string) *Container {
	if p == nil {
		return nil
	}
	for i := range p.Containers {
		if p.Containers[i].Name == name {
			return &p.Containers[i]
		}
	}
	return nil
}

// Event says that something about a pod changed. It is a hint only: the
// receiver looks at the current state.
type Event struct {
	UID types.UID // empty: anything may have changed, relist
	// At is when the runtime said it happened.
	At time.Time
}

// SandboxOptions is what a sandbox needs besides its Pod.
type SandboxOptions struct {
	Attempt      uint32
	LogDir       string // <pod-log-dir>/<namespace>_<name>_<uid>
	CgroupParent string
	DNS          DNS
	Hostname     string
	// Handler is the CRI runtime handler; empty for the default.
	Handler string
	// FirstUser is the first of the UserRange ids of the host that the pod's own
	// users are, its root first; 0: they are the host's own.
	FirstUser uint32
	// Overhead is what the sandbox itself takes.
	Overhead v1.ResourceList
}

// UserRange is how many users and groups a pod with its own has: all that 16
// bits can name.
const UserRange = 1 << 16

// DNS becomes the sandbox's resolv.conf.
type DNS struct {
	Servers, Searches, Options []string
}

// ContainerOptions is what a container needs besides its Pod and spec.
type ContainerOptions struct {
	SandboxID string
	// Sandbox is what the sandbox was made from; CRI wants it again.
	Sandbox SandboxOptions
	Attempt uint32
	Init    bool
	// ImageRef is the resolved image; the caller has pulled it.
	ImageRef string
	LogPath  string // relative to SandboxOptions.LogDir: <container>/<attempt>.log
	Mounts   []Mount
	Env      []EnvVar // expanded, in order
	Command  []string // expanded
	Args     []string // expanded
	OOMScore int64
	// Target is the container whose processes this one sees, by ID; empty: its
	// own, or the pod's.
	Target  string
	Devices []string
	// Groups are supplemental ones besides those of the pod's security context.
	Groups []int64
	// Annotations are set on the container besides the computed ones.
	Annotations map[string]string
}

// EnvVar is one resolved environment variable.
type EnvVar struct{ Name, Value string }

// Mount is one resolved bind mount into a container.
type Mount struct {
	Name          string // the volume's
	HostPath      string
	ContainerPath string
	ReadOnly      bool
	Propagation   string // None, HostToContainer, Bidirectional
	SELinux       bool   // ask the runtime to relabel
	// RecursiveReadOnly makes read-only what is mounted below, too.
	RecursiveReadOnly bool
	// Image is mounted instead of HostPath, or the part of it that ImageSubPath
	// names.
	Image, ImageSubPath string
}

// Info is what the runtime says of itself.
type Info struct {
	Name, Version, APIVersion string
	Endpoint                  string
	Ready, NetworkReady       bool
	// Reason says why it is not ready.
	Reason   string
	Handlers []string
	// CgroupDriver is "systemd" or "cgroupfs"; empty when the runtime does not say.
	CgroupDriver string
	// Events is how container events arrive: "cri" or "containerd" or "poll".
	Events string
	// Features are what not every runtime can.
	Features Features
}

// Features are what not every runtime can, and some ignore silently.
type Features struct {
	// SupplementalGroupsPolicy: groups of the image can be left out.
	SupplementalGroupsPolicy bool
	// UserNamespaces are the handlers that can give a pod users of its own; ""
	// is the default one.
	UserNamespaces []string
	// RecursiveReadOnly are the handlers that can make a mount read-only with
	// all that is mounted below it.
	RecursiveReadOnly []string
	// ImageVolumes: an image can be mounted. One that cannot takes it for a
	// mount of nothing.
	ImageVolumes bool
}

// Image is one image of the runtime.
type Image struct {
	ID          string
	RepoTags    []string
	RepoDigests []string
	Size        uint64
	Pinned      bool
	User        string
}

// Auth is one registry credential. Either Username and Password, or one of the
// tokens, is set.
type Auth struct {
	Username, Password string
	// Encoded is base64 of "user:password", as docker's config.json has it.
	Encoded       string
	ServerAddress string
	// IdentityToken and RegistryToken are OAuth2 tokens.
	IdentityToken, RegistryToken string
}

// StreamOptions says which streams an exec or attach session carries. With TTY
// there is no separate stderr.
type StreamOptions struct {
	Stdin, Stdout, Stderr, TTY bool
}
