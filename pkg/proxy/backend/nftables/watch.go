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
	attrPID       = 2 // NFTA_GEN_PROC_PID
	newGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN
	nfgenmsgBytes = 4
	// What one load of 10,000 Services tells is 6 MB; it is a limit, and no
	// memory while nothing waits.
	watchBuffer = 128 << 20
	// rememberPIDs is for a watcher that is that many transactions behind.
	rememberPIDs = 256
)

// Watch tells when somebody else changes our tables: iptables and firewalld
// flush, people edit. The transactions of our own nft are known by its process
// id, so the agent has to be in the kernel's first PID namespace.
type Watch struct {
	b      *Backend
	socket *nl.NetlinkSocket
}

// Watch listens from now on, in the network namespace of the calling thread.
func (b *Backend) Watch() (*Watch, error) {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER, groupNftables)
	if err != nil {
		return nil, fmt.Errorf("listen for changes of nftables: %w", err)
	}
	if err := s.SetReceiveBufferSize(watchBuffer, true); err != nil {
		s.Close()
		return nil, fmt.Errorf("listen for changes of nftables: receive buffer: %w", err)
	}
	// The socket cannot be closed under a reader: the reader looks up now and then.
	if err := s.SetReceiveTimeout(&unix.Timeval{Usec: 200_000}); err != nil {
		s.Close()
		return nil, fmt.Errorf("listen for changes of nftables: receive timeout: %w", err)
	}
	return &Watch{b, s}, nil
}

// Run calls changed after each change by others, until the context ends; the
// cure is Forget and Apply. It also does after messages were lost.
func (w *Watch) Run(ctx context.Context, changed func()) error {
	defer w.socket.Close()
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
			if len(m.Data) < nfgenmsgBytes {
				continue
			}
			attrs, err := nl.ParseRouteAttr(m.Data[nfgenmsgBytes:])
			if err != nil {
				return fmt.Errorf("changes of nftables: message type %d: %w", m.Header.Type, err)
			}
			for _, a := range attrs {
				switch {
				case m.Header.Type != newGeneration && a.Attr.Type == attrTable:
					touched = touched || strings.TrimRight(string(a.Value), "\x00") == Table
				case m.Header.Type == newGeneration && a.Attr.Type == attrPID && len(a.Value) == 4:
					pid := int(binary.BigEndian.Uint32(a.Value))
					if touched && !w.b.own(pid) {
						w.b.opts.Log.Warn("somebody else changed our nftables tables: they are programmed anew", "table", Table, "pid", pid)
						changed()
					}
					touched = false
				}
			}
		}
	}
	return nil
}

// own says that the process wrote for us; it waits for an Apply under way.
func (b *Backend) own(pid int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Contains(b.pids, pid)
}

// started remembers a process of ours.
func (b *Backend) started(pid int) {
	b.pids = append(b.pids, pid)
	if len(b.pids) > rememberPIDs {
		b.pids = slices.Delete(b.pids, 0, 1)
	}
}
