// Package apiserver is the source that follows a Kubernetes API server: its
// Services and EndpointSlices, this node's Node and the ranges of Services. An
// API server that is away changes nothing; what it deleted meanwhile goes when
// it is back.
package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"

	"github.com/nodeagent/nodeagent/pkg/store"
)

// Name is the source's.
const Name = "apiserver"

// Sink takes what the proxy is made of. It keeps nothing that it is given.
type Sink interface {
	// Upsert and Delete are given *corev1.Service and *discoveryv1.EndpointSlice
	// objects; of a deleted one only namespace and name are sure.
	Upsert(object any)
	Delete(object any)
	// Batch calls f; what f says is taken up together.
	Batch(f func())
	// Synced is called after everything of an input was given, each time.
	Synced(input string)
	// SetNode is called when the Node is another one in what matters, with nil
	// when it was deleted; SetServiceCIDRs likewise.
	SetNode(node *corev1.Node)
	SetServiceCIDRs(ranges []netip.Prefix)
}

// Options are what a source needs; all are required but Poll and DialTimeout.
type Options struct {
	// Kubeconfig is a file; it need not be there yet.
	Kubeconfig string
	NodeName   string
	UserAgent  string
	Sink       Sink
	// Poll is how often the kubeconfig and the files it names are compared with
	// what is in use; 0: 5 s.
	Poll time.Duration
	// DialTimeout is how long a connection may take, with the name's lookup; 0: 5 s.
	DialTimeout time.Duration
	Clock       clock.WithTicker
	Log         *slog.Logger
}

// Source follows one API server.
type Source struct {
	o      Options
	inputs []*input

	mu     sync.Mutex
	server string
	config error // why the kubeconfig cannot be used
	failed bool  // as the log knows it
}

// New makes a source; Run starts it.
func New(o Options) *Source {
	if o.Poll <= 0 {
		o.Poll = 5 * time.Second
	}
	if o.DialTimeout <= 0 {
		o.DialTimeout = 5 * time.Second
	}
	s := &Source{o: o}
	s.inputs = newInputs(s)
	return s
}

// Inputs are the names that Synced is called with.
func Inputs() []string { return []string{Services, EndpointSlices, Nodes, ServiceCIDRs} }

// Run follows the API server until ctx ends, and then returns nil. It begins
// anew, without forgetting anything, when the kubeconfig or a certificate that
// it names has changed.
func (s *Source) Run(ctx context.Context) error {
	tick := s.o.Clock.NewTicker(s.o.Poll)
	defer tick.Stop()
	var used mark
	stop := func() {}
	defer func() { stop() }()
	for {
		s.settle(func() error {
			now, err := look(s.o.Kubeconfig)
			if err != nil || now.sum == used.sum {
				return err
			}
			cl, err := newClient(now.config, s.o)
			if err != nil {
				return fmt.Errorf("kubeconfig %s: %w", s.o.Kubeconfig, err)
			}
			stop()
			s.mu.Lock()
			s.server = now.config.Host
			s.mu.Unlock()
			used, stop = now, s.follow(ctx, cl)
			s.o.Log.Info("following the API server", "server", now.config.Host, "kubeconfig", s.o.Kubeconfig)
			return nil
		}())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C():
		}
	}
}

// follow starts a reflector for each input; stop ends and awaits them.
func (s *Source) follow(ctx context.Context, cl *client) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ctx = withLog(ctx, s.o.Log)
	var wg sync.WaitGroup
	for _, in := range s.inputs {
		wg.Go(func() {
			in.reflector(cl).RunWithContext(ctx)
			in.listing.Lock() // a list that has begun ends
			defer in.listing.Unlock()
		})
	}
	return func() {
		cancel()
		wg.Wait()
		cl.close()
	}
}

func (s *Source) settle(err error) {
	s.mu.Lock()
	s.config = err
	s.mu.Unlock()
	s.report()
}

// report logs what has become bad or good.
func (s *Source) report() {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.failureLocked()
	if (err != nil) == s.failed {
		return
	}
	s.failed = err != nil
	if s.failed {
		s.o.Log.Warn("cannot follow the API server; Services stay as they are", "err", err)
	} else {
		s.o.Log.Info("the API server answers again")
	}
}

func (s *Source) failureLocked() error {
	if s.config != nil {
		return s.config
	}
	for _, in := range s.inputs { // they fail together nearly always, for one reason
		if err := in.failure(); err != nil {
			return fmt.Errorf("%s: %w", in.name, err)
		}
	}
	return nil
}

// Err says why the API server is not followed now; nil: it is.
func (s *Source) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.failureLocked(); err != nil {
		return err
	}
	for _, in := range s.inputs {
		if synced, _, _ := in.progress(); !synced {
			return fmt.Errorf("%s: %w", in.name, errNotSynced)
		}
	}
	return nil
}

var errNotSynced = errors.New("not synced yet")

// State is what `nodeagent get sources` shows.
func (s *Source) State() store.SourceState {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := store.SourceState{Name: Name, Target: s.server, Synced: true, Tried: true}
	if st.Target == "" {
		st.Target = s.o.Kubeconfig
	}
	err := s.failureLocked()
	if err != nil {
		st.Error = err.Error()
	}
	for _, in := range s.inputs {
		synced, last, objects := in.progress()
		st.Synced = st.Synced && synced
		st.Tried = st.Tried && (synced || err != nil)
		st.Objects += objects
		if last.After(st.LastSync) {
			st.LastSync = last
		}
		if denied := in.refusal(); denied != nil {
			st.Problems = append(st.Problems, denied.Error())
		}
	}
	return st
}
