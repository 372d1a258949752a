// Package nft runs nft(8), and collects what is to come into and go out of the
// maps and sets of a table.
package nft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// Command is the program and its first arguments; nil is nft.
type Command []string

// Run runs it and returns what it prints. It dies with us: one that outlives an
// agent would change the tables under the next one. The kernel sends that signal
// when the thread ends, so the thread is kept.
func (c Command) Run(ctx context.Context, in io.Reader, args ...string) ([]byte, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if c == nil {
		c = Command{"nft"}
	}
	cmd := exec.CommandContext(ctx, c[0], append(slices.Clone(c[1:]), args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out, failure bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &out, &failure
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, fmt.Errorf("%w: install nftables, or choose another --proxy-mode", err)
	} else if err != nil {
		lines := strings.SplitN(strings.TrimSpace(failure.String()), "\n", 6)
		return nil, fmt.Errorf("nft: %w: %s", err, strings.Join(lines[:min(5, len(lines))], "\n"))
	}
	return out.Bytes(), nil
}

// Apply makes one transaction, if there is something in it.
func (c Command) Apply(ctx context.Context, text *bytes.Buffer) error {
	if text.Len() == 0 {
		return nil
	}
	_, err := c.Run(ctx, text, "-f", "-")
	return err
}

// Check is the command that changes nothing.
func (c Command) Check() Command {
	if c == nil {
		c = Command{"nft"}
	}
	return append(slices.Clone(c), "--check")
}

// Element is an entry of a map, or without a Value of a set.
type Element struct{ In, Key, Value string }

// Elements are what comes into and goes out of the maps and sets of one family.
type Elements struct {
	has      func(netip.Addr) bool
	del, add map[string]*bytes.Buffer // by map or set
}

// NewElements is for the family that has those addresses.
func NewElements(has func(netip.Addr) bool) *Elements {
	return &Elements{has, map[string]*bytes.Buffer{}, map[string]*bytes.Buffer{}}
}

func put(to map[string]*bytes.Buffer, in, text string) {
	b := to[in]
	if b == nil {
		b = &bytes.Buffer{}
		to[in] = b
	}
	if b.Len() > 0 {
		b.WriteString(", ")
	}
	b.WriteString(text)
}

// Add adds what stands in nft's words.
func (e *Elements) Add(in, text string) { put(e.add, in, text) }

// Difference leaves alone what stays the same.
func (e *Elements) Difference(before, after []Element) {
	old := make(map[Element]bool, len(before))
	for _, x := range before {
		old[x] = true
	}
	for _, x := range after {
		if old[x] {
			delete(old, x)
			continue
		}
		text := x.Key
		if x.Value != "" {
			text += " : " + x.Value
		}
		put(e.add, x.In, text)
	}
	for _, x := range before { // in their order, for one that reads it
		if old[x] {
			put(e.del, x.In, x.Key)
		}
	}
}

// Addrs is the difference of two sorted lists of addresses.
func (e *Elements) Addrs(set string, old, now []netip.Addr, text func(netip.Addr) string) {
	gone, added := ruleset.DiffAddrs(old, now)
	e.Moves(set, gone, added, text)
}

// Moves takes out addresses and puts in others.
func (e *Elements) Moves(set string, gone, added []netip.Addr, text func(netip.Addr) string) {
	for _, a := range gone {
		if e.has(a) {
			put(e.del, set, text(a))
		}
	}
	for _, a := range added {
		if e.has(a) {
			put(e.add, set, text(a))
		}
	}
}

// Write writes what goes before what comes in its place.
func (e *Elements) Write(out *bytes.Buffer, family, table string) {
	e.each(func(add bool, in string, text []byte) bool {
		verb := "delete"
		if add {
			verb = "add"
		}
		fmt.Fprintf(out, "%s element %s %s %s { ", verb, family, table, in)
		out.Write(text)
		out.WriteString(" }\n")
		return true
	})
}

// each goes through the changes of each map or set, until one is false.
func (e *Elements) each(f func(add bool, in string, text []byte) bool) bool {
	for i, all := range []map[string]*bytes.Buffer{e.del, e.add} {
		for _, in := range slices.Sorted(maps.Keys(all)) {
			if !f(i == 1, in, all[in].Bytes()) {
				return false
			}
		}
	}
	return true
}
