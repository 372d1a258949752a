// Package iptables runs the iptables programs of a host: both variants (over
// nf_tables, and the older one with tables of its own in the kernel) and both
// IP families. It reads no more of a table than who has chains of one prefix,
// and changes only these and the jumps to them.
package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-iptables/iptables"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// Variant is which of the kernel's two packet filters a program speaks to.
type Variant string

// The variants. Default is the host's choice: what plain iptables is.
const (
	Default Variant = ""
	NFT     Variant = "nft"
	Legacy  Variant = "legacy"
)

// Tool is the programs of one variant and family.
type Tool struct {
	Variant Variant
	V6      bool
	// Mode is what Info says of the variant, for who has asked already.
	Mode Variant
	// LockWait is how long others may hold the lock of iptables; 0 is 30 s.
	LockWait time.Duration
	// Around runs each transaction; nil is nobody who wants to know.
	Around func(transaction func() error) error
}

// Program is the name of a program: suffix is "", "save" or "restore".
func (t Tool) Program(suffix string) string {
	name := "iptables"
	if t.V6 {
		name = "ip6tables"
	}
	for _, part := range []string{string(t.Variant), suffix} {
		if part != "" {
			name += "-" + part
		}
	}
	return name
}

// Info is what a program says of itself.
type Info struct {
	Variant Variant // NFT or Legacy
	Version string
}

// Older ones have no iptables-restore --wait and no MASQUERADE --random-fully.
var oldest = [3]int{1, 6, 2}

// Info tells the variant and the version. The error has ErrNotFound where the
// programs are not installed, ErrInvalid where they are too old.
func (t Tool) Info() (Info, error) {
	for _, suffix := range []string{"", "save", "restore"} {
		if _, err := exec.LookPath(t.Program(suffix)); err != nil {
			return Info{}, errdefs.Errorf(errdefs.ErrNotFound, "%s cannot be run: install the package iptables: %w", t.Program(suffix), err)
		}
	}
	proto := iptables.ProtocolIPv4
	if t.V6 {
		proto = iptables.ProtocolIPv6
	}
	ipt, err := iptables.New(iptables.IPFamily(proto), iptables.Path(t.Program("")))
	if err != nil {
		return Info{}, fmt.Errorf("%s: %w", t.Program(""), err)
	}
	var v [3]int
	v[0], v[1], v[2] = ipt.GetIptablesVersion()
	info := Info{Variant: Legacy, Version: fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2])}
	for i := range v {
		if v[i] > oldest[i] {
			break
		}
		if v[i] < oldest[i] {
			return info, errdefs.Errorf(errdefs.ErrInvalid, "%s is version %s: at least 1.6.2 is needed", t.Program(""), info.Version)
		}
	}
	// go-iptables knows the variant and does not tell.
	out, err := exec.Command(t.Program(""), "--version").Output()
	if err != nil {
		return info, fmt.Errorf("%s --version: %w", t.Program(""), err)
	}
	if bytes.Contains(out, []byte("(nf_tables)")) {
		info.Variant = NFT
	}
	return info, nil
}

// wait is the lock's patience as the programs take it.
func (t Tool) wait() string {
	if t.LockWait == 0 {
		return "30"
	}
	return strconv.Itoa(int(max(t.LockWait, time.Second) / time.Second))
}

// Restore changes one table in one transaction; what text does not name stays.
func (t Tool) Restore(ctx context.Context, text []byte) error {
	transaction := func() error {
		return t.run(ctx, text, nil, t.Program("restore"), "--noflush", "--wait="+t.wait())
	}
	if t.Around != nil {
		return t.Around(transaction)
	}
	return transaction()
}

// What the programs exit with when a chain or rule is not there, and when the
// lock was not to be had.
const (
	exitOther    = 1
	exitResource = 4
)

// run runs a program; what it prints goes to out, if anybody reads it. It dies with us: one that outlives an agent would change
// the tables under the next one. The kernel sends that signal when the thread
// ends, so the thread is kept.
func (t Tool) run(ctx context.Context, in []byte, out io.Writer, name string, args ...string) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), out, &errs
	err := cmd.Run()
	if err == nil {
		return nil
	}
	var exit *exec.ExitError
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return errdefs.Errorf(errdefs.ErrNotFound, "%s cannot be run: install the package iptables: %w", name, err)
	case errors.As(err, &exit) && exit.ExitCode() == exitResource:
		return errdefs.Errorf(errdefs.ErrTransient,
			"%s: another program held the lock of iptables for %s s (`fuser -v %s` names it); it is tried again: %s",
			name, t.wait(), LockFile(), firstLines(errs.String(), 3))
	}
	return fmt.Errorf("%s: %w: %s", name, err, firstLines(errs.String(), 5))
}

// LockFile is the lock of iptables-legacy.
func LockFile() string {
	if f := os.Getenv("XTABLES_LOCKFILE"); f != "" {
		return f
	}
	return "/run/xtables.lock"
}

func firstLines(s string, n int) string {
	lines := strings.SplitN(strings.TrimSpace(s), "\n", n+1)
	return strings.Join(lines[:min(n, len(lines))], "\n")
}
