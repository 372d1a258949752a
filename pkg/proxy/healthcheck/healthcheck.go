// Package healthcheck answers load balancers: on the health-check node port of
// each Service with externalTrafficPolicy Local whether this node has endpoints
// of it, and on the proxy's own port whether the node may be sent anything at
// all. Answers are those of kube-proxy 1.37 (pkg/proxy/healthcheck there), byte
// for byte but for the times.
package healthcheck

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// retry is how often a port that could not be had is tried again.
const retry = 5 * time.Second

// Options of a Server.
type Options struct {
	// Addr is host:port of /healthz and /livez, as a rule 0.0.0.0:10256; "" is nowhere.
	Addr string
	// Timeout is for how long a change may wait for the kernel before the proxy
	// is unhealthy.
	Timeout time.Duration
	// Answered is told of each answer of /healthz and /livez, for metrics; may be nil.
	Answered func(path string, status int)
	// Failed is told that a Service's port could not be opened, once for each
	// time it starts to fail; may be nil.
	Failed func(check ruleset.HealthCheck, err error)
	// Listen is net.Listen, or a test's.
	Listen func(network, address string) (net.Listener, error)
	Now    func() time.Time
	// Tick gives the times to try again; nil is every five seconds.
	Tick <-chan time.Time
	Log  *slog.Logger
}

// Server listens while Run runs. It is safe for concurrent use.
type Server struct {
	opts Options
	wake chan struct{}
	wg   sync.WaitGroup // of what serves
	open map[netip.AddrPort]*http.Server
	main *http.Server
	// failing is what has been reported, of Services by address and of the main
	// port by the zero value.
	failing map[netip.AddrPort]bool

	mu       sync.Mutex
	want     map[netip.AddrPort]ruleset.HealthCheck
	clashes  map[netip.AddrPort]ruleset.HealthCheck // want the same: who was second
	health   health
	eligible bool
}

// New starts nothing. The node is eligible until SetNode says otherwise.
func New(o Options) *Server {
	if o.Listen == nil {
		o.Listen = net.Listen
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Answered == nil {
		o.Answered = func(string, int) {}
	}
	if o.Failed == nil {
		o.Failed = func(ruleset.HealthCheck, error) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{
		opts: o, wake: make(chan struct{}, 1), eligible: true,
		open: map[netip.AddrPort]*http.Server{}, failing: map[netip.AddrPort]bool{},
	}
}

// Sync says what is to be served from now on, on the addresses of the node that
// serve node ports. Of two checks with one port the first in the list has it.
// What stays the same is not interrupted.
func (s *Server) Sync(node ruleset.Node, checks []ruleset.HealthCheck) {
	want, clashes := map[netip.AddrPort]ruleset.HealthCheck{}, map[netip.AddrPort]ruleset.HealthCheck{}
	for _, c := range checks {
		for _, addr := range addresses(node, c.Family) {
			at := netip.AddrPortFrom(addr, c.Port)
			if _, taken := want[at]; taken {
				clashes[at] = c
				continue
			}
			want[at] = c
		}
	}
	s.mu.Lock()
	s.want, s.clashes = want, clashes
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default: // Run looks anyway
	}
}

// addresses are those of a family that serve node ports. 127.0.0.1 is within
// the unspecified address.
func addresses(node ruleset.Node, family netip.Addr) (out []netip.Addr) {
	for _, a := range node.NodePortAddresses {
		switch {
		case a == family:
			return []netip.Addr{family}
		case a.Is4() == family.Is4():
			out = append(out, a)
		}
	}
	if node.LoopbackNodePorts && family.Is4() {
		out = append(out, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
	}
	return out
}

// Run opens and closes ports as Sync says until the context ends, and tries
// again where a port could not be had.
func (s *Server) Run(ctx context.Context) error {
	tick := s.opts.Tick
	if tick == nil {
		t := time.NewTicker(retry)
		defer t.Stop()
		tick = t.C
	}
	defer s.close()
	for {
		s.reconcile()
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-tick:
		}
	}
}

func (s *Server) close() {
	for _, server := range s.open {
		server.Close()
	}
	if s.main != nil {
		s.main.Close()
	}
	s.wg.Wait()
}

func (s *Server) reconcile() {
	if s.main == nil && s.opts.Addr != "" {
		mux := http.NewServeMux()
		mux.HandleFunc("/healthz", s.healthz)
		mux.HandleFunc("/livez", s.livez)
		var err error
		if s.main, err = s.listen("tcp", s.opts.Addr, mux); s.news(netip.AddrPort{}, err) {
			s.opts.Log.Error("the proxy's health is not served: it is tried again", "address", s.opts.Addr, "error", err)
		}
	}
	s.mu.Lock()
	want, clashes := s.want, s.clashes
	s.mu.Unlock()
	for at, server := range s.open {
		if _, wanted := want[at]; !wanted {
			server.Close()
			delete(s.open, at)
		}
	}
	for at := range s.failing {
		if _, wanted := want[at]; !wanted && at.IsValid() {
			delete(s.failing, at)
		}
	}
	for at, check := range want {
		err := s.serve(at)
		if second, clash := clashes[at]; clash && err == nil {
			err = fmt.Errorf("it is that of Service %s/%s already: give one of them another one", check.Namespace, check.Name)
			check = second
		}
		if s.news(at, err) {
			s.opts.Log.Error("a Service's health-check node port is not served: it is tried again",
				"service", check.Namespace+"/"+check.Name, "address", at, "error", err)
			s.opts.Failed(check, fmt.Errorf("health-check node port %s: %w", at, err))
		}
	}
}

// serve opens the port unless it is open.
func (s *Server) serve(at netip.AddrPort) error {
	if s.open[at] != nil {
		return nil
	}
	network := "tcp6"
	if at.Addr().Is4() {
		network = "tcp4"
	}
	server, err := s.listen(network, at.String(), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { s.service(w, at) }))
	if err == nil {
		s.open[at] = server
	}
	return err
}

// news says that it fails and did not before.
func (s *Server) news(at netip.AddrPort, err error) bool {
	if err == nil {
		delete(s.failing, at)
		return false
	}
	known := s.failing[at]
	s.failing[at] = true
	return !known
}

// listen serves until the server is closed.
func (s *Server) listen(network, addr string, h http.Handler) (*http.Server, error) {
	l, err := s.opts.Listen(network, addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("another program uses the port: %w", err)
	} else if err != nil {
		return nil, err
	}
	// Whoever reaches a node port may connect: nobody may hold a connection for nothing.
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(s.opts.Log.Handler(), slog.LevelDebug),
	}
	s.wg.Go(func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.opts.Log.Error("a health-check port ended", "address", addr, "error", err)
		}
	})
	return server, nil
}
