package proxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// The modes that are none of Options.Modes.
const (
	ModeAuto = "auto"
	ModeNone = "none"
)

// Mode is a backend that may be chosen.
type Mode struct {
	Name string
	// Kernel says that the kernel forwards the packets, and remembers flows.
	Kernel bool
	// Detect says why this host cannot have the mode. It changes nothing, but may
	// load a module that the mode needs.
	Detect func(ctx context.Context) error
	// Used says that the mode may have something in the kernel, and loads
	// nothing; nil is that it may when Detect finds nothing wrong.
	Used func() bool
	New  func() Backend
}

// used says that the mode may have something in the kernel.
func (m Mode) used(ctx context.Context) bool {
	if m.Used != nil {
		return m.Used()
	}
	return m.Detect(ctx) == nil
}

// choose takes the mode that is asked for, or for auto the first that is possible.
func (p *Proxy) choose(ctx context.Context) (Mode, error) {
	var reasons []error
	for _, m := range p.o.Modes {
		if p.o.Mode != ModeAuto && p.o.Mode != m.Name {
			continue
		}
		err := m.Detect(ctx)
		if err == nil {
			p.o.Log.Info("Services are served", "mode", m.Name)
			return m, nil
		}
		if ctx.Err() != nil {
			return Mode{}, ctx.Err()
		}
		err = fmt.Errorf("proxy mode %s is not possible on this host: %w", m.Name, err)
		if p.o.Mode == ModeAuto {
			p.o.Log.Info("passed over", "mode", m.Name, "err", err)
		}
		reasons = append(reasons, err)
	}
	if len(reasons) == 0 {
		return Mode{}, fmt.Errorf("there is no proxy mode %q", p.o.Mode)
	}
	return Mode{}, errors.Join(reasons...)
}

// note finds out, once, what other modes may have left.
func (p *Proxy) note(ctx context.Context) (err error) {
	if r := &p.run; !r.noted {
		r.leftovers, err = p.leftovers(ctx, r.mode.Name)
		r.noted = err == nil
	}
	return err
}

// leftovers are the modes other than this one that may have something in the
// kernel. They are noted, with this one, before it puts anything there: a crash
// at any point leaves no mode behind that nobody knows of.
func (p *Proxy) leftovers(ctx context.Context, current string) ([]string, error) {
	old, known, err := readModes(p.o.StateFile)
	if err != nil {
		return nil, err
	}
	if !known { // the folder is new or was lost: any of them
		for _, m := range p.o.Modes {
			if m.Name != current && m.used(ctx) {
				old = append(old, m.Name)
			}
		}
	}
	old = slices.DeleteFunc(old, func(m string) bool { return m == current })
	return old, writeModes(p.o.StateFile, append([]string{current}, old...))
}

// cleanLeftovers removes what other modes left, now that the current one serves.
func (p *Proxy) cleanLeftovers(ctx context.Context) error {
	if len(p.run.leftovers) == 0 {
		return nil
	}
	left, err := cleanModes(ctx, p.o.Modes, p.run.leftovers)
	if err == nil && p.run.applied.Node.LoopbackNodePorts {
		// All modes need the same switch of the kernel for these, and who leaves
		// turns it off if it was the one who turned it on.
		p.run.backend.Forget()
		p.run.full = true
		p.queue()
	}
	for _, name := range p.run.leftovers {
		if !slices.Contains(left, name) {
			p.o.Log.Info("nothing of another proxy mode is left", "mode", name)
		}
	}
	p.run.leftovers = left
	current := []string{p.run.mode.Name}
	return errors.Join(err, writeModes(p.o.StateFile, append(current, left...)))
}

// runNone removes what earlier modes left, once.
func (p *Proxy) runNone(ctx context.Context) error {
	p.setReason("")
	for delay := firstRetry; ; delay = min(2*delay, lastRetry) {
		names, known, err := readModes(p.o.StateFile)
		if err == nil && known { // else there was never a proxy
			err = cleanNoted(ctx, p.o.Modes, names, p.o.StateFile)
		}
		if err == nil || ctx.Err() != nil {
			return nil
		}
		p.o.Log.Warn("rules of an earlier proxy mode stay; it is tried again", "err", err)
		p.nodeEvent(corev1.EventTypeWarning, "ProxyCleanupFailed", err.Error())
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(delay):
		}
	}
}

// Cleanup removes what any of the modes put into the kernel: those that are
// noted in the file and those that may be in use.
func Cleanup(ctx context.Context, modes []Mode, stateFile string) error {
	names, _, err := readModes(stateFile)
	if err != nil {
		return err
	}
	for _, m := range modes {
		if !slices.Contains(names, m.Name) && m.used(ctx) {
			names = append(names, m.Name)
		}
	}
	return cleanNoted(ctx, modes, names, stateFile)
}

// cleanNoted keeps a note of those that could not be cleaned up.
func cleanNoted(ctx context.Context, modes []Mode, names []string, stateFile string) error {
	left, err := cleanModes(ctx, modes, names)
	if len(left) > 0 {
		return errors.Join(err, writeModes(stateFile, left))
	}
	if rmErr := os.Remove(stateFile); !errors.Is(rmErr, fs.ErrNotExist) {
		err = errors.Join(err, rmErr)
	}
	return err
}

// cleanModes returns the names of those that could not be cleaned up.
func cleanModes(ctx context.Context, modes []Mode, names []string) (left []string, err error) {
	for _, name := range names {
		i := slices.IndexFunc(modes, func(m Mode) bool { return m.Name == name })
		if i < 0 {
			continue // of an agent that knew more of them; nobody can remove it
		}
		b := modes[i].New()
		if e := errors.Join(b.Cleanup(ctx), b.Close()); e != nil {
			left = append(left, name)
			err = errors.Join(err, fmt.Errorf("remove the rules of proxy mode %s: %w", name, e))
		}
	}
	return left, err
}

// readModes reads one name a line.
func readModes(file string) (names []string, known bool, err error) {
	b, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, false, nil
	case err != nil:
		return nil, false, fmt.Errorf("the proxy modes in use: %w", err)
	}
	return strings.Fields(string(b)), true, nil
}

func writeModes(file string, names []string) error {
	text := strings.Join(names, "\n") + "\n"
	if old, err := os.ReadFile(file); err == nil && string(old) == text {
		return nil
	}
	tmp := filepath.Join(filepath.Dir(file), "."+filepath.Base(file))
	err := os.WriteFile(tmp, []byte(text), 0o600)
	if err == nil {
		err = os.Rename(tmp, file)
	}
	if err != nil {
		return fmt.Errorf("note the proxy modes in use: %w", err)
	}
	return nil
}
