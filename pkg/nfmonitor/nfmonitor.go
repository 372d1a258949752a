// Package nfmonitor tells of changes that others make to the kernel's
// nf_tables: through nft, iptables over nf_tables, firewalld.
package nfmonitor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The kernel tells of every transaction: its parts, then a message with who
// made it.
const (
	group         = 7 // NFNLGRP_NFTABLES
	attrTable     = 1 // the table's name, in all messages but newGeneration
	attrRuleChain = 2 // NFTA_RULE_CHAIN
	attrChainName = 3 // NFTA_CHAIN_NAME
	newGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWGEN
	getGeneration = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN
	nfgenmsgBytes = 4
	// What one load of 10,000 Services tells is 6 MB; it is a limit, and no
	// memory while nothing waits.
	buffer = 128 << 20
	// rememberSpans is for a monitor that is that many transactions behind.
	rememberSpans = 256
)

// Monitor listens. The kernel counts transactions, and says of each which
// process made it; but that process id means nothing in a container. So our own
// are known by their count: while we make one (Counted) there must be one that
// touches what is watched and no more.
type Monitor struct {
	socket *nl.NetlinkSocket
	ask    *nl.SocketHandle

	mu     sync.Mutex
	closed bool
	port   uint32 // Known's
	spans  []span
}

// span is what the count was before and after a transaction of ours.
type span struct {
	before, after uint32
	touched       int // transactions in between that touched what is watched
}

// Part is one part of a transaction. Chain is that of a rule, or the chain
// itself; it is empty for what is not in a chain.
type Part struct {
	V6           bool
	Table, Chain string
}

// Listen listens from now on, in the network namespace of the calling thread.
func Listen() (*Monitor, error) {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER, group)
	if err != nil {
		return nil, fmt.Errorf("listen for changes of nftables: %w", err)
	}
	m := &Monitor{socket: s}
	if err := s.SetReceiveBufferSize(buffer, true); err != nil {
		m.close()
		return nil, fmt.Errorf("listen for changes of nftables: receive buffer: %w", err)
	}
	// The socket cannot be closed under a reader: the reader looks up now and then.
	if err := s.SetReceiveTimeout(&unix.Timeval{Usec: 200_000}); err != nil {
		m.close()
		return nil, fmt.Errorf("listen for changes of nftables: receive timeout: %w", err)
	}
	ask, err := nl.Subscribe(unix.NETLINK_NETFILTER)
	if err != nil {
		m.close()
		return nil, fmt.Errorf("count changes of nftables: %w", err)
	}
	m.ask = &nl.SocketHandle{Socket: ask}
	return m, nil
}

func (m *Monitor) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	m.socket.Close()
	if m.ask != nil {
		m.ask.Close()
	}
}

// Watcher says what is watched and what is to be done.
type Watcher struct {
	// Touches says that a part is watched.
	Touches func(Part) bool
	// Changed comes after a transaction of somebody else, with its such parts.
	Changed func(parts map[Part]bool, program string)
	// Lost comes after messages were lost.
	Lost func()
}

// Run listens until the context ends, and closes the monitor.
func (m *Monitor) Run(ctx context.Context, w Watcher) error {
	defer m.close()
	touched := map[Part]bool{}
	for ctx.Err() == nil {
		messages, _, err := m.socket.Receive()
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			clear(touched)
			w.Lost()
			continue
		case err != nil:
			return fmt.Errorf("listen for changes of nftables: %w", err)
		}
		for _, msg := range messages {
			if msg.Header.Type != newGeneration {
				if p := part(msg.Header.Type, msg.Data); w.Touches(p) {
					touched[p] = true
				}
				continue
			}
			id, ok := generationID(msg.Data)
			if len(touched) > 0 && !m.known(msg.Header.Pid) && (!ok || !m.own(id)) {
				w.Changed(touched, text(msg.Data, unix.NFTA_GEN_PROC_NAME))
			}
			clear(touched)
		}
	}
	return nil
}

func part(messageType uint16, message []byte) Part {
	if len(message) < nfgenmsgBytes {
		return Part{}
	}
	p := Part{V6: message[0] == unix.AF_INET6, Table: text(message, attrTable)}
	switch messageType & 0xff {
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		p.Chain = text(message, attrRuleChain)
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN:
		p.Chain = text(message, attrChainName)
	}
	return p
}

// Known tells the port of a netlink socket that stays open, and that only our own
// transactions are made with: these need not be Counted. A nil monitor takes it.
func (m *Monitor) Known(port uint32) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.port = port
}

func (m *Monitor) known(port uint32) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.port != 0 && m.port == port
}

// own says that we made the transaction; it waits for one under way.
func (m *Monitor) own(id uint32) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.spans {
		s := &m.spans[i]
		if int32(id-s.before) > 0 && int32(id-s.after) <= 0 { // the count may wrap
			s.touched++
			return s.touched == 1
		}
	}
	return false
}

// Counted makes one transaction of our own. Without a monitor, or with one that
// has ended, it only does that.
func (m *Monitor) Counted(run func() error) error {
	if m == nil {
		return run()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return run()
	}
	before, err := m.generation()
	if err != nil {
		return err
	}
	if err := run(); err != nil {
		return err
	}
	after, err := m.generation()
	if err != nil {
		return err
	}
	m.spans = append(m.spans, span{before: before, after: after})
	if len(m.spans) > rememberSpans {
		m.spans = slices.Delete(m.spans, 0, 1)
	}
	return nil
}

// generation is the kernel's count of transactions.
func (m *Monitor) generation() (uint32, error) {
	req := nl.NewNetlinkRequest(getGeneration, 0)
	req.AddRawData(make([]byte, nfgenmsgBytes))
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: m.ask}
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
	value := attribute(message, unix.NFTA_GEN_ID)
	if len(value) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(value), true
}

func text(message []byte, kind uint16) string {
	return strings.TrimRight(string(attribute(message, kind)), "\x00")
}

// attribute is an attribute's value, nil if there is none. A load of 10,000
// Services tells of a hundred thousand things: nothing is allocated here.
func attribute(message []byte, kind uint16) []byte {
	if len(message) < nfgenmsgBytes {
		return nil
	}
	for b := message[nfgenmsgBytes:]; len(b) >= unix.SizeofNlAttr; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofNlAttr || size > len(b) {
			return nil
		}
		if binary.NativeEndian.Uint16(b[2:]) == kind {
			return b[unix.SizeofNlAttr:size]
		}
		b = b[min(len(b), (size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1)):]
	}
	return nil
}
