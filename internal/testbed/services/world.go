// Package services is the conformance suite of the Service backends: a node
// with pods, a client and another node in network namespaces, servers that
// tell who they are and whom they saw, and a table of what packets must do.
// Every backend runs the same suite.
package services

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// Hosts of a world. The remote pod lives on the remote host, as one address
// more; the other pods are behind a bridge of the node.
const (
	Client = "client"
	Node   = "node"
	PodA   = "pod-a"
	PodB   = "pod-b"
	Remote = "remote"
)

// What is served where: the servers listen on both ports with both protocols.
const (
	PortA = 8080
	PortB = 9090
	// PortEcho sends back what comes, over TCP, for as long as a connection lasts.
	PortEcho = 7070
	// PortMany is served over TCP by the remote host on all of ManyEndpoints.
	PortMany = 6060
)

// ManyEndpoints are further addresses of the remote host.
var ManyEndpoints = [2]netip.Prefix{netip.MustParsePrefix("10.245.0.0/16"), netip.MustParsePrefix("fd00:5::/112")}

// addresses by name, IPv4 and IPv6.
var addresses = map[string][2]string{
	Client:     {"192.0.2.10", "2001:db8:1::10"},
	Node:       {"192.0.2.1", "2001:db8:1::1"},
	"node2":    {"198.51.100.1", "2001:db8:2::1"}, // the node towards the remote host
	"bridge":   {"10.244.1.1", "fd00:1::1"},
	PodA:       {"10.244.1.10", "fd00:1::10"},
	PodB:       {"10.244.1.11", "fd00:1::11"},
	Remote:     {"10.244.2.10", "fd00:2::10"},
	"host2":    {"198.51.100.20", "2001:db8:2::20"},
	"cluster":  {"10.96.0.10", "fd00:96::10"},
	"cluster2": {"10.96.0.11", "fd00:96::11"},
	"external": {"203.0.113.6", "2001:db8:99::6"},
	"balancer": {"203.0.113.5", "2001:db8:99::5"},
	"served":   {"10.96.0.53", "fd00:96::53"}, // of the node, in the service range
	"loopback": {"127.0.0.1", "::1"},
}

// PodCIDRs are the addresses of the node's pods.
var PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:1::/64")}

// Addr is an address by its name in one family.
func Addr(name string, v6 bool) netip.Addr {
	pair, ok := addresses[name]
	if !ok {
		panic("no address is called " + name)
	}
	if v6 {
		return netip.MustParseAddr(pair[1])
	}
	return netip.MustParseAddr(pair[0])
}

// NodeAddrs are all addresses of the node but loopback.
func NodeAddrs() (out []netip.Addr) {
	for _, v6 := range []bool{false, true} {
		out = append(out, Addr(Node, v6), Addr("node2", v6), Addr("bridge", v6))
	}
	return out
}

// World is the set of namespaces.
type World struct {
	t      testing.TB
	prefix string
	wg     sync.WaitGroup
	asked  atomic.Uint32 // over UDP, by Dial
}

// setup is run by ip(8) in each namespace. P is the prefix of the
// namespaces' names.
var setup = []struct{ ns, commands string }{
	{Node, `link set lo up
addr add 10.96.0.53/32 dev lo
addr add fd00:96::53/128 dev lo nodad
link add eth0 type veth peer name eth0 netns P-client
link add eth1 type veth peer name eth0 netns P-remote
link add cni0 type bridge
link add veth-a type veth peer name eth0 netns P-pod-a
link add veth-b type veth peer name eth0 netns P-pod-b
link set veth-a master cni0
link set veth-b master cni0
addr add 192.0.2.1/24 dev eth0
addr add 2001:db8:1::1/64 dev eth0 nodad
addr add 198.51.100.1/24 dev eth1
addr add 2001:db8:2::1/64 dev eth1 nodad
addr add 10.244.1.1/24 dev cni0
addr add fd00:1::1/64 dev cni0 nodad
link set eth0 up
link set eth1 up
link set veth-a up
link set veth-b up
link set cni0 up
route add default via 192.0.2.10
route add default via 2001:db8:1::10
route add 10.244.2.0/24 via 198.51.100.20
route add fd00:2::/64 via 2001:db8:2::20
route add 10.245.0.0/16 via 198.51.100.20
route add fd00:5::/112 via 2001:db8:2::20`},
	{Client, host("192.0.2.10/24", "2001:db8:1::10/64", "192.0.2.1", "2001:db8:1::1", "")},
	{Remote, host("198.51.100.20/24", "2001:db8:2::20/64", "198.51.100.1", "2001:db8:2::1", `addr add 10.244.2.10/32 dev lo
addr add fd00:2::10/128 dev lo nodad
route add local 10.245.0.0/16 dev lo
route add local fd00:5::/112 dev lo`)},
	{PodA, host("10.244.1.10/24", "fd00:1::10/64", "10.244.1.1", "fd00:1::1", "")},
	{PodB, host("10.244.1.11/24", "fd00:1::11/64", "10.244.1.1", "fd00:1::1", "")},
}

func host(v4, v6, gate4, gate6, more string) string {
	return fmt.Sprintf(`link set lo up
addr add %s dev eth0
addr add %s dev eth0 nodad
link set eth0 up
route add default via %s
route add default via %s
%s`, v4, v6, gate4, gate6, more)
}

// sysctls of the node. A pod's answer to its neighbour must pass the node's
// conntrack although both are on one bridge, and refusals are not rationed.
var sysctls = map[string]string{
	"net/ipv4/ip_forward":                 "1",
	"net/ipv6/conf/all/forwarding":        "1",
	"net/bridge/bridge-nf-call-iptables":  "1",
	"net/bridge/bridge-nf-call-ip6tables": "1",
	"net/ipv4/icmp_ratelimit":             "0",
	"net/ipv6/icmp/ratelimit":             "0",
}

// worlds counts those of this process: tests may run side by side.
var worlds atomic.Int32

// New makes a world that lives as long as the test.
func New(t testing.TB) *World {
	t.Helper()
	testbed.Require(t, "ip")
	w := &World{t: t, prefix: fmt.Sprintf("svc%d-%d", os.Getpid(), worlds.Add(1))}
	for _, s := range setup {
		w.ip("netns", "add", w.ns(s.ns))
		t.Cleanup(func() { w.ip("netns", "del", w.ns(s.ns)) })
	}
	t.Cleanup(w.wg.Wait)
	for _, s := range setup {
		cmd := exec.Command("ip", "-n", w.ns(s.ns), "-batch", "-")
		cmd.Stdin = strings.NewReader(strings.ReplaceAll(s.commands, "P-", w.prefix+"-"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("ip -batch in %s: %v: %s", s.ns, err, out)
		}
	}
	// A pod that reaches itself comes back through the bridge's port it left by.
	for _, port := range []string{"veth-a", "veth-b"} {
		err := w.In(Node, func() error {
			l, err := netlink.LinkByName(port)
			if err != nil {
				return err
			}
			return netlink.LinkSetHairpin(l, true)
		})
		if err != nil {
			t.Fatalf("hairpin on %s: %v", port, err)
		}
	}
	if noSCTP() == nil {
		// An ICMP error that answers the first packet comes while connect(2) still
		// holds the socket, and is lost: only the one for the second counts.
		for _, s := range setup {
			for _, name := range []string{"min", "initial"} {
				err := w.In(s.ns, func() error { return os.WriteFile("/proc/sys/net/sctp/rto_"+name, []byte("200"), 0o644) })
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for name, value := range sysctls {
		if err := w.Sysctl(name, value); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{PodA, PodB, Remote} {
		for _, port := range []int{PortA, PortB} {
			w.serve(name, name, port)
		}
		for _, v6 := range []bool{false, true} {
			w.serveTCP(name, netip.AddrPortFrom(Addr(name, v6), PortEcho), func(c net.Conn) { _, _ = io.Copy(c, c) })
		}
	}
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		w.serveTCP(Remote, netip.AddrPortFrom(any, PortMany), func(c net.Conn) { _, _ = c.Write(answer("many", PortMany, c.RemoteAddr())) })
	}
	w.serve(Node, "served", PortA)
	w.serve(Node, Node, PortA)
	return w
}

func (w *World) ip(args ...string) {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		w.t.Errorf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

func (w *World) ns(host string) string { return w.prefix + "-" + host }

// Command is a command line in front of which a program runs on the node.
func (w *World) Command(program string) []string {
	return []string{"nsenter", "--net=/run/netns/" + w.ns(Node), program}
}

// Sysctl sets a value of the node's namespace.
func (w *World) Sysctl(name, value string) error {
	return w.In(Node, func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0o644) })
}

// In runs f on a thread within a host's namespace. What f opens stays there.
func (w *World) In(host string, f func() error) error {
	ns, err := os.Open("/run/netns/" + w.ns(host))
	if err != nil {
		return err
	}
	defer ns.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter %s: %w", host, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// ForgetFlows empties the node's connection tracking.
func (w *World) ForgetFlows() {
	w.t.Helper()
	err := w.In(Node, func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
	if err != nil {
		w.t.Fatalf("flush the node's conntrack table: %v", err)
	}
}

// serve answers in a host on one port of both addresses of a name with
// "NAME:PORT SOURCE". The sockets are bound to the addresses: an answer to UDP
// must come from the one that was asked.
func (w *World) serve(host, name string, port int) {
	for _, v6 := range []bool{false, true} {
		addr := netip.AddrPortFrom(Addr(name, v6), uint16(port))
		tell := func(c net.Conn) {
			_, _ = c.Write(answer(name, port, c.RemoteAddr())) // who went away asked for nothing
		}
		w.serveTCP(host, addr, tell)
		if noSCTP() == nil {
			w.serveStreams(host, func() (net.Listener, error) { return listenSCTP(addr) }, tell)
		}
		var p net.PacketConn
		err := w.In(host, func() (err error) { p, err = net.ListenPacket("udp", addr.String()); return err })
		if err != nil {
			w.t.Fatalf("serve %s of %s: %v", addr, name, err)
		}
		w.t.Cleanup(func() { p.Close() })
		w.wg.Go(func() {
			for buf := make([]byte, 64); ; {
				_, from, err := p.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = p.WriteTo(answer(name, port, from), from)
			}
		})
	}
}

// serveTCP serves each connection on its own until the world ends.
func (w *World) serveTCP(host string, addr netip.AddrPort, serve func(net.Conn)) {
	network := "tcp6"
	if addr.Addr().Is4() {
		network = "tcp4"
	}
	w.serveStreams(host, func() (net.Listener, error) { return net.Listen(network, addr.String()) }, serve)
}

func (w *World) serveStreams(host string, listen func() (net.Listener, error), serve func(net.Conn)) {
	var l net.Listener
	if err := w.In(host, func() (err error) { l, err = listen(); return err }); err != nil {
		w.t.Fatalf("serve in %s: %v", host, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.t.Cleanup(func() { cancel(); l.Close() })
	w.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.wg.Go(func() {
				defer c.Close()
				defer context.AfterFunc(ctx, func() { c.Close() })()
				serve(c)
			})
		}
	})
}

func answer(name string, port int, from net.Addr) []byte {
	return fmt.Appendf(nil, "%s:%d %s\n", name, port, source(from))
}

func source(a net.Addr) netip.Addr {
	return netip.MustParseAddrPort(a.String()).Addr().Unmap().WithZone("")
}

// Answer is what came of one connection.
type Answer struct {
	Verdict ruleset.Verdict // Forward, Reject (refused) or Drop (no answer)
	Server  string          // NAME:PORT
	Source  netip.Addr      // as the server saw it
}

// patience is how long an answer may take; silence is how long none is taken
// for a drop.
const (
	patience = 20 * time.Second
	silence  = 400 * time.Millisecond
)

// A client over UDP comes from a port that none had for as long as the kernel
// remembers one: from the same port to the same place is the same flow, and that
// stays with its endpoint for as long as it serves, also where it gets no new
// ones. A port that the kernel gives at random is an earlier client's now and then.
const (
	firstPort = 12000
	manyPorts = 18000 // below node ports, and below those that the kernel gives
)

// Dial connects from a host.
func (w *World) Dial(ctx context.Context, from string, proto ruleset.Proto, to netip.AddrPort) (c net.Conn, err error) {
	err = w.In(from, func() (err error) {
		if proto == ruleset.SCTP {
			c, err = dialSCTP(ctx, to)
			return err
		}
		var d net.Dialer
		if proto == ruleset.UDP {
			d.LocalAddr = &net.UDPAddr{Port: firstPort + int(w.asked.Add(1)%manyPorts)}
		}
		c, err = d.DialContext(ctx, proto.String(), to.String())
		return err
	})
	return c, err
}

// Ask connects once from a host. With drop a short silence is enough of an
// answer.
func (w *World) Ask(from string, proto ruleset.Proto, to netip.AddrPort, drop bool) (Answer, error) {
	limit := patience
	if drop {
		limit = silence
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c, err := w.Dial(ctx, from, proto, to)
	if err != nil {
		return judge(err)
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return Answer{}, err
	}
	if proto == ruleset.UDP {
		if _, err := c.Write([]byte("?")); err != nil {
			return judge(err)
		}
	}
	buf := make([]byte, 200)
	n, err := c.Read(buf)
	if err != nil {
		return judge(err)
	}
	server, src, _ := strings.Cut(string(bytes.TrimSpace(buf[:n])), " ")
	a, err := netip.ParseAddr(src)
	return Answer{ruleset.Forward, server, a}, err
}

func judge(err error) (Answer, error) {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EPERM): // EPERM: its own UDP packet
		return Answer{Verdict: ruleset.Reject}, nil
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded):
		return Answer{Verdict: ruleset.Drop}, nil
	}
	return Answer{}, err
}
