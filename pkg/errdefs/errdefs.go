// Package errdefs names the few kinds of failure that callers act on.
//
// An adapter (CRI, containerd, CNI, the kernel) translates a foreign error
// into one of these once, at its edge, by wrapping it with %w; everybody above
// asks errors.Is. Nobody compares error text.
package errdefs

import (
	"errors"
	"fmt"
)

var (
	// ErrNotFound says that the object does not exist. Deleting an object
	// that is not found is a success, not this error.
	ErrNotFound = errors.New("not found")
	// ErrExists says that an object of that name is already there.
	ErrExists = errors.New("already exists")
	// ErrInvalid says that the request can never succeed as it stands; a
	// retry without a change is pointless.
	ErrInvalid = errors.New("invalid")
	// ErrConflict says that the object changed since the caller read it.
	ErrConflict = errors.New("conflict")
	// ErrTransient says that the same request may succeed later: the runtime
	// is restarting, a registry is slow, a disk is full.
	ErrTransient = errors.New("transient")
	// ErrUnavailable says that the other side cannot be reached at all.
	ErrUnavailable = errors.New("unavailable")
	// ErrExpired says that a requested revision is older than the history
	// that is kept; the caller lists again.
	ErrExpired = errors.New("expired")
)

// Errorf is fmt.Errorf for an error of a kind that errors.Is sees and that its
// words do not tell: they are for people.
func Errorf(kind error, format string, args ...any) error {
	return kinded{fmt.Errorf(format, args...), kind}
}

type kinded struct {
	error
	kind error
}

func (k kinded) Unwrap() []error { return []error{k.error, k.kind} }
