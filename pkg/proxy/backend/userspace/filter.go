package userspace

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// A socket filter sees a packet before a listening socket does: a TCP
// connection that it does not let through is never answered, and that takes no
// netfilter. Kernels may refuse it to the unprivileged over TCP (6.18 does). Offsets and limits are from linux/filter.h.
const (
	netOff, adOff = 0xfff00000, 0xfffff000 // SKF_NET_OFF, SKF_AD_OFF
	adIfindex     = 8
	loopback      = 1 // the first interface of every network namespace
	letIn         = 0xffffffff
	longest       = 4096 // BPF_MAXINSNS
)

// filter is the program for a frontend; nil lets everybody in. It is what
// Ruleset.Trace drops, but for reasons that come later.
func (b *Backend) filter(f *ruleset.Frontend) []unix.SockFilter {
	inside := len(f.Endpoints) == 0 // others have no endpoint here
	if len(f.SourceRanges) == 0 && !inside {
		return nil
	}
	v4 := f.Key.Addr.Is4()
	var prog []unix.SockFilter
	if len(f.SourceRanges) > 0 {
		prog = within(f.SourceRanges, v4)
		if b.nodeWithin(f.SourceRanges) {
			skip := unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(prog))}
			prog = append([]unix.SockFilter{load(adOff + adIfindex), equal(loopback, 0, 1), skip}, prog...)
		}
	}
	if !inside {
		return append(prog, ret(letIn))
	}
	if len(f.Inside) == 0 {
		return []unix.SockFilter{ret(0)}
	}
	// The node's own packets come from the loopback device.
	for _, index := range append([]int{loopback}, b.node.pods...) {
		prog = append(prog, load(adOff+adIfindex), equal(uint32(index), 0, 1), ret(letIn))
	}
	if b.now.Node.LocalPods.Interface == "" {
		prog = append(prog, within(b.now.Node.LocalPods.Prefixes, v4)...)
		return append(prog, ret(letIn))
	}
	return append(prog, ret(0))
}

// within goes on behind itself if the source is within one of the prefixes,
// and drops the packet otherwise.
func within(prefixes []netip.Prefix, v4 bool) []unix.SockFilter {
	var parts [][]unix.SockFilter
	total := 1
	for _, p := range prefixes {
		if p.Addr().Is4() == v4 {
			parts = append(parts, match(p))
			total += len(parts[len(parts)-1]) + 1
		}
	}
	prog := make([]unix.SockFilter, 0, total)
	for _, p := range parts {
		prog = append(prog, p...)
		jump := unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(total - len(prog) - 1)}
		prog = append(prog, jump)
	}
	return append(prog, ret(0))
}

// match skips one instruction behind itself if the source is not within p.
func match(p netip.Prefix) []unix.SockFilter {
	offset, ip := uint32(netOff+12), p.Masked().Addr().AsSlice()
	if p.Addr().Is6() {
		offset = netOff + 8
	}
	var prog []unix.SockFilter
	for i := 0; i < len(ip) && p.Bits() > i*8; i += 4 {
		mask := ^uint32(0)
		if rest := p.Bits() - i*8; rest < 32 {
			mask <<= 32 - rest
		}
		word := uint32(ip[i])<<24 | uint32(ip[i+1])<<16 | uint32(ip[i+2])<<8 | uint32(ip[i+3])
		prog = append(prog, load(offset+uint32(i)),
			unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask}, equal(word, 0, 0))
	}
	for i := range prog {
		if prog[i].Code == unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K {
			prog[i].Jf = uint8(len(prog) - i) // over the rest and the jump after it
		}
	}
	return prog
}

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

func equal(k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: yes, Jf: no}
}

func ret(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }

// attach puts a program before a socket, or takes it away.
func attach(fd int, prog []unix.SockFilter) error {
	if len(prog) == 0 {
		err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
		if err == unix.ENOENT {
			return nil
		}
		return err
	}
	if len(prog) > longest {
		return fmt.Errorf("its source ranges do not fit into a socket filter of %d instructions", longest)
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]})
}
