package testbed

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
)

// servedRegistry is a registry on the node's loopback interface. It keeps its
// port over a reboot, because hosts.toml names it.
type servedRegistry struct {
	handler http.Handler
	addr    string
	srv     *http.Server
	done    chan struct{}
}

// ServeRegistry serves a registry on the node's loopback interface and points
// the runtime's hosts.toml for the named registries to it. It returns the
// address ("127.0.0.1:PORT"), under which images can be named as well.
func (n *Node) ServeRegistry(h http.Handler, hosts ...string) string {
	n.t.Helper()
	r := &servedRegistry{handler: h, addr: "127.0.0.1:0"}
	n.regs = append(n.regs, r)
	if err := r.listen(n); err != nil {
		n.t.Fatal(err)
	}
	for _, host := range append(hosts, r.addr) {
		dir := n.Path("registry/" + host)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			n.t.Fatal(err)
		}
		toml := fmt.Sprintf("server = %q\n\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n",
			"http://"+r.addr, "http://"+r.addr)
		if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(toml), 0o644); err != nil {
			n.t.Fatal(err)
		}
	}
	return r.addr
}

func (r *servedRegistry) listen(n *Node) error {
	l, err := n.Listen("tcp", r.addr)
	if err != nil {
		return fmt.Errorf("listen for the registry: %w", err)
	}
	r.addr = l.Addr().String()
	r.srv, r.done = &http.Server{Handler: r.handler}, make(chan struct{})
	go func(srv *http.Server, l net.Listener, done chan struct{}) {
		_ = srv.Serve(l) // always ErrServerClosed
		close(done)
	}(r.srv, l, r.done)
	return nil
}

func (r *servedRegistry) stop() {
	if r.srv != nil {
		_ = r.srv.Close()
		<-r.done
		r.srv = nil
	}
}

// listenRegistries serves again what a reboot ended.
func (n *Node) listenRegistries() {
	n.t.Helper()
	for _, r := range n.regs {
		if err := r.listen(n); err != nil {
			n.t.Fatal(err)
		}
	}
}
