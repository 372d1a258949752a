package agent

// sockets are where runtimes listen, in the order they are tried when the
// configuration leaves the choice to us.
func sockets() []string {
	return []string{"/run/containerd/containerd.sock", "/run/crio/crio.sock", "/run/cri-dockerd.sock"}
}
