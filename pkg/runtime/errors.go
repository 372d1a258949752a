package runtime

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// errUnimplemented says that the runtime does not have a call at all. It stays
// inside this package: callers see it as errdefs.ErrInvalid.
var errUnimplemented = fmt.Errorf("not implemented by the runtime: %w", errdefs.ErrInvalid)

// ErrConfig says that the runtime was not asked, because what the pod wants of
// a container contradicts itself, its image or the node.
var ErrConfig = errors.New("container configuration")

// callError is a foreign error after translation. Its text keeps what the
// runtime said; errors.Is sees only our kinds and the context's errors.
type callError struct {
	op, msg string
	kinds   []error
}

func (e *callError) Error() string   { return e.op + ": " + e.msg }
func (e *callError) Unwrap() []error { return e.kinds }

// translate turns an error of gRPC into one of errdefs. op is what was asked
// for, with the object. Errors without a meaning for callers keep no kind.
func translate(op string, err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return kindOfPlain(op, err)
	}
	e := &callError{op: op, msg: st.Message()}
	switch st.Code() {
	case codes.NotFound:
		e.kinds = []error{errdefs.ErrNotFound}
	case codes.AlreadyExists:
		e.kinds = []error{errdefs.ErrExists}
	case codes.Unavailable:
		e.kinds = []error{errdefs.ErrUnavailable}
	case codes.DeadlineExceeded:
		e.kinds = []error{errdefs.ErrTransient, context.DeadlineExceeded}
	case codes.Canceled:
		e.kinds = []error{errdefs.ErrTransient, context.Canceled}
	case codes.Aborted, codes.ResourceExhausted:
		e.kinds = []error{errdefs.ErrTransient}
	case codes.InvalidArgument, codes.OutOfRange:
		e.kinds = []error{errdefs.ErrInvalid}
	case codes.FailedPrecondition:
		// containerd 2.x answers so for a reserved name.
		if e.kinds = kindsOfText(st.Message()); e.kinds == nil {
			e.kinds = []error{errdefs.ErrConflict}
		}
	case codes.Unimplemented:
		e.kinds = []error{errUnimplemented}
	case codes.Unknown:
		e.kinds = kindsOfText(st.Message())
	}
	return e
}

// kindOfPlain covers errors that never were a gRPC status: those of the
// context and of containerd's own proxies.
func kindOfPlain(op string, err error) error {
	e := &callError{op: op, msg: err.Error()}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		e.kinds = []error{errdefs.ErrTransient, context.DeadlineExceeded}
	case errors.Is(err, context.Canceled):
		e.kinds = []error{errdefs.ErrTransient, context.Canceled}
	default:
		e.kinds = kindsOfText(e.msg)
	}
	return e
}

// kindsOfText reads what containerd sends without a code. Nobody outside of this
// file looks at the text of an error: the name registrar and a full disk have
// no other mark in any release from 1.6 to 2.4.
func kindsOfText(msg string) []error {
	switch {
	case strings.Contains(msg, "is reserved for"):
		return []error{errdefs.ErrExists}
	case strings.Contains(msg, "no space left on device"):
		return []error{errdefs.ErrTransient}
	case strings.HasSuffix(msg, "context deadline exceeded"):
		return []error{errdefs.ErrTransient, context.DeadlineExceeded}
	}
	return nil
}

// pullFailed is how containerd begins to say that it lacks an image.
var pullFailed = regexp.MustCompile(`failed to pull image "([^"]+)"`)

// lackedImage is the image that a call failed for; "" when that was not why.
func lackedImage(err error) string {
	if err == nil {
		return ""
	}
	m := pullFailed.FindStringSubmatch(err.Error())
	if m == nil {
		return ""
	}
	return m[1]
}

// ignoreNotFound makes the removal of what is gone a success.
func ignoreNotFound(err error) error {
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil
	}
	return err
}
