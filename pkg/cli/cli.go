package cli

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/cli/table"
)

// Streams are the standard streams of the process.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// CLI is what every sub-command works with.
type CLI struct {
	Streams
	// Namespace of namespaced objects.
	Namespace string
	// Now is the clock that ages are counted from.
	Now func() time.Time
	// Terminal is the one behind In and Out.
	Terminal Terminal

	client *Client
	// stream runs one command in a container; cp stands on it.
	stream streamFunc
	// tick paces the lists of what has no watch.
	tick func(time.Duration) (<-chan time.Time, func())
}

// New returns a CLI for the agent whose run folder is runDir.
func New(runDir string, s Streams) *CLI {
	c := &CLI{
		Streams: s, Namespace: metav1.NamespaceDefault, Now: time.Now,
		Terminal: newTerminal(s.In, s.Out),
		client:   NewClient(filepath.Join(runDir, SocketName)),
		tick: func(d time.Duration) (<-chan time.Time, func()) {
			t := time.NewTicker(d)
			return t.C, t.Stop
		},
	}
	c.stream = c.remote
	return c
}

// ExitError ends the program with Code; an Err of nil prints nothing.
type ExitError struct {
	Code int
	Err  error
}

func (e *ExitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

func (e *ExitError) Unwrap() error { return e.Err }

// errFailed says that every error has been printed already.
func errFailed() error { return &ExitError{Code: 1} }

// Report prints err as kubectl does and returns the program's exit code.
func Report(w io.Writer, err error) int {
	if err == nil {
		return 0
	}
	code := 1
	var exit *ExitError
	if errors.As(err, &exit) {
		code = exit.Code
		if exit.Err == nil {
			return code
		}
		err = exit.Err
	}
	fmt.Fprintln(w, table.SafeText(message(err)))
	return code
}

func message(err error) string {
	var s *apierrors.StatusError
	if !errors.As(err, &s) {
		return "error: " + err.Error()
	}
	switch st := s.ErrStatus; {
	case st.Reason == metav1.StatusReasonInvalid && st.Details != nil && st.Details.Kind != "":
		return fmt.Sprintf("The %s %q is invalid: %s", st.Details.Kind, st.Details.Name, causes(st))
	case st.Reason != "":
		return fmt.Sprintf("Error from server (%s): %s", st.Reason, st.Message)
	default:
		return "Error from server: " + st.Message
	}
}

// causes lists an Invalid status field by field.
func causes(s metav1.Status) string {
	if len(s.Details.Causes) == 0 {
		return s.Message
	}
	if len(s.Details.Causes) == 1 {
		return cause(s.Details.Causes[0])
	}
	out := ""
	for _, c := range s.Details.Causes {
		out += "\n* " + cause(c)
	}
	return out
}

func cause(c metav1.StatusCause) string {
	if c.Field == "" {
		return c.Message
	}
	return c.Field + ": " + c.Message
}
