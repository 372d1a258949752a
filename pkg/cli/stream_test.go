package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	protocol "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// farSide is what a runtime's streaming server does with one connection: it
// gets the streams that the client opens, by their type, and closes the
// connection when it returns.
type farSide func(streams map[string]httpstream.Stream)

// serveStreams answers the sub-resource of a pod with a stream connection.
func (f *fakeAgent) serveStreams(sub string, protocols []string, wants func(q *http.Request) int, far farSide) {
	f.extra = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/"+sub) {
			return false
		}
		if _, err := httpstream.Handshake(r, w, protocols); err != nil {
			f.t.Errorf("handshake: %v", err)
			return true
		}
		type opened struct {
			httpstream.Stream
			replied <-chan struct{}
		}
		ch := make(chan opened, 10)
		conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(s httpstream.Stream, replied <-chan struct{}) error {
			ch <- opened{s, replied}
			return nil
		})
		if conn == nil {
			return true
		}
		defer conn.Close()
		streams := map[string]httpstream.Stream{}
		for range wants(r) {
			select {
			case s := <-ch:
				<-s.replied
				streams[s.Headers().Get(v1.StreamType)] = s
			case <-conn.CloseChan():
				return true
			}
		}
		far(streams)
		return true
	}
}

// execStreams is how many streams a client of exec or attach opens.
func execStreams(r *http.Request) int {
	n := 1 // the error stream
	for _, s := range []string{"stdin", "stdout", "stderr"} {
		if r.URL.Query().Get(s) == "true" {
			n++
		}
	}
	if r.URL.Query().Get("tty") == "true" {
		n++
	}
	return n
}

func (f *fakeAgent) serveCommand(sub string, far farSide) {
	f.serveStreams(sub, []string{protocol.StreamProtocolV4Name}, execStreams, far)
}

// say ends a session with a Status, as version 4 of the protocol does.
func say(t *testing.T, s httpstream.Stream, code int) {
	st := metav1.Status{Status: metav1.StatusSuccess}
	if code != 0 {
		st = metav1.Status{Status: metav1.StatusFailure, Reason: protocol.NonZeroExitCodeReason,
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: protocol.ExitCodeCauseType, Message: fmt.Sprint(code)}}}}
	}
	if err := json.NewEncoder(s).Encode(st); err != nil {
		t.Error(err)
	}
}

func TestExecEnds(t *testing.T) {
	for name, tc := range map[string]struct {
		far  farSide
		code int
		err  string
	}{
		"well": {func(s map[string]httpstream.Stream) {
			fmt.Fprint(s["stdout"], "out")
			fmt.Fprint(s["stderr"], "err")
			say(t, s["error"], 0)
		}, 0, ""},
		"with a code": {func(s map[string]httpstream.Stream) {
			fmt.Fprint(s["stdout"], "out")
			fmt.Fprint(s["stderr"], "err")
			say(t, s["error"], 7)
		}, 7, "error: command terminated with exit code 7\n"},
		// An agent or runtime that dies says nothing; that is no success.
		"never, as far as anybody knows": {func(s map[string]httpstream.Stream) {
			fmt.Fprint(s["stdout"], "out")
			fmt.Fprint(s["stderr"], "err")
		}, 1, "error: " + errLost.Error() + "\n"},
	} {
		t.Run(name, func(t *testing.T) {
			f, c, out, errs := newFake(t)
			f.put(simplePod("default", "web", nil))
			f.serveCommand("exec", tc.far)
			err := c.Exec(t.Context(), "web", []string{"x"}, ExecOptions{})
			if code := Report(errs, err); code != tc.code || out.String() != "out" || errs.String() != "err"+tc.err {
				t.Errorf("code %d, out %q, err %q", code, out, errs)
			}
		})
	}
}

func TestExecHandsInputOn(t *testing.T) {
	f, c, out, _ := newFake(t)
	f.put(simplePod("default", "web", nil))
	f.serveCommand("exec", func(s map[string]httpstream.Stream) {
		if _, err := io.Copy(s["stdout"], s["stdin"]); err != nil {
			t.Error(err)
		}
		say(t, s["error"], 0)
	})
	c.In = strings.NewReader(strings.Repeat("x", 1<<20))
	if err := c.Exec(t.Context(), "pod/web", []string{"cat", "-"}, ExecOptions{Stdin: true}); err != nil {
		t.Fatal(err)
	}
	if out.Len() != 1<<20 {
		t.Errorf("%d bytes came back", out.Len())
	}
	if last := f.requests[len(f.requests)-1]; last != "POST /api/v1/namespaces/default/pods/web/exec?command=cat&command=-&container=main&stderr=true&stdin=true&stdout=true" {
		t.Errorf("asked for %s", last)
	}
}

// fakeTerminal notes that it was restored.
type fakeTerminal struct{ raw, restored int }

func (*fakeTerminal) In() bool  { return true }
func (*fakeTerminal) Out() bool { return true }
func (t *fakeTerminal) Raw() (func() error, error) {
	t.raw++
	return func() error { t.restored++; return nil }, nil
}
func (*fakeTerminal) Size() (uint16, uint16, error)            { return 99, 33, nil }
func (*fakeTerminal) Resized(context.Context) <-chan os.Signal { return nil }

func TestExecOnATerminal(t *testing.T) {
	f, c, out, errs := newFake(t)
	f.put(simplePod("default", "web", nil))
	term := &fakeTerminal{}
	c.Terminal = term
	f.serveCommand("exec", func(s map[string]httpstream.Stream) {
		var size remotecommand.TerminalSize
		if err := json.NewDecoder(s["resize"]).Decode(&size); err != nil {
			t.Error(err)
		}
		fmt.Fprintf(s["stdout"], "%d x %d", size.Width, size.Height)
		say(t, s["error"], 3)
	})
	err := c.Exec(t.Context(), "web", []string{"sh"}, ExecOptions{Stdin: true, TTY: true})
	if code := Report(errs, err); code != 3 || out.String() != "99 x 33" {
		t.Errorf("code %d, out %q, err %q", code, out, errs)
	}
	if term.raw != 1 || term.restored != 1 {
		t.Errorf("the terminal was made raw %d times and restored %d times", term.raw, term.restored)
	}
	// Without a terminal -t is a warning, not a failure.
	f.serveCommand("exec", func(s map[string]httpstream.Stream) { say(t, s["error"], 0) })
	c.Terminal = newTerminal(c.In, c.Out)
	errs.Reset()
	if err := c.Exec(t.Context(), "web", []string{"sh"}, ExecOptions{Stdin: true, TTY: true}); err != nil || !strings.Contains(errs.String(), "Unable to use a TTY") {
		t.Errorf("%v, %q", err, errs)
	}
}

func TestExecInterrupted(t *testing.T) {
	f, c, _, errs := newFake(t)
	f.put(simplePod("default", "web", nil))
	begun := make(chan struct{})
	f.serveCommand("exec", func(s map[string]httpstream.Stream) {
		close(begun)
		_, _ = io.Copy(io.Discard, s["stdin"]) // ends with the connection
	})
	in, w := io.Pipe()
	defer w.Close()
	c.In = in
	var mu sync.Mutex // the streams' copiers may end later than the command
	c.Out, c.Err = &lockedWriter{mu: &mu, w: io.Discard}, &lockedWriter{mu: &mu, w: errs}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-begun; cancel() }()
	code := Report(c.Err, c.Exec(ctx, "web", []string{"sleep"}, ExecOptions{Stdin: true}))
	mu.Lock()
	defer mu.Unlock()
	if code != 130 || errs.Len() > 0 {
		t.Errorf("code %d, %q", code, errs)
	}
}

func TestExecRefuses(t *testing.T) {
	f, c, _, _ := newFake(t)
	two := simplePod("default", "two", nil)
	two.Spec.Containers = append(two.Spec.Containers, v1.Container{Name: "other"})
	f.put(two)
	ended := simplePod("default", "ended", nil)
	ended.Status.Phase = v1.PodSucceeded
	f.put(ended)
	for _, tc := range []struct{ pod, container, want string }{
		{"none", "", `pods "none" not found`},
		{"two", "third", "container third not found in pod two; it has: main, other"},
		{"ended", "", "pod ended has ended (phase Succeeded)"},
	} {
		err := c.Exec(t.Context(), tc.pod, []string{"x"}, ExecOptions{Container: tc.container})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %s", tc.pod, err, tc.want)
		}
	}
	f.extra = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/exec") {
			return false
		}
		f.fail(w, 503, metav1.StatusReasonServiceUnavailable, "the container runtime has not answered yet", nil)
		return true
	}
	if err := c.Exec(t.Context(), "two", []string{"x"}, ExecOptions{Container: "main"}); !apierrors.IsServiceUnavailable(err) || !strings.Contains(err.Error(), "has not answered yet") {
		t.Errorf("the agent's own words are lost: %v", err)
	}
}

func TestAttach(t *testing.T) {
	f, c, out, errs := newFake(t)
	p := simplePod("default", "shell", nil)
	p.Spec.Containers[0].TTY, p.Spec.Containers[0].Stdin = true, true
	f.put(p)
	f.serveCommand("attach", func(s map[string]httpstream.Stream) {
		if s["stderr"] != nil {
			t.Error("a terminal has one output, not two")
		}
		_, _ = io.Copy(s["stdout"], s["stdin"])
		say(t, s["error"], 0)
	})
	c.In = strings.NewReader("typed")
	if err := c.Attach(t.Context(), "shell", ExecOptions{Stdin: true}); err != nil || out.String() != "typed" {
		t.Errorf("%v: %q, %q", err, out, errs)
	}
	f.serveCommand("attach", func(map[string]httpstream.Stream) {})
	if err := c.Attach(t.Context(), "shell", ExecOptions{}); !errors.Is(err, errLost) {
		t.Errorf("a lost connection: %v", err)
	}
}

// signalWriter hands lines over as they are written.
type signalWriter chan string

func (w signalWriter) Write(p []byte) (int, error) { w <- string(p); return len(p), nil }

func TestPortForward(t *testing.T) {
	f, c, _, errs := newFake(t)
	f.put(simplePod("default", "web", nil))
	lines := make(signalWriter, 100)
	c.Out = lines
	var mu sync.Mutex
	ports := map[string]int{}
	f.serveStreams("portforward", []string{portForwardProtocol}, func(*http.Request) int { return 2 }, func(s map[string]httpstream.Stream) {
		mu.Lock()
		ports[s["data"].Headers().Get(v1.PortHeader)]++
		mu.Unlock()
		_, _ = io.Copy(s["data"], s["data"]) // an echo server
		_ = s["error"].Close()
		_ = s["data"].Close()
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.PortForward(ctx, "web", []string{":80", ":81"}, []string{"127.0.0.1"}) }()
	var addrs []string
	for range 2 {
		line := strings.Fields(<-lines) // Forwarding from ADDRESS -> PORT
		addrs = append(addrs, line[2])
	}
	echo := func(addr, text string) {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, text)
		_ = conn.(*net.TCPConn).CloseWrite()
		if b, err := io.ReadAll(conn); err != nil || string(b) != text {
			t.Errorf("%s gave %d bytes, %v", addr, len(b), err)
		}
	}
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() { echo(addrs[0], strings.Repeat("a", 1<<16)) })
	}
	all.Go(func() { echo(addrs[1], "b") })
	all.Wait()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("the user's own interrupt is an error: %v", err)
	}
	if ports["80"] != 3 || ports["81"] != 1 || errs.Len() > 0 {
		t.Errorf("connections: %v; %s", ports, errs)
	}
}

// TestPortForwardFails: a connection that fails says why and ends no other; a pod
// that is gone ends them all.
func TestPortForwardFails(t *testing.T) {
	f, c, _, _ := newFake(t)
	f.put(simplePod("default", "web", nil))
	out, errs := newSignalBuffer(), newSignalBuffer()
	c.Out, c.Err = out, errs
	f.serveStreams("portforward", []string{portForwardProtocol}, func(*http.Request) int { return 2 }, func(s map[string]httpstream.Stream) {
		b, _ := io.ReadAll(s["data"])
		if string(b) == "fail" {
			_, _ = io.WriteString(s["error"], "connect: connection refused\x1b[2J")
		} else {
			_, _ = s["data"].Write(b)
		}
		_ = s["error"].Close()
		_ = s["data"].Close()
	})
	var gone atomic.Bool
	there := f.extra
	f.extra = func(w http.ResponseWriter, r *http.Request) bool {
		if gone.Load() {
			f.fail(w, 404, metav1.StatusReasonNotFound, `pods "web" not found`, nil)
			return true
		}
		return there(w, r)
	}
	done := make(chan error, 1)
	go func() { done <- c.PortForward(t.Context(), "web", []string{":80"}, []string{"127.0.0.1"}) }()
	addr := strings.Fields(out.lines(1)[0])[2]
	dial := func() *net.TCPConn {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn.(*net.TCPConn)
	}
	end := func(conn *net.TCPConn, text string) string {
		_, err1 := io.WriteString(conn, text)
		err2 := conn.CloseWrite()
		b, err3 := io.ReadAll(conn)
		if err := errors.Join(err1, err2, err3); err != nil {
			t.Error(err)
		}
		return string(b)
	}
	quiet := dial() // it says nothing yet, and holds nobody up
	if got := end(dial(), "fail"); got != "" {
		t.Errorf("a connection that fails got %q", got)
	}
	if got := errs.lines(1)[0]; got != "error: "+addr+" -> 80: connect: connection refused^[[2J" {
		t.Errorf("it says %q", got)
	}
	if got := end(quiet, "hello"); got != "hello" {
		t.Errorf("the connection beside it got %q", got)
	}
	gone.Store(true)
	dial()
	if err := <-done; err == nil || err.Error() != `lost connection to pod web: pods "web" not found` {
		t.Errorf("the pod is gone: %v", err)
	}
}

// TestPortForwardInterrupted does not wait for a runtime that does not answer.
func TestPortForwardInterrupted(t *testing.T) {
	f, c, _, errs := newFake(t)
	f.put(simplePod("default", "web", nil))
	out := newSignalBuffer()
	c.Out = out
	answer, asked := make(chan struct{}), make(chan struct{}, 1)
	f.extra = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/portforward") {
			return false
		}
		if _, err := httpstream.Handshake(r, w, []string{portForwardProtocol}); err != nil {
			t.Error(err)
		}
		conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(httpstream.Stream, <-chan struct{}) error {
			asked <- struct{}{}
			<-answer
			return errors.New("never")
		})
		defer conn.Close()
		<-answer
		return true
	}
	ctx, interrupt := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.PortForward(ctx, "web", []string{":80"}, []string{"127.0.0.1"}) }()
	conn, err := net.Dial("tcp", strings.Fields(out.lines(1)[0])[2])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	<-asked
	interrupt()
	// What waits for the answer gets a time-out of its library's, and says so.
	if err := <-done; err != nil || errs.Len() > 0 {
		t.Errorf("%v, %q", err, errs)
	}
	close(answer)
	if b, _ := io.ReadAll(conn); len(b) > 0 {
		t.Errorf("the connection got %q", b)
	}
}

func TestPortForwardRefuses(t *testing.T) {
	f, c, _, _ := newFake(t)
	f.put(simplePod("default", "web", nil))
	pending := simplePod("default", "pending", nil)
	pending.Status.Phase = v1.PodPending
	f.put(pending)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, busy, _ := net.SplitHostPort(l.Addr().String())
	for _, tc := range []struct{ pod, port, want string }{
		{"web", "http", "is not a port"},
		{"web", "0", "is not a port"},
		{"web", "1:2:3", "is not a port"},
		{"web", "65536", "is not a port"},
		{"web", busy + ":80", "cannot listen for port 80"},
		{"pending", ":80", "does not run yet"},
		{"none", ":80", "not found"},
	} {
		if err := c.PortForward(t.Context(), tc.pod, []string{tc.port}, []string{"127.0.0.1"}); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s %s: %v, want %s", tc.pod, tc.port, err, tc.want)
		}
	}
}
