package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	protocol "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"
	streamspdy "k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// pingPeriod keeps an idle stream from being taken for a dead one.
const pingPeriod = 5 * time.Second

// interrupted is what a shell calls a command that SIGINT ended.
const interrupted = 130

// session is one exec or attach.
type session struct {
	namespace, pod, container string
	// command is empty for attach.
	command []string
	tty     bool
	in      io.Reader // nil: no standard input
	out     io.Writer
	err     io.Writer // nil with tty
	sizes   remotecommand.TerminalSizeQueue
}

// streamFunc runs a session to its end. A command that ends with another code
// than 0 is an exec.ExitError.
type streamFunc func(ctx context.Context, s session) error

// remote is the streamFunc that goes through the agent.
func (c *CLI) remote(ctx context.Context, s session) error {
	q := url.Values{"container": {s.container}}
	path := podPath(s.namespace, s.pod) + "/attach"
	if len(s.command) > 0 {
		path = podPath(s.namespace, s.pod) + "/exec"
		q["command"] = s.command
	}
	for name, on := range map[string]bool{"stdin": s.in != nil, "stdout": s.out != nil, "stderr": s.err != nil, "tty": s.tty} {
		if on {
			q.Set(name, "true")
		}
	}
	rt, err := c.client.upgrader()
	if err != nil {
		return err
	}
	v := &verdict{UpgradeRoundTripper: rt}
	e, err := remotecommand.NewSPDYExecutorForProtocols(v, spdy.NewUpgraderForStreaming(v), http.MethodPost, c.client.url(path, q),
		protocol.StreamProtocolV5Name, protocol.StreamProtocolV4Name)
	if err != nil {
		return err
	}
	err = e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: s.in, Stdout: s.out, Stderr: s.err, Tty: s.tty, TerminalSizeQueue: s.sizes})
	if err == nil && !v.heard.Load() {
		return errLost
	}
	return c.client.explainStream(err)
}

// errLost is the end of a session that nobody said the end of.
var errLost = errors.New("the connection was lost before the command ended; it may still be running, and its exit code is not known")

// verdict notes whether the far side said how a session ended. From version 4
// of the protocol on it always does, and a lost connection, which is silence,
// must not pass for success.
type verdict struct {
	httpstream.UpgradeRoundTripper
	heard atomic.Bool
}

// NewConnection implements httpstream.UpgradeRoundTripper.
func (v *verdict) NewConnection(resp *http.Response) (httpstream.Connection, error) {
	conn, err := v.UpgradeRoundTripper.NewConnection(resp)
	if err != nil {
		return nil, err
	}
	return &verdictConnection{conn, v}, nil
}

type verdictConnection struct {
	httpstream.Connection
	v *verdict
}

// CreateStream implements httpstream.Connection.
func (c *verdictConnection) CreateStream(h http.Header) (httpstream.Stream, error) {
	s, err := c.Connection.CreateStream(h)
	if err == nil && h.Get(v1.StreamType) == v1.StreamTypeError {
		s = &verdictStream{s, c.v}
	}
	return s, err
}

type verdictStream struct {
	httpstream.Stream
	v *verdict
}

// Read implements io.Reader.
func (s *verdictStream) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	if n > 0 {
		s.v.heard.Store(true)
	}
	return n, err
}

// upgrader makes one connection for one stream; the round tripper keeps it, so
// that each stream needs its own.
func (c *Client) upgrader() (httpstream.UpgradeRoundTripper, error) {
	rt, err := streamspdy.NewRoundTripperWithConfig(streamspdy.RoundTripperConfig{UpgradeTransport: c.transport, PingPeriod: pingPeriod})
	if err != nil {
		return nil, err
	}
	return upgrader{rt}, nil
}

// upgrader keeps the Status with which the agent refuses a stream; the round
// tripper would make a text of it.
type upgrader struct{ httpstream.UpgradeRoundTripper }

// NewConnection implements httpstream.UpgradeRoundTripper.
func (u upgrader) NewConnection(resp *http.Response) (httpstream.Connection, error) {
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, statusError(resp)
	}
	return u.UpgradeRoundTripper.NewConnection(resp)
}

// explainStream finds out whether a stream failed because there is no agent:
// the stream's own error is text only.
func (c *Client) explainStream(err error) error {
	var code exec.ExitError
	if err == nil || errors.As(err, &code) || errors.Is(err, context.Canceled) {
		return err
	}
	conn, dialErr := c.transport.DialContext(context.Background(), "", "")
	if dialErr != nil {
		return c.explain(dialErr)
	}
	conn.Close()
	return err
}

// ExecOptions are the flags of `exec` and `attach`.
type ExecOptions struct {
	Container  string
	Stdin, TTY bool
	Quiet      bool
}

// Exec runs a command in a container. The command's exit code comes back as an
// *ExitError.
func (c *CLI) Exec(ctx context.Context, name string, command []string, o ExecOptions) error {
	if len(command) == 0 {
		return errors.New("name the command: exec POD -- COMMAND [ARG…]")
	}
	s, err := c.session(ctx, name, o.Container)
	if err != nil {
		return err
	}
	s.command = command
	return c.interact(ctx, s, o)
}

// Attach connects to the main process of a container.
func (c *CLI) Attach(ctx context.Context, name string, o ExecOptions) error {
	p, err := c.pod(ctx, name)
	if err != nil {
		return err
	}
	s, err := c.sessionFor(p, o.Container)
	if err != nil {
		return err
	}
	ctr, _, _ := pod.Container(p, s.container)
	if o.TTY && !ctr.TTY {
		o.TTY = false
		fmt.Fprintf(c.Err, "Unable to use a TTY - container %s did not allocate one\n", ctr.Name)
	}
	// A terminal on the far side sends everything over stdout, asked or not.
	if ctr.TTY && !o.TTY {
		s.tty, o.TTY = true, o.Stdin && c.Terminal.In()
	}
	if o.Stdin && !o.Quiet {
		fmt.Fprintln(c.Err, "If you don't see a command prompt, try pressing enter.")
	}
	return c.interact(ctx, s, o)
}

func (c *CLI) session(ctx context.Context, name, container string) (session, error) {
	p, err := c.pod(ctx, name)
	if err != nil {
		return session{}, err
	}
	return c.sessionFor(p, container)
}

func (c *CLI) sessionFor(p *v1.Pod, container string) (session, error) {
	if pod.IsTerminal(p.Status.Phase) {
		return session{}, fmt.Errorf("pod %s has ended (phase %s): there is no process to reach; see its output with \"nodeagent logs %s\"", p.Name, p.Status.Phase, p.Name)
	}
	ctr, err := c.container(p, container)
	if err != nil {
		return session{}, err
	}
	return session{namespace: p.Namespace, pod: p.Name, container: ctr.Name}, nil
}

// interact connects the user's streams and terminal and maps the exit code.
func (c *CLI) interact(ctx context.Context, s session, o ExecOptions) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.out, s.err = c.Out, c.Err
	if o.Stdin {
		s.in = c.In
	}
	if o.TTY && !(o.Stdin && c.Terminal.In()) {
		o.TTY = false
		fmt.Fprintln(c.Err, "Unable to use a TTY - input is not a terminal or the right kind of file")
	}
	if o.TTY {
		restore, rawErr := c.Terminal.Raw()
		if rawErr != nil {
			return fmt.Errorf("terminal: %w", rawErr)
		}
		defer func() { err = errors.Join(err, restore()) }()
		s.tty, s.sizes = true, newSizes(ctx, c.Terminal)
	}
	if s.tty {
		s.err = nil
	}
	err = c.stream(ctx, s)
	if errors.Is(err, context.Canceled) {
		return &ExitError{Code: interrupted}
	}
	var code exec.ExitError
	if errors.As(err, &code) && code.Exited() {
		return &ExitError{Code: code.ExitStatus(), Err: fmt.Errorf("command terminated with exit code %d", code.ExitStatus())}
	}
	return err
}
