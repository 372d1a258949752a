package cli

import (
	"context"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
	"k8s.io/client-go/tools/remotecommand"
)

// Terminal is the one the user sits at.
type Terminal interface {
	// In and Out say whether standard input and output are a terminal.
	In() bool
	Out() bool
	// Raw hands every key on as it is, until restore is called.
	Raw() (restore func() error, err error)
	// Size of the terminal, in cells.
	Size() (width, height uint16, err error)
	// Resized is told when the size may have changed, until ctx ends.
	Resized(ctx context.Context) <-chan os.Signal
}

// files is the Terminal behind two streams, which may be none.
type files struct{ in, out *os.File }

func newTerminal(in io.Reader, out io.Writer) Terminal {
	var t files
	t.in, _ = in.(*os.File)
	t.out, _ = out.(*os.File)
	return t
}

func (t files) In() bool  { return t.in != nil && term.IsTerminal(int(t.in.Fd())) }
func (t files) Out() bool { return t.out != nil && term.IsTerminal(int(t.out.Fd())) }

func (t files) Raw() (func() error, error) {
	fd := int(t.in.Fd())
	state, err := term.MakeRaw(fd)
	if err != nil {
		return nil, err
	}
	return func() error { return term.Restore(fd, state) }, nil
}

func (t files) Size() (uint16, uint16, error) {
	w, h, err := term.GetSize(int(t.in.Fd()))
	return uint16(w), uint16(h), err
}

func (t files) Resized(ctx context.Context) <-chan os.Signal {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, unix.SIGWINCH)
	context.AfterFunc(ctx, func() { signal.Stop(ch) })
	return ch
}

// sizes feeds the terminal's size to a remote one: once at first, then when it
// changes.
type sizes struct {
	ctx     context.Context
	term    Terminal
	resized <-chan os.Signal
	first   bool
}

func newSizes(ctx context.Context, t Terminal) *sizes {
	return &sizes{ctx: ctx, term: t, resized: t.Resized(ctx), first: true}
}

// Next blocks for the next size; nil ends the sizes.
func (s *sizes) Next() *remotecommand.TerminalSize {
	if !s.first {
		select {
		case <-s.ctx.Done():
			return nil
		case <-s.resized:
		}
	}
	s.first = false
	w, h, err := s.term.Size()
	if err != nil {
		return nil
	}
	return &remotecommand.TerminalSize{Width: w, Height: h}
}
