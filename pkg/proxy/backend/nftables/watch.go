package nftables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The kernel tells of every transaction: its parts, then a message with who
// made it.
const (
	groupNftables = 7 // NFNLGRP_NFTABLES
	attrTable     = 1 // the table's name, in all messages but newGeneration
	newGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN
	getGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN
	nfgenmsgBytes = 4
	// What one load of 10,000 Services tells is 6 MB; it is a limit, and no
	// memory while nothing waits.
	watchBuffer = 128 << 20
	// rememberSpans is for a watcher that is that many transactions behind.
	rememberSpans = 256
)

// Watch tells when somebody else changes our tables: iptables and firewalld
// flush, people edit. The kernel counts transactions, and says of each which
// process made it; but that process id means nothing in a container. So ours
// are known by their count: while our nft runs there must be one that touches
// our tables and no more.
type Watch struct {
	b      *Backend
	socket *nl.NetlinkSocket
	ask    *nl.SocketHandle
}

// span is what the count was before and after a run of our nft.
type span struct {
	before, after uint32
	touched       int // transactions in between that touched our tables
}

// Watch listens from now on, in the network namespace of the calling thread.
func (b *Backend) Watch() (*Watch, error) {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER, groupNftables)
	if err != nil {
		return nil, fmt.Errorf("listen for changes of nftables: %w", err)
	}
	w := &Watch{b: b, socket: s}
	if err := s.SetReceiveBufferSize(watchBuffer, true); err != nil {
		w.close()
		return nil, fmt.Errorf("listen for changes of nftables: receive buffer: %w", err)
	}
	// The socket cannot be closed under a reader: the reader looks up now and then.
	if err := s.SetReceiveTimeout(&unix.Timeval{Usec: 200_000}); err != nil {
		w.close()
		return nil, fmt.Errorf("listen for changes of nftables: receive timeout: %w", err)
	}
	ask, err := nl.Subscribe(unix.NETLINK_NETFILTER)
	if err != nil {
		w.close()
		return nil, fmt.Errorf("count changes of nftables: %w", err)
	}
	w.ask = &nl.SocketHandle{Socket: ask}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.watch = w
	return w, nil
}

func (w *Watch) close() {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	if w.b.watch == w {
		w.b.watch = nil
	}
	w.socket.Close()
	if w.ask != nil {
		w.ask.Close()
	}
}

// generation is the kernel's count of transactions.
func (w *Watch) generation() (uint32, error) {
	req := nl.NewNetlinkRequest(getGeneration, 0)
	req.AddRawData(make([]byte, nfgenmsgBytes))
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: w.ask}
	answers, err := req.Execute(unix.NETLINK_NETFILTER, newGeneration)
	if err != nil {
		return 0, fmt.Errorf("count changes of nftables: %w", err)
	}
	for _, a := range answers {
		if id, ok := generationID(a); ok {
			return id, nil
		}
	}
	return 0, errors.New("count changes of nftables: the kernel's answer holds no count")
}

func generationID(message []byte) (uint32, bool) {
	value, ok := attribute(message, unix.NFTA_GEN_ID)
	if !ok || len(value) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(value), true
}

func attribute(message []byte, kind uint16) ([]byte, bool) {
	if len(message) < nfgenmsgBytes {
		return nil, false
	}
	attrs, err := nl.ParseRouteAttr(message[nfgenmsgBytes:])
	if err != nil {
		return nil, false
	}
	for _, a := range attrs {
		if a.Attr.Type == kind {
			return a.Value, true
		}
	}
	return nil, false
}

// Run calls changed after each change by others, until the context ends; the
// cure is Forget and Apply. It also does after messages were lost.
func (w *Watch) Run(ctx context.Context, changed func()) error {
	defer w.close()
	touched := false
	for ctx.Err() == nil {
		messages, _, err := w.socket.Receive()
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			w.b.opts.Log.Warn("lost track of changes of nftables: everything is programmed anew")
			touched = false
			changed()
			continue
		case err != nil:
			return fmt.Errorf("listen for changes of nftables: %w", err)
		}
		for _, m := range messages {
			if m.Header.Type != newGeneration {
				table, ok := attribute(m.Data, attrTable)
				touched = touched || ok && strings.TrimRight(string(table), "\x00") == Table
				continue
			}
			id, ok := generationID(m.Data)
			if touched && (!ok || !w.b.own(id)) {
				name, _ := attribute(m.Data, unix.NFTA_GEN_PROC_NAME)
				w.b.opts.Log.Warn("somebody else changed our nftables tables: they are programmed anew",
					"table", Table, "program", strings.TrimRight(string(name), "\x00"))
				changed()
			}
			touched = false
		}
	}
	return nil
}

// own says that we made the transaction; it waits for an Apply under way.
func (b *Backend) own(id uint32) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.spans {
		s := &b.spans[i]
		if int32(id-s.before) > 0 && int32(id-s.after) <= 0 { // the count may wrap
			s.touched++
			return s.touched == 1
		}
	}
	return false
}

// counted runs one transaction and remembers which it was.
func (b *Backend) counted(run func() error) error {
	if b.watch == nil {
		return run()
	}
	before, err := b.watch.generation()
	if err != nil {
		return err
	}
	if err := run(); err != nil {
		return err
	}
	after, err := b.watch.generation()
	if err != nil {
		return err
	}
	b.spans = append(b.spans, span{before: before, after: after})
	if len(b.spans) > rememberSpans {
		b.spans = slices.Delete(b.spans, 0, 1)
	}
	return nil
}
