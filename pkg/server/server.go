// Package server is the agent's local API: Kubernetes' own paths, verbs and
// shapes for Pods and Events over a unix socket (and over TCP with TLS and a
// token), the agent's own reads beside them, and health and metrics on a plain
// listener.
//
// The server keeps no state of its own: lists and watches are views of the
// store, logs are files, sessions are the runtime's.
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nodeagent/nodeagent/pkg/metrics"
	"github.com/nodeagent/nodeagent/pkg/server/fieldmanager"
	"github.com/nodeagent/nodeagent/pkg/server/openapi"
	"github.com/nodeagent/nodeagent/pkg/stats"
)

const (
	// maxBody is etcd's limit on an object, and so a cluster's.
	maxBody = 3 << 19
	// maxHeader holds the longest command lines that exec puts into its URL.
	maxHeader = 64 << 10

	readHeaderTimeout = 10 * time.Second
	readBodyTimeout   = 30 * time.Second
	writeTimeout      = 60 * time.Second
	idleTimeout       = 90 * time.Second
	shutdownTimeout   = 5 * time.Second

	// CVE-2020-8551 took kubelets down with many requests of moderate cost:
	// connections, short requests and long ones (watches, logs, sessions) are
	// each bounded. A short request waits a little for its turn.
	maxConnections = 512
	maxShort       = 32
	maxLong        = 256
	queueTimeout   = 5 * time.Second
)

// TCP is the API over TCP.
type TCP struct {
	Listen            string // host:port
	CertFile, KeyFile string // PEM; read again when they change
	TokenFile         string // one bearer token; root only; read again when it changes
	// Dir keeps what is made in place of files that are not given, Hosts are the
	// names and addresses that such a certificate is good for, besides loopback's.
	Dir   string
	Hosts []string
	// Optional says that nobody asked for the listener: an address that is taken
	// is no error.
	Optional bool
}

// Options is everything a Server needs. Log, Pods, Push, Resources, PushResources,
// Events, Streams, Node, NodeObject, Images and Stats are required.
type Options struct {
	Log     *slog.Logger
	Metrics *metrics.Metrics // may be nil

	// Socket is the path of the API's socket; empty: none.
	Socket string
	// TCP, when Listen is not empty, serves the same API to other machines.
	TCP TCP
	// Health is host:port for healthz, livez, readyz and metrics, without
	// authentication; empty: none.
	Health string

	NodeName  string
	Version   string // of the agent
	PodLogDir string

	Pods Pods
	Push Push
	// Amend changes pods of any source while they run.
	Amend Amender
	// Resources and PushResources are the same for other kinds.
	Resources     Resources
	PushResources PushResources
	Events        Events
	Streams       Streams
	Node          Node
	NodeObject    NodeObject
	Images        Images
	// Stats reads what the node and its pods use; an error until there is a runtime.
	Stats func() (*stats.Reader, error)
	// CPUs are the node's.
	CPUs int
	// Checks are added to the health paths.
	Checks []Check

	// Now defaults to time.Now.
	Now func() time.Time
	// Rand makes names for metadata.generateName; default crypto/rand.
	Rand io.Reader
}

// Server serves the API. Make it with New; Run it once.
type Server struct {
	o             Options
	log           *slog.Logger
	token         *tokenFile
	tls           *tls.Config
	short, long   chan struct{}
	scraping      chan struct{}
	bookmarkEvery time.Duration
	views         []*view
	snapshots     snapshots
	managers      fieldmanager.Managers

	mu        sync.Mutex
	addrs     map[string]net.Addr
	listening chan struct{}
	sessions  sync.WaitGroup // connections that were taken over
	fresh     sync.Map       // net.Conns that have not asked for anything yet

	// ending is done when the server begins to stop: watches, followed logs and
	// sessions end then, while short requests finish.
	ending context.Context
	end    context.CancelFunc
}

// New checks the options and reads the token and the certificate; it starts
// nothing.
func New(o Options) (*Server, error) {
	if o.Log == nil || o.Pods == nil || o.Push == nil || o.Resources == nil || o.PushResources == nil || o.Events == nil || o.Streams == nil || o.Node == nil || o.NodeObject == nil || o.Images == nil || o.Stats == nil {
		return nil, errors.New("server: an option that is required is missing")
	}
	o.defaults()
	s := &Server{
		o: o, log: o.Log, addrs: map[string]net.Addr{}, listening: make(chan struct{}),
		short: make(chan struct{}, maxShort), long: make(chan struct{}, maxLong), scraping: make(chan struct{}, 1), bookmarkEvery: time.Minute,
	}
	s.views, s.snapshots.now, s.managers.Schemas = s.makeViews(), o.Now, openapi.Schemas
	s.ending, s.end = context.WithCancel(context.Background())
	if o.TCP.Listen != "" {
		if err := s.secure(o.TCP); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Listening is closed once every listener accepts connections.
func (s *Server) Listening() <-chan struct{} { return s.listening }

// Addr is where a listener ("local", "tls", "health") listens; nil before
// Listening and for one that is off.
func (s *Server) Addr(kind string) net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addrs[kind]
}

// The kinds of listeners.
const (
	kindLocal  = "local"
	kindTLS    = "tls"
	kindHealth = "health"
)

// Run serves until ctx ends, then lets short requests finish, ends watches and
// sessions and removes the socket. It returns nil after an orderly end.
func (s *Server) Run(ctx context.Context) error {
	listeners, err := s.listen(ctx)
	if err != nil {
		for _, l := range listeners {
			_ = l.Close()
		}
		return err
	}
	close(s.listening)
	g, gctx := errgroup.WithContext(ctx)
	base := context.WithoutCancel(ctx)
	var servers []*http.Server
	for kind, l := range listeners {
		srv := s.httpServer(kind, base)
		servers = append(servers, srv)
		g.Go(func() error {
			var err error
			if kind == kindTLS {
				err = srv.ServeTLS(l, "", "")
			} else {
				err = srv.Serve(l)
			}
			if errors.Is(err, http.ErrServerClosed) {
				return nil
			}
			return fmt.Errorf("%s API: %w", kind, err)
		})
	}
	g.Go(func() error {
		<-gctx.Done()
		s.end()
		stop, done := context.WithTimeout(context.WithoutCancel(gctx), shutdownTimeout)
		defer done()
		for _, srv := range servers {
			if err := srv.Shutdown(stop); err != nil {
				s.log.Warn("API: requests did not end in time and are cut off", "err", err)
				_ = srv.Close()
			}
		}
		return nil
	})
	err = g.Wait()
	s.sessions.Wait()
	return err
}

// listen opens all listeners; on an error it returns those it opened.
func (s *Server) listen(ctx context.Context) (map[string]net.Listener, error) {
	listeners := map[string]net.Listener{}
	if s.o.Socket != "" {
		l, err := listenUnix(s.o.Socket)
		if err != nil {
			return listeners, err
		}
		listeners[kindLocal] = newLimitListener(l, maxConnections)
	}
	for kind, addr := range map[string]string{kindTLS: s.o.TCP.Listen, kindHealth: s.o.Health} {
		if addr == "" {
			continue
		}
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", addr)
		if err != nil && kind == kindTLS && s.o.TCP.Optional {
			s.log.Warn("kubectl cannot reach this agent: choose another address with api.listen, or none", "err", err)
			continue
		}
		if err != nil {
			setting := map[string]string{kindTLS: "api.listen", kindHealth: "--listen"}[kind]
			return listeners, fmt.Errorf("the %s API cannot listen: %w: stop what does there, or choose another address with %s", kind, err, setting)
		}
		listeners[kind] = newLimitListener(l, maxConnections)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for kind, l := range listeners {
		s.addrs[kind] = l.Addr()
	}
	return listeners, nil
}

func (s *Server) httpServer(kind string, base context.Context) *http.Server {
	srv := &http.Server{
		Handler:           s.Handler(kind),
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return base },
		ConnContext:       withPeer,
		ConnState:         s.connState,
		Protocols:         new(http.Protocols),
	}
	srv.RegisterOnShutdown(s.closeFresh)
	// HTTP/1 alone: sessions take connections over, which HTTP/2 cannot, and
	// its stream floods (CVE-2023-44487) do not concern us then.
	srv.Protocols.SetHTTP1(true)
	if kind == kindTLS {
		srv.TLSConfig = s.tls
	}
	return srv
}

func (s *Server) connState(c net.Conn, st http.ConnState) {
	if st == http.StateNew {
		s.fresh.Store(c, nil)
	} else {
		s.fresh.Delete(c)
	}
}

// closeFresh closes connections that clients such as kubectl open in advance:
// http.Server.Shutdown would wait five seconds for their first request.
func (s *Server) closeFresh() {
	s.fresh.Range(func(c, _ any) bool {
		_ = c.(net.Conn).Close()
		return true
	})
}
