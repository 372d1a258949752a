package services

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// Restartable is a backend that can be told to replace everything.
type Restartable interface {
	Backend
	Forget()
}

// Lasting tries what must hold over time: changes, reloads, restarts.
type Lasting struct {
	World *World
	// New is a backend as an agent has it that has just started.
	New func() Restartable
	// State is all that backends of this kind left on the node, in an order that
	// depends on nothing. It leaves out what the packets of the test left.
	State func() string
	Lacks []Lack
	// Changes and Endpoints are how many there are; 0 is 1,000 and 5,000. An
	// emulated machine takes fewer.
	Changes, Endpoints int
}

// Run runs all of it.
func (l Lasting) Run(t *testing.T) {
	t.Run("session_affinity_ends", l.affinityEnds)
	t.Run("session_affinity_outlives_a_reload", l.affinityStays)
	t.Run("established_connections_outlive_a_reload", l.established)
	if l.Changes == 0 {
		l.Changes = 1000
	}
	if l.Endpoints == 0 {
		l.Endpoints = 5000
	}
	t.Run("many_changes_end_where_a_fresh_start_does", l.changes)
	t.Run("many_endpoints", l.many)
}

func (l Lasting) apply(t *testing.T, b Backend, old, now ruleset.Ruleset) {
	t.Helper()
	if err := b.Apply(context.Background(), old, now); err != nil {
		t.Fatalf("apply: %v", err)
	}
}

// clean leaves nothing for the next test but what a fresh start replaces.
func (l Lasting) clean(t *testing.T, b Backend, old ruleset.Ruleset) {
	l.apply(t, b, old, ruleset.Ruleset{})
	l.World.ForgetFlows()
}

func affinityFor(seconds int32) func(*corev1.Service) {
	return func(o *corev1.Service) {
		affinity(o)
		o.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
}

// who is the host that answers.
func (l Lasting) who(t *testing.T, from string, to netip.AddrPort) string {
	t.Helper()
	got, err := l.World.Ask(from, ruleset.TCP, to, false)
	if err != nil || got.Verdict != ruleset.Forward {
		t.Fatalf("%s to %s: %s, %v", from, to, got.Verdict, err)
	}
	return got.Server
}

// A client that stays away for longer than the timeout may get another
// endpoint; one that does not gets the same.
func (l Lasting) affinityEnds(t *testing.T) {
	if slices.Contains(l.Lacks, NewChoice) {
		return
	}
	const timeout = 2 * time.Second
	now := row{services: one(affinityFor(int32(timeout.Seconds())), PodA+" "+PodB)}.ruleset(t)
	b := l.New()
	l.apply(t, b, ruleset.Ruleset{}, now)
	defer l.clean(t, b, now)
	for _, v6 := range []bool{false, true} {
		to := netip.AddrPortFrom(Addr("cluster", v6), 80)
		asked, first := time.Now(), l.who(t, Client, to)
		for range 20 {
			since := asked
			asked = time.Now()
			if got := l.who(t, Client, to); got != first {
				if time.Since(since) < timeout {
					t.Fatalf("%s answered after %s, within the timeout", got, first)
				}
				first = got // a slow machine
			}
		}
		// IPVS keeps a client's endpoint while one of its connections is in
		// TIME_WAIT.
		for deadline := time.Now().Add(5 * time.Minute); l.who(t, Client, to) == first; time.Sleep(timeout + timeout/2) {
			if time.Now().After(deadline) {
				t.Fatalf("to %s: still %s", to, first)
			}
		}
	}
}

// Neither a full replacement nor a new agent makes clients change their endpoint.
func (l Lasting) affinityStays(t *testing.T) {
	now := row{services: one(affinity, PodA+" "+PodB+" "+Remote)}.ruleset(t)
	b := l.New()
	l.apply(t, b, ruleset.Ruleset{}, now)
	defer func() { l.clean(t, b, now) }()
	type client struct {
		from string
		to   netip.AddrPort
	}
	first := map[client]string{}
	for _, from := range []string{Client, Remote, Node, PodA} {
		for _, v6 := range []bool{false, true} {
			c := client{from, netip.AddrPortFrom(Addr("cluster", v6), 80)}
			first[c] = l.who(t, c.from, c.to)
		}
	}
	same := func(when string) {
		for c, want := range first {
			if got := l.who(t, c.from, c.to); got != want {
				t.Errorf("%s: %s to %s: %s answered, before it was %s", when, c.from, c.to, got, want)
			}
		}
	}
	for range 3 {
		b.Forget()
		l.apply(t, b, now, now)
		same("after a reload")
	}
	if slices.Contains(l.Lacks, Survival) {
		return
	}
	for range 3 {
		b = l.New()
		l.apply(t, b, ruleset.Ruleset{}, now)
		same("after a restart")
	}
}

// A connection lives on through changes that are not about it, a reload, a
// restart, and after its endpoint was taken out of the Service.
func (l Lasting) established(t *testing.T) {
	echo := row{services: []service{{echo: true, change: nodePort, endpoints: PodA}}}.ruleset(t)
	more := row{services: []service{
		{echo: true, change: nodePort, endpoints: PodA}, {cluster: "cluster2", endpoints: PodB},
	}}.ruleset(t)
	gone := row{services: []service{{echo: true, change: nodePort, endpoints: PodB}}}.ruleset(t)
	b := l.New()
	l.apply(t, b, ruleset.Ruleset{}, echo)
	defer func() { l.clean(t, b, gone) }()
	var conns []net.Conn
	for _, from := range []string{Client, PodB, Node} {
		for _, to := range []string{"cluster:80", "node:30080"} {
			for _, v6 := range []bool{false, true} {
				name, port, _ := strings.Cut(to, ":")
				addr := netip.MustParseAddrPort(net.JoinHostPort(Addr(name, v6).String(), port))
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				c, err := l.World.Dial(ctx, from, ruleset.TCP, addr)
				cancel()
				if err != nil {
					t.Fatalf("%s to %s: %v", from, addr, err)
				}
				defer c.Close()
				conns = append(conns, c)
			}
		}
	}
	alive := func(when string) {
		for _, c := range conns {
			if err := exchange(c); err != nil {
				t.Errorf("%s: %s → %s: %v", when, c.LocalAddr(), c.RemoteAddr(), err)
			}
		}
	}
	alive("at first")
	l.apply(t, b, echo, more)
	l.apply(t, b, more, echo)
	alive("after changes")
	b.Forget()
	l.apply(t, b, echo, echo)
	alive("after a reload")
	if !slices.Contains(l.Lacks, Survival) {
		b = l.New()
		l.apply(t, b, ruleset.Ruleset{}, echo)
		alive("after a restart")
	}
	l.apply(t, b, echo, gone)
	alive("after the endpoint was removed")
}

// exchange sends something and wants it back.
func exchange(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("still there?")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, len("still there?")))
	return err
}

// Whatever the changes were, they end where a fresh start does.
func (l Lasting) changes(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	b := l.New()
	var old ruleset.Ruleset
	for range l.Changes {
		now := RandomRuleset(t, r)
		l.apply(t, b, old, now)
		old = now
	}
	// What nobody uses any more may go with the change after.
	l.apply(t, b, old, old)
	got := l.State()
	fresh := l.New()
	l.apply(t, fresh, ruleset.Ruleset{}, old)
	if want := l.State(); got != want {
		t.Errorf("after %d changes:\n%s\nafter a fresh start:\n%s\nruleset:\n%s", l.Changes, got, want, old)
	}
	l.clean(t, fresh, old)
}

// ManyRuleset is one Service of that many endpoints in each family, at the
// cluster IP and a node port.
func ManyRuleset(n int) ruleset.Ruleset {
	r := ruleset.Ruleset{Node: ruleset.Node{
		NodePortAddresses: []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()},
		LocalPods:         ruleset.LocalPods{Prefixes: PodCIDRs},
	}}
	var ports []*ruleset.Frontend
	for i, v6 := range []bool{false, true} {
		f := ruleset.Frontend{Service: "default/many", Masquerade: ruleset.MasqueradeAll}
		for a := ManyEndpoints[i].Addr().Next(); len(f.Endpoints) < n; a = a.Next() {
			f.Endpoints = append(f.Endpoints, netip.AddrPortFrom(a, PortMany))
		}
		f.Key = ruleset.Key{Addr: Addr("cluster", v6), Proto: ruleset.TCP, Port: 80}
		r.ClusterIPs = append(r.ClusterIPs, f.Key.Addr)
		port := f
		port.Key = ruleset.Key{Addr: ruleset.AnyAddr(f.Key.Addr), Proto: ruleset.TCP, Port: 30080}
		r.Frontends, ports = append(r.Frontends, &f), append(ports, &port)
	}
	r.Frontends = append(r.Frontends, ports...)
	slices.SortFunc(r.Frontends, func(a, b *ruleset.Frontend) int { return a.Key.Compare(b.Key) })
	return r
}

func (l Lasting) many(t *testing.T) {
	b := l.New()
	var old ruleset.Ruleset
	for _, n := range []int{l.Endpoints, l.Endpoints - 1, l.Endpoints, 1, l.Endpoints} {
		now := ManyRuleset(n)
		l.apply(t, b, old, now)
		old = now
		for range 20 {
			for _, v6 := range []bool{false, true} {
				for _, to := range []netip.AddrPort{netip.AddrPortFrom(Addr("cluster", v6), 80), netip.AddrPortFrom(Addr(Node, v6), 30080)} {
					if got := l.who(t, Client, to); got != fmt.Sprintf("many:%d", PortMany) {
						t.Fatalf("%d endpoints: %s answered", n, got)
					}
				}
			}
		}
	}
	l.clean(t, b, old)
}

// addr4 is the i-th of some made-up addresses.
func addr4(kind byte, i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, kind, byte(i >> 8), byte(i)})
}

func endpoints(port uint16, all ...netip.Addr) (out []netip.AddrPort) {
	for _, a := range all {
		out = append(out, netip.AddrPortFrom(a, port))
	}
	return out
}
