package testbed

import (
	"os"
	"path/filepath"
)

// The containerd versions that the node tier runs on.
const (
	Containerd16 = "1.6" // Debian's package
	Containerd24 = "2.4" // built from test/containerd2 by hack/build-containerd2.sh
	NoContainerd = "none"
)

// Option shapes a node.
type Option func(*settings)

type settings struct {
	containerd string
	images     bool
	registry   bool
	outside    bool
	tags       string
}

// WithContainerd picks the runtime: Containerd16, Containerd24 or NoContainerd
// (for tests of the embedded runtime). The default is what NODE_CONTAINERD
// says, else Containerd16.
func WithContainerd(version string) Option {
	return func(s *settings) { s.containerd = version }
}

// WithoutImages leaves the runtime without any image but the pause image.
func WithoutImages() Option { return func(s *settings) { s.images = false } }

// WithoutRegistry starts no loopback registry.
func WithoutRegistry() Option { return func(s *settings) { s.registry = false } }

// WithOutside adds a second network namespace that a veth pair joins to the
// node: OutsideIP is its address, NodeIP the node's. Traffic from it is what a
// client on the network is to a real node.
func WithOutside() Option { return func(s *settings) { s.outside = true } }

// WithBuildTags builds the agent with these tags (comma separated), for
// hooks that only a test build has.
func WithBuildTags(tags string) Option { return func(s *settings) { s.tags = tags } }

// Addresses of the veth pair that WithOutside makes.
const (
	NodeIP    = "192.0.2.1"
	OutsideIP = "192.0.2.2"
)

func newSettings(opts []Option) settings {
	s := settings{containerd: os.Getenv("NODE_CONTAINERD"), images: true, registry: true}
	if s.containerd == "" {
		s.containerd = Containerd16
	}
	for _, o := range opts {
		o(&s)
	}
	return s
}

// BuildDir is where the slow builds (containerd 2, kubelet) are kept between
// runs: NODEAGENT_BUILD_DIR, else /var/tmp/nodeagent-build.
func BuildDir() string {
	if d := os.Getenv("NODEAGENT_BUILD_DIR"); d != "" {
		return d
	}
	return "/var/tmp/nodeagent-build"
}

// containerdBin is the folder that comes first in PATH for that version; empty
// for what PATH has already.
func containerdBin(version string) string {
	if version == Containerd24 {
		return filepath.Join(BuildDir(), "containerd2")
	}
	return ""
}
