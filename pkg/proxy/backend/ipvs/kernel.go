package ipvs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"

	"github.com/moby/ipvs"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// table is the kernel's IPVS, or a test's.
type table interface {
	// list is what the keys are wanted of; others' may be there, too.
	list(wanted func(key) bool) ([]service, error)
	// get is one of them; nil is that there is none.
	get(key) (*service, error)
	// text is what the kernel shows to people, read into buf. See look.go.
	text(buf []byte) ([]byte, error)
	do(step) error
	close()
}

// kernelTable is spoken to over netlink.
type kernelTable struct {
	handle *ipvs.Handle
	shown  *os.File
}

// openTable opens that of the calling thread's network namespace.
func openTable() (table, error) {
	handle, err := ipvs.New("")
	if err != nil {
		return nil, fmt.Errorf("open IPVS's netlink socket: %w", err)
	}
	shown, err := os.Open(shownIn)
	if err != nil {
		handle.Close()
		return nil, fmt.Errorf("open IPVS's text: %w", err)
	}
	return kernelTable{handle, shown}, nil
}

// shownIn is there when the kernel has IPVS in the calling thread's network
// namespace. To ask for it loads no module.
const shownIn = "/proc/thread-self/net/ip_vs"

func (t kernelTable) close() {
	t.handle.Close()
	t.shown.Close()
}

func (t kernelTable) text(buf []byte) ([]byte, error) {
	if _, err := t.shown.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("read IPVS's text: %w", err)
	}
	out := bytes.NewBuffer(buf[:0])
	if _, err := out.ReadFrom(t.shown); err != nil {
		return nil, fmt.Errorf("read IPVS's text: %w", err)
	}
	return out.Bytes(), nil
}

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
		k, err := keyOf(w)
		if err != nil {
			return nil, err
		}
		if !wanted(k) {
			continue
		}
		s, err := t.read(k, w)
		if err != nil {
			return nil, err
		}
		out = append(out, *s)
	}
	return out, nil
}

func (t kernelTable) get(k key) (*service, error) {
	w, err := t.handle.GetService(wireService(service{key: k}))
	switch {
	case errors.Is(err, unix.ESRCH):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read IPVS: %s: %w", k, err)
	}
	return t.read(k, w)
}

func keyOf(w *ipvs.Service) (key, error) {
	if w.FWMark != 0 {
		return key{mark: mark(w.FWMark)}, nil
	}
	addr, ok := netip.AddrFromSlice(w.Address)
	if !ok {
		return key{}, fmt.Errorf("read IPVS: a virtual service with address %v", w.Address)
	}
	return key{addr: addr, proto: ruleset.Proto(w.Protocol), port: w.Port}, nil
}

// read also reads the servers.
func (t kernelTable) read(k key, w *ipvs.Service) (*service, error) {
	s := &service{key: k, scheduler: w.SchedName, flags: w.Flags &^ (flagPersistent | flagHashed)}
	if w.Flags&flagPersistent != 0 {
		s.timeout = w.Timeout
	}
	dests, err := t.handle.GetDestinations(w)
	if err != nil {
		return nil, fmt.Errorf("read IPVS: servers of %s: %w", k, err)
	}
	for _, d := range dests {
		addr, ok := netip.AddrFromSlice(d.Address)
		if !ok {
			return nil, fmt.Errorf("read IPVS: %s has a server with address %v", k, d.Address)
		}
		one := destination{addr: netip.AddrPortFrom(addr, d.Port), weight: d.Weight, conns: d.ActiveConnections + d.InactiveConnections}
		if d.ConnectionFlags&ipvs.ConnectionFlagFwdMask != ipvs.ConnectionFlagMasq {
			one.weight = foreignWeight
		}
		s.dests = append(s.dests, one)
	}
	s.sort()
	return s, nil
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
