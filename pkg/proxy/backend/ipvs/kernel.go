package ipvs

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/moby/ipvs"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// table is the kernel's IPVS, or a test's.
type table interface {
	// list is what the keys are wanted of; others' may be there, too.
	list(wanted func(key) bool) ([]service, error)
	has(service) bool
	do(step) error
	close()
}

// kernelTable is spoken to over netlink. (/proc/net/ip_vs would give all at
// once, but leaves some out while other network namespaces have theirs.)
type kernelTable struct{ handle *ipvs.Handle }

// openTable opens that of the calling thread's network namespace.
func openTable() (table, error) {
	handle, err := ipvs.New("")
	if err != nil {
		return nil, fmt.Errorf("open IPVS's netlink socket: %w", err)
	}
	return kernelTable{handle}, nil
}

func (t kernelTable) close() { t.handle.Close() }

func (t kernelTable) has(s service) bool { return t.handle.IsServicePresent(wireService(s)) }

func (t kernelTable) do(s step) error {
	svc, dest := wireService(s.of), wireDest(s.dest)
	var err error
	switch {
	case s.what == putService && s.exists:
		err = t.handle.UpdateService(svc)
	case s.what == putService:
		err = t.handle.NewService(svc)
	case s.what == deleteService:
		err = t.handle.DelService(svc)
	case s.what == putDest && s.exists:
		err = t.handle.UpdateDestination(svc, dest)
	case s.what == putDest:
		err = t.handle.NewDestination(svc, dest)
	default:
		err = t.handle.DelDestination(svc, dest)
	}
	if s.what == putService && errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("this kernel has no IPVS scheduler %q (module ip_vs_%s): choose another --ipvs-scheduler: %w", s.of.scheduler, s.of.scheduler, err)
	}
	return err
}

// Flags that the kernel has besides those of a scheduler.
const (
	flagPersistent = 1
	flagHashed     = 2
)

const (
	netmask4 = 1<<32 - 1 // a mask
	netmask6 = 128       // a length
)

func wireService(s service) *ipvs.Service {
	w := &ipvs.Service{
		FWMark: uint32(s.key.mark), SchedName: s.scheduler, Flags: s.flags,
		AddressFamily: unix.AF_INET, Netmask: netmask4, Protocol: uint16(s.key.proto), Port: s.key.port,
	}
	if s.key.mark == 0 {
		w.Address = s.key.addr.AsSlice()
	}
	if !s.key.is4() {
		w.AddressFamily, w.Netmask = unix.AF_INET6, netmask6
	}
	if s.timeout > 0 {
		w.Flags |= flagPersistent
		w.Timeout = s.timeout
	}
	return w
}

func wireDest(d destination) *ipvs.Destination {
	return &ipvs.Destination{
		Address: d.addr.Addr().AsSlice(), Port: d.addr.Port(), Weight: d.weight,
		ConnectionFlags: ipvs.ConnectionFlagMasq,
	}
}

func (t kernelTable) list(wanted func(key) bool) (out []service, err error) {
	all, err := t.handle.GetServices()
	if err != nil {
		return nil, fmt.Errorf("read IPVS: virtual services: %w", err)
	}
	for _, w := range all {
		s := service{key: key{mark: mark(w.FWMark)}, scheduler: w.SchedName, flags: w.Flags &^ (flagPersistent | flagHashed)}
		if w.Flags&flagPersistent != 0 {
			s.timeout = w.Timeout
		}
		if w.FWMark == 0 {
			addr, ok := netip.AddrFromSlice(w.Address)
			if !ok {
				return nil, fmt.Errorf("read IPVS: a virtual service with address %v", w.Address)
			}
			s.key = key{addr: addr, proto: ruleset.Proto(w.Protocol), port: w.Port}
		}
		if !wanted(s.key) {
			continue
		}
		dests, err := t.handle.GetDestinations(w)
		if err != nil {
			return nil, fmt.Errorf("read IPVS: servers of %s: %w", s.key, err)
		}
		for _, d := range dests {
			addr, ok := netip.AddrFromSlice(d.Address)
			if !ok {
				return nil, fmt.Errorf("read IPVS: %s has a server with address %v", s.key, d.Address)
			}
			one := destination{addr: netip.AddrPortFrom(addr, d.Port), weight: d.Weight, conns: d.ActiveConnections + d.InactiveConnections}
			if d.ConnectionFlags&ipvs.ConnectionFlagFwdMask != ipvs.ConnectionFlagMasq {
				one.weight = foreignWeight
			}
			s.dests = append(s.dests, one)
		}
		slices.SortFunc(s.dests, func(a, b destination) int { return a.addr.Compare(b.addr) })
		out = append(out, s)
	}
	return out, nil
}

// foreignWeight is of a server that is not reached by address translation: it
// cannot be ours.
const foreignWeight = -1

// release is the kernel's version, as far as it counts.
func release() (major, minor int, err error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return 0, 0, fmt.Errorf("kernel version: %w", err)
	}
	text := string(u.Release[:bytes.IndexByte(u.Release[:], 0)])
	if _, err := fmt.Sscanf(text, "%d.%d", &major, &minor); err != nil {
		return 0, 0, fmt.Errorf("kernel version %q: %w", text, err)
	}
	return major, minor, nil
}
