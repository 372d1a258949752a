// Package proxy programs Services into the kernel.
package proxy

import (
	"fmt"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// Mode says which kernel facility carries Services.
type Mode string

// ModeNone leaves Services to somebody else; it is the only mode there is until
// a backend is built in.
const ModeNone Mode = "none"

// ParseMode accepts the value of --proxy-mode.
func ParseMode(s string) (Mode, error) {
	if Mode(s) == ModeNone {
		return ModeNone, nil
	}
	return "", fmt.Errorf("proxy mode %q: this build knows %q only: %w", s, ModeNone, errdefs.ErrInvalid)
}
