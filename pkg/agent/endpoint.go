package agent

import (
	"net"
	"strings"
	"time"
)

// sockets are where runtimes listen, in the order they are tried.
func sockets() []string {
	return []string{"/run/containerd/containerd.sock", "/run/crio/crio.sock", "/run/cri-dockerd.sock"}
}

// embeddedEndpoint asks for our own containerd; autoEndpoint for whatever the
// host has, else our own.
const (
	embeddedEndpoint = "embedded"
	autoEndpoint     = "auto"
)

// resolveEndpoint turns "auto" into the first socket that somebody listens on.
func resolveEndpoint(endpoint string) string {
	if endpoint != autoEndpoint {
		return endpoint
	}
	for _, path := range sockets() {
		c, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			c.Close()
			return "unix://" + path
		}
	}
	return embeddedEndpoint
}

func isEmbedded(endpoint string) bool { return strings.EqualFold(endpoint, embeddedEndpoint) }
