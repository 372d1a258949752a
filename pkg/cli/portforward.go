package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/nodeagent/nodeagent/pkg/cli/table"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// portForwardProtocol is what kubelet and the runtimes' streaming servers speak.
const portForwardProtocol = "portforward.k8s.io"

// forward is one port of the pod and where it is reached from.
type forward struct {
	local, remote uint16 // local 0: any free one
}

// parseForward reads "[LOCAL:]REMOTE"; ":REMOTE" takes any free local port.
func parseForward(s string) (forward, error) {
	local, remote, two := strings.Cut(s, ":")
	if !two {
		local, remote = s, s
	}
	r, err := strconv.ParseUint(remote, 10, 16)
	if err != nil || r == 0 {
		return forward{}, fmt.Errorf("%q: %q is not a port; write [LOCAL:]REMOTE", s, remote)
	}
	if two && local == "" {
		return forward{remote: uint16(r)}, nil
	}
	l, err := strconv.ParseUint(local, 10, 16)
	if err != nil {
		return forward{}, fmt.Errorf("%q: %q is not a port; write [LOCAL:]REMOTE", s, local)
	}
	return forward{local: uint16(l), remote: uint16(r)}, nil
}

// forwarder carries connections to one pod. Each connection gets a stream
// connection of its own through the agent: one that fails disturbs no other, and
// a restart of the container, the pod or the agent ends only what was open.
type forwarder struct {
	cli       *CLI
	namespace string
	pod       string

	mu  sync.Mutex // guards the output streams
	end context.CancelCauseFunc
}

// PortForward listens on local ports and carries connections to a pod's ports
// until ctx ends or the pod is gone. ports are "[LOCAL:]REMOTE"; addresses
// default to localhost.
func (c *CLI) PortForward(ctx context.Context, name string, ports, addresses []string) error {
	var forwards []forward
	for _, s := range ports {
		f, err := parseForward(s)
		if err != nil {
			return err
		}
		forwards = append(forwards, f)
	}
	p, err := c.pod(ctx, name)
	if err != nil {
		return err
	}
	if pod.IsTerminal(p.Status.Phase) {
		return fmt.Errorf("pod %s has ended (phase %s): nothing listens in it", p.Name, p.Status.Phase)
	}
	if p.Status.Phase != v1.PodRunning {
		return fmt.Errorf("pod %s does not run yet (phase %s); see \"nodeagent describe pod %s\"", p.Name, p.Status.Phase, p.Name)
	}
	if len(addresses) == 0 {
		addresses = []string{"localhost"}
	}
	var listeners []net.Listener
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	inner, end := context.WithCancelCause(ctx)
	defer end(nil)
	f := &forwarder{cli: c, namespace: p.Namespace, pod: p.Name, end: end}
	var running sync.WaitGroup
	defer running.Wait()
	defer end(nil)
	for _, fw := range forwards {
		open, err := f.listen(fw, addresses)
		listeners = append(listeners, open...)
		if err != nil {
			return err
		}
		for _, l := range open {
			context.AfterFunc(inner, func() { l.Close() })
			running.Go(func() { f.accept(inner, l, fw.remote, &running) })
		}
	}
	<-inner.Done()
	if ctx.Err() != nil {
		return nil // the user's own interrupt
	}
	return context.Cause(inner)
}

// listen opens a local port on every address and says so. "localhost" is both
// loopback addresses, of which one is enough.
func (f *forwarder) listen(fw forward, addresses []string) ([]net.Listener, error) {
	var out []net.Listener
	for _, a := range addresses {
		hosts := []string{a}
		if a == "localhost" {
			hosts = []string{"127.0.0.1", "::1"}
		}
		var errs []error
		opened := false
		for _, h := range hosts {
			l, err := net.Listen("tcp", net.JoinHostPort(h, strconv.Itoa(int(fw.local))))
			if err != nil {
				errs = append(errs, err)
				continue
			}
			if fw.local == 0 {
				// The other addresses get the same port.
				fw.local = uint16(l.Addr().(*net.TCPAddr).Port)
			}
			out, opened = append(out, l), true
			f.print(f.cli.Out, "Forwarding from %s -> %d\n", l.Addr(), fw.remote)
		}
		if !opened {
			return out, fmt.Errorf("cannot listen for port %d: %w", fw.remote, errors.Join(errs...))
		}
	}
	return out, nil
}

func (f *forwarder) accept(ctx context.Context, l net.Listener, remote uint16, running *sync.WaitGroup) {
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() == nil {
				f.end(fmt.Errorf("listening on %s: %w", l.Addr(), err))
			}
			return
		}
		running.Go(func() {
			defer conn.Close()
			f.print(f.cli.Out, "Handling connection for %d\n", l.Addr().(*net.TCPAddr).Port)
			if err := f.carry(ctx, conn, remote); err != nil && ctx.Err() == nil {
				f.report(l.Addr(), remote, err)
			}
		})
	}
}

// report tells why a connection failed. A pod that is no more ends it all.
func (f *forwarder) report(local net.Addr, remote uint16, err error) {
	if apierrors.IsNotFound(err) {
		f.end(fmt.Errorf("lost connection to pod %s: %w", f.pod, err))
		return
	}
	f.print(f.cli.Err, "error: %s -> %d: %s\n", local, remote, table.Safe(strings.TrimPrefix(message(err), "error: ")))
}

// carry connects one local connection to the pod's port and copies both ways
// until the pod's side ends.
func (f *forwarder) carry(ctx context.Context, local net.Conn, remote uint16) error {
	far, err := f.dial(ctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { far.Close(); local.Close() })
	defer stop()
	problems, err := openStream(ctx, far, v1.StreamTypeError, remote)
	if err != nil {
		far.Close()
		return err
	}
	problems.Close() // it is only read from
	data, err := openStream(ctx, far, v1.StreamTypeData, remote)
	if err != nil {
		far.Close()
		return err
	}
	var copies sync.WaitGroup
	copies.Go(func() {
		_, _ = io.Copy(data, local) // the far side says what failed
		data.Close()
	})
	var said []byte
	heard := make(chan struct{})
	copies.Go(func() {
		defer close(heard)
		// A broken connection has nothing to say; the copy below ends, too.
		said, _ = io.ReadAll(io.LimitReader(problems, maxErrorBody))
		if len(said) > 0 {
			far.Close() // some runtimes leave the data open after an error
		}
	})
	_, err = io.Copy(local, data)
	local.Close()
	if err == nil {
		<-heard // the far side has ended by itself and says why, if not well
	}
	far.Close()
	copies.Wait()
	if len(said) > 0 {
		return errors.New(string(said))
	}
	return nil
}

// openStream opens one stream to a port of the pod. Nothing but its own time-out
// ends a stream that the runtime does not answer, so that an interrupt does not
// wait for it.
func openStream(ctx context.Context, far httpstream.Connection, kind string, remote uint16) (httpstream.Stream, error) {
	h := http.Header{}
	h.Set(v1.PortHeader, strconv.Itoa(int(remote)))
	h.Set(v1.PortForwardRequestIDHeader, "0")
	h.Set(v1.StreamType, kind)
	type answer struct {
		stream httpstream.Stream
		err    error
	}
	answers := make(chan answer, 1)
	go func() {
		s, err := far.CreateStream(h)
		answers <- answer{s, err}
	}()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case a := <-answers:
		if a.err != nil {
			return nil, fmt.Errorf("open a stream: %w", a.err)
		}
		return a.stream, nil
	}
}

// dial opens a stream connection to the pod. A refusal is the agent's Status.
func (f *forwarder) dial(ctx context.Context) (httpstream.Connection, error) {
	c := f.cli.client
	rt, err := c.upgrader()
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url(podPath(f.namespace, f.pod)+"/portforward", nil).String(), nil)
	if err != nil {
		return nil, err
	}
	conn, protocol, err := spdy.NegotiateStreaming(spdy.NewUpgraderForStreaming(rt), &http.Client{Transport: rt}, req, portForwardProtocol)
	if err != nil {
		return nil, c.explainStream(err)
	}
	if protocol != portForwardProtocol {
		conn.Close()
		return nil, fmt.Errorf("the runtime wants to speak %q, not %q", protocol, portForwardProtocol)
	}
	return conn, nil
}

func (f *forwarder) print(w io.Writer, format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fmt.Fprintf(w, format, args...)
}
