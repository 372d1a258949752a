// Package cni owns the node's CNI network configuration: it writes a default
// network where there is none, validates what users put there, says whether
// pods can get addresses, and collects what crashes leaked. ADD and DEL of
// pods are the runtime's calls, never ours.
package cni

import (
	"context"
	"log/slog"
	"net/netip"
	"time"
)

// Options of a Manager. Empty fields take the defaults in brackets.
type Options struct {
	// ConfDir and BinDir are the runtime's: [/etc/cni/net.d] and
	// [/opt/cni/bin, else /usr/lib/cni when the plugins are there].
	ConfDir, BinDir string
	// CacheDir is where the runtime's libcni keeps the results of its ADD calls
	// [/var/lib/cni]; containerd has no setting for it.
	CacheDir string
	// DataDir is where host-local keeps the addresses of the network that we
	// write [/var/lib/cni/networks].
	DataDir string
	// PodCIDRs are the pods' ranges, one per family at most. Required.
	PodCIDRs []netip.Prefix
	// Bridge is the name of the default network's bridge [na0].
	Bridge string
	// Owner is the agent's instance name; it stands in the file we write.
	Owner string
	// MinAge keeps the collector away from addresses younger than this, for
	// runtimes whose sandboxes are also made by others [0].
	MinAge time.Duration
	// ProcRoot [/proc] and NetNSDir [/run/netns] are roots for tests.
	ProcRoot, NetNSDir string
	Log                *slog.Logger
}

// Attachment is one sandbox of the runtime, in any state, whoever made it.
type Attachment struct {
	SandboxID string
	IfName    string // empty: eth0
	NetNS     string // path; empty when unknown
	IPs       []string
}

// Network is one network configuration in ConfDir.
type Network struct {
	Name       string   `json:"name"`
	File       string   `json:"file"`
	Ours       bool     `json:"ours"`
	Active     bool     `json:"active"` // the one that the runtime uses for pods
	CNIVersion string   `json:"cniVersion"`
	Bridge     string   `json:"bridge,omitempty"`
	Plugins    []string `json:"plugins,omitempty"`
	CIDRs      []string `json:"cidrs,omitempty"`
	Error      string   `json:"error,omitempty"` // why it cannot be used
}

// Report is what a collection removed. Everything is sorted.
type Report struct {
	Attachments []string `json:"attachments,omitempty"` // "<container id>/<interface>", removed by the plugins' DEL
	Addresses   []string `json:"addresses,omitempty"`   // released by hand
	Links       []string `json:"links,omitempty"`       // bridge ports removed
	NetNS       []string `json:"netns,omitempty"`       // abandoned namespaces unmounted
	// Kept are attachments that no sandbox names but some process still lives in.
	Kept []string `json:"kept,omitempty"`
}

// LiveFunc lists every sandbox that the runtime knows, in any state and of any
// owner. It is called with the gate closed, so that no sandbox can appear
// between the list and the removal.
type LiveFunc func(ctx context.Context) ([]Attachment, error)
