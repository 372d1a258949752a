package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxBatch is far below what a socket sends at once by default. What is larger
// takes nft long anyway, beside which its start is nothing.
const maxBatch = 48 << 10

// Batch is a transaction of elements alone, in the kernel's own words. It takes
// a twentieth of the time of a run of nft.
type Batch struct {
	buf   []byte
	calls int // messages between the first and the last one
}

// NewBatch is an empty transaction.
func NewBatch() *Batch {
	b := &Batch{}
	b.message(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	return b
}

// Elements adds what comes in and goes out of a table of IPv4 or IPv6. It is
// false where only nft has the words, such as those for ranges, and where they
// are too many: the batch is of no use then.
func (b *Batch) Elements(e *Elements, v6 bool, table string) bool {
	return e.each(func(add bool, set string, text []byte) bool {
		family, call, flags := byte(unix.AF_INET), unix.NFT_MSG_DELSETELEM, uint16(0)
		if v6 {
			family = unix.AF_INET6
		}
		if add {
			call, flags = unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE
		}
		start := b.message(unix.NFNL_SUBSYS_NFTABLES<<8|uint16(call), unix.NLM_F_ACK|flags, family, 0)
		b.text(unix.NFTA_SET_ELEM_LIST_TABLE, table)
		b.text(unix.NFTA_SET_ELEM_LIST_SET, set)
		ok := true
		b.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() {
			for element := range strings.SplitSeq(string(text), ", ") {
				if ok = b.element(element); !ok {
					return
				}
			}
		})
		b.end(start)
		b.calls++
		return ok
	})
}

// Empty says that nothing was added.
func (b *Batch) Empty() bool { return b.calls == 0 }

func (b *Batch) element(text string) (ok bool) {
	keyText, valueText, isMap := strings.Cut(text, " : ")
	key, ok := words(keyText)
	if !ok || len(b.buf) > maxBatch {
		return false
	}
	b.nest(unix.NFTA_LIST_ELEM, func() {
		b.nest(unix.NFTA_SET_ELEM_KEY, func() { b.attribute(unix.NFTA_DATA_VALUE, key) })
		if isMap {
			b.nest(unix.NFTA_SET_ELEM_DATA, func() { ok = b.value(valueText) })
		}
	})
	return ok
}

// value is a verdict, what a key is translated to, or a mark, which is a number
// as the machine has it.
func (b *Batch) value(text string) bool {
	if digits, mark := strings.CutPrefix(text, "0x"); mark {
		n, err := strconv.ParseUint(digits, 16, 32)
		b.attribute(unix.NFTA_DATA_VALUE, binary.NativeEndian.AppendUint32(nil, uint32(n)))
		return err == nil
	}
	chain, jump := strings.CutPrefix(text, "goto ")
	code, known := verdicts[text]
	if jump {
		code, known = unix.NFT_GOTO, true
	}
	if !known {
		data, ok := words(text)
		b.attribute(unix.NFTA_DATA_VALUE, data)
		return ok
	}
	b.nest(unix.NFTA_DATA_VERDICT, func() {
		b.attribute(unix.NFTA_VERDICT_CODE, binary.BigEndian.AppendUint32(nil, uint32(code)))
		if jump {
			b.text(unix.NFTA_VERDICT_CHAIN, chain)
		}
	})
	return true
}

// verdicts that lead to no chain: NF_DROP, NF_ACCEPT.
var verdicts = map[string]int32{"drop": 0, "accept": 1, "return": unix.NFT_RETURN}

// words are the registers that hold "ADDRESS . PROTOCOL . PORT . SLOT", or a
// part of it: each begins a new one of four bytes.
func words(text string) (out []byte, ok bool) {
	const (
		port = iota
		slot
	)
	number := port
	for word := range strings.SplitSeq(text, " . ") {
		if proto, known := protocols[word]; known {
			out = append(out, proto, 0, 0, 0)
			continue
		}
		if addr, err := netip.ParseAddr(word); err == nil && addr.Zone() == "" {
			out = append(out, addr.AsSlice()...)
			continue
		}
		n, err := strconv.ParseUint(word, 10, 32)
		switch {
		case err != nil:
			return nil, false
		case number == slot: // which the kernel draws, and nobody sends
			out = binary.NativeEndian.AppendUint32(out, uint32(n))
		case n > 0xffff:
			return nil, false
		default:
			out, number = append(out, byte(n>>8), byte(n), 0, 0), slot
		}
	}
	return out, true
}

var protocols = map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

// message begins a message; end ends it, one without attributes has ended.
func (b *Batch) message(kind, flags uint16, family byte, resource uint16) (start int) {
	start = len(b.buf)
	b.buf = binary.NativeEndian.AppendUint32(b.buf, unix.SizeofNlMsghdr+4)
	b.buf = binary.NativeEndian.AppendUint16(b.buf, kind)
	b.buf = binary.NativeEndian.AppendUint16(b.buf, unix.NLM_F_REQUEST|flags)
	b.buf = append(b.buf, make([]byte, 8)...) // its number and the sender's: the kernel fills in what it needs
	b.buf = append(b.buf, family, unix.NFNETLINK_V0)
	b.buf = binary.BigEndian.AppendUint16(b.buf, resource)
	return start
}

func (b *Batch) end(start int) {
	binary.NativeEndian.PutUint32(b.buf[start:], uint32(len(b.buf)-start))
}

func (b *Batch) attribute(kind uint16, value []byte) {
	b.buf = binary.NativeEndian.AppendUint16(b.buf, uint16(unix.SizeofNlAttr+len(value)))
	b.buf = binary.NativeEndian.AppendUint16(b.buf, kind)
	b.buf = append(b.buf, value...)
	for len(b.buf)%unix.NLA_ALIGNTO != 0 {
		b.buf = append(b.buf, 0)
	}
}

func (b *Batch) text(kind uint16, value string) { b.attribute(kind, append([]byte(value), 0)) }

func (b *Batch) nest(kind uint16, f func()) {
	start := len(b.buf)
	b.attribute(unix.NLA_F_NESTED|kind, nil)
	f()
	binary.NativeEndian.PutUint16(b.buf[start:], uint16(len(b.buf)-start))
}

// Socket sends batches. It stays open from the first one to Close: where a
// transaction removes something, the kernel makes whoever closes a socket wait
// until nobody looks at that any more, which is tens of milliseconds. The zero
// value is ready for use, by one goroutine at a time.
type Socket struct {
	file *os.File
	port uint32
}

// Opened says that it is open.
func (s *Socket) Opened() bool { return s.file != nil }

// Open opens it, if it is not yet, in the network namespace of the calling
// thread.
func (s *Socket) Open() error {
	if s.file != nil {
		return nil
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("nftables: %w", os.NewSyscallError("socket", err))
	}
	err = os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	var own unix.Sockaddr
	if err == nil {
		own, err = unix.Getsockname(fd)
	}
	if err != nil {
		return fmt.Errorf("nftables: %w", errors.Join(err, unix.Close(fd)))
	}
	s.file = os.NewFile(uintptr(fd), "nftables")
	s.port = own.(*unix.SockaddrNetlink).Pid
	return nil
}

// Port is what the kernel knows the socket by while it is open, and nobody else
// has: it names it when it tells of a transaction.
func (s *Socket) Port() uint32 { return s.port }

// Send makes the transaction; it opens the socket before the first one.
func (s *Socket) Send(b *Batch) error {
	if err := s.Open(); err != nil {
		return err
	}
	b.message(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	if err := b.send(int(s.file.Fd())); err != nil {
		return errors.Join(err, s.Close()) // an answer may still be in it
	}
	return nil
}

// Close may be called again, and so may Send.
func (s *Socket) Close() error {
	if s.file == nil {
		return nil
	}
	err := s.file.Close()
	s.file = nil
	return err
}

func (b *Batch) send(s int) error {
	if err := unix.Sendto(s, b.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("nftables: %w", os.NewSyscallError("sendto", err))
	}
	// The kernel has answered each message when it returns: all with 0, or the
	// transaction was not made.
	done := 0
	for answers := make([]byte, 4<<10); done < b.calls; {
		n, _, err := unix.Recvfrom(s, answers, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("nftables: %d of %d changes were answered: %w", done, b.calls, os.NewSyscallError("recvfrom", err))
		}
		for rest := answers[:n]; len(rest) >= unix.SizeofNlMsghdr+4; done++ {
			if code := -int32(binary.NativeEndian.Uint32(rest[unix.SizeofNlMsghdr:])); code != 0 {
				return fmt.Errorf("nftables: change %d of %d: %w", done+1, b.calls, unix.Errno(code))
			}
			rest = rest[min(len(rest), int(binary.NativeEndian.Uint32(rest)+3)&^3):]
		}
	}
	return nil
}
