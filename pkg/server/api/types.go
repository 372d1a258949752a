// Package api holds the JSON of the agent's own paths below
// /apis/nodeagent.dev/v1alpha1/. The command line imports this package and
// nothing else of the server.
//
// Every answer is a list kind with items, or an error as metav1.Status.
package api

import (
	"encoding/json"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Group and version of the agent's own kinds, and where they are served.
const (
	Group      = "nodeagent.dev"
	Version    = "v1alpha1"
	APIVersion = Group + "/" + Version
	Prefix     = "/apis/" + Group + "/" + Version + "/"
)

// The paths below Prefix.
const (
	PathSources    = "sources"     // GET: SourceList
	PathContainers = "containers"  // GET: ContainerList
	PathImages     = "images"      // GET: ImageList
	PathPull       = "images/pull" // POST PullRequest: a stream of PullProgress, one JSON object per line
	PathVolumes    = "volumes"     // GET: VolumeList
	PathInfo       = "info"        // GET: InfoList
	PathConfig     = "config"      // GET: the effective NodeAgentConfiguration
	PathReload     = "reload"      // POST: metav1.Status
)

// SourceList answers GET sources.
type SourceList struct {
	metav1.TypeMeta `json:",inline"`
	Items           []Source `json:"items"`
}

// Source is one source of desired pods.
type Source struct {
	Name   string `json:"name"`
	Target string `json:"target"` // folder, URL, socket
	// Tried: it was read once, well or not. Synced: it was read well once.
	Tried    bool      `json:"tried"`
	Synced   bool      `json:"synced"`
	LastSync time.Time `json:"lastSync,omitzero"`
	Objects  int       `json:"objects"`
	// Error is of the last attempt as a whole, Problems of single objects.
	Error    string   `json:"error,omitempty"`
	Problems []string `json:"problems,omitempty"`
}

// ContainerList answers GET containers.
type ContainerList struct {
	metav1.TypeMeta `json:",inline"`
	Items           []Container `json:"items"`
}

// Container is one container that the runtime shows for a pod of ours.
type Container struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	PodUID    string `json:"podUID"`
	SandboxID string `json:"sandboxID"`
	Image     string `json:"image"`
	ImageID   string `json:"imageID,omitempty"`
	// State is created, running, exited or unknown.
	State      string    `json:"state"`
	Attempt    uint32    `json:"attempt"`
	Init       bool      `json:"init,omitempty"`
	CreatedAt  time.Time `json:"createdAt,omitzero"`
	StartedAt  time.Time `json:"startedAt,omitzero"`
	FinishedAt time.Time `json:"finishedAt,omitzero"`
	ExitCode   int32     `json:"exitCode,omitempty"`
	Reason     string    `json:"reason,omitempty"`
	Message    string    `json:"message,omitempty"`
	LogPath    string    `json:"logPath,omitempty"`
}

// ImageList answers GET images. Pulls are the ones that run now.
type ImageList struct {
	metav1.TypeMeta `json:",inline"`
	Items           []Image        `json:"items"`
	Pulls           []PullProgress `json:"pulls,omitempty"`
}

// Image is one image on the node. Size is in bytes.
type Image struct {
	ID          string   `json:"id"`
	RepoTags    []string `json:"repoTags,omitempty"`
	RepoDigests []string `json:"repoDigests,omitempty"`
	Size        uint64   `json:"size"`
	Pinned      bool     `json:"pinned,omitempty"`
}

// PullRequest is the body of POST images/pull.
type PullRequest struct {
	Image string `json:"image"`
}

// PullProgress is one line of the answer to POST images/pull. The last line has
// Complete set, or Error. Done and Total are bytes; Total is 0 while unknown.
type PullProgress struct {
	Image    string    `json:"image"`
	Done     int64     `json:"done"`
	Total    int64     `json:"total"`
	Started  time.Time `json:"started,omitzero"`
	Complete bool      `json:"complete,omitempty"`
	// ID and Ref of the image once it is complete.
	ID    string `json:"id,omitempty"`
	Ref   string `json:"ref,omitempty"`
	Error string `json:"error,omitempty"`
}

// VolumeList answers GET volumes.
type VolumeList struct {
	metav1.TypeMeta `json:",inline"`
	Items           []Volume `json:"items"`
}

// Volume is one volume of one pod, as it is set up on the node.
type Volume struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	PodUID    string `json:"podUID"`
	Name      string `json:"name"`
	Kind      string `json:"kind"` // emptyDir, hostPath, …
	HostPath  string `json:"hostPath"`
	ReadOnly  bool   `json:"readOnly,omitempty"`
}

// InfoList answers GET info; it has one item.
type InfoList struct {
	metav1.TypeMeta `json:",inline"`
	Items           []Info `json:"items"`
}

// Info is what the agent says of itself and its node.
type Info struct {
	Version   string    `json:"version"`
	NodeName  string    `json:"nodeName"`
	Instance  string    `json:"instance"`
	StartedAt time.Time `json:"startedAt,omitzero"`
	Runtime   Runtime   `json:"runtime"`
	Network   Network   `json:"network"`
	Proxy     Proxy     `json:"proxy"`
	// Revision of the store, as in resourceVersion.
	Revision string `json:"revision"`
}

// Runtime is the container runtime's part of Info.
type Runtime struct {
	Name         string   `json:"name,omitempty"`
	Version      string   `json:"version,omitempty"`
	APIVersion   string   `json:"apiVersion,omitempty"`
	Endpoint     string   `json:"endpoint,omitempty"`
	Ready        bool     `json:"ready"`
	Reason       string   `json:"reason,omitempty"`
	Handlers     []string `json:"handlers,omitempty"`
	CgroupDriver string   `json:"cgroupDriver,omitempty"`
	// Events is how container events arrive: cri, containerd or poll.
	Events string `json:"events,omitempty"`
}

// Network is pod networking's part of Info.
type Network struct {
	Ready  bool   `json:"ready"`
	Reason string `json:"reason,omitempty"`
	// Name, Plugin and File of the CNI configuration that pods get.
	Name   string `json:"name,omitempty"`
	Plugin string `json:"plugin,omitempty"`
	File   string `json:"file,omitempty"`
}

// Proxy is how Services are served.
type Proxy struct {
	Mode   string `json:"mode,omitempty"` // empty: not chosen yet, or nobody's
	Ready  bool   `json:"ready"`
	Reason string `json:"reason,omitempty"`
	// LastSync is when the kernel was last told, and of how much.
	LastSync  time.Time `json:"lastSync,omitzero"`
	Services  int       `json:"services"`
	Frontends int       `json:"frontends"`
}

// TypeMeta of a kind of this group.
func TypeMeta(kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: APIVersion, Kind: kind}
}

// List is what every list of this group looks like to a reader that does not
// care which kind it is.
type List struct {
	metav1.TypeMeta `json:",inline"`
	Items           []json.RawMessage `json:"items"`
}
