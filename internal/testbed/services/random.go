package services

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/proxy/plan"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// RandomRuleset is what a plan makes of a few random Services.
func RandomRuleset(t *testing.T, r *rand.Rand) ruleset.Ruleset {
	t.Helper()
	return randomRow(r).ruleset(t)
}

func randomRow(r *rand.Rand) row {
	var out row
	for i, cluster := range []string{"cluster", "cluster2"}[:1+r.IntN(2)] {
		s := service{name: fmt.Sprintf("s%d", i), cluster: cluster, second: r.IntN(3) == 0}
		for _, host := range []string{PodA, PodB, Remote} {
			if r.IntN(3) > 0 {
				s.endpoints += " " + host + []string{"", "", ":unready", ":draining", ":zone=zone-1", ":zone=zone-2"}[r.IntN(6)]
			}
		}
		var parts []func(*corev1.Service)
		for _, c := range []func(*corev1.Service){
			nodePort, balancer, externalIPs, externalLocal, internalLocal, affinity, ranges("192.0.2.0/28", "2001:db8:1::/96"),
		} {
			if r.IntN(2) == 0 {
				parts = append(parts, c)
			}
		}
		s.change = changes(parts...)
		out.services = append(out.services, s)
	}
	masqueradeAll, bridge := r.IntN(6) == 0, r.IntN(4) == 0
	out.node = func(n *plan.Node) {
		n.MasqueradeAll = masqueradeAll
		if bridge {
			interfaces("cni0")(n)
		}
	}
	return out
}

// RunRandom compares what the kernel does to packets with what the tracer
// says, for random Services, each set a change from the one before.
func RunRandom(t *testing.T, w *World, b Backend, seed uint64, sets int, lacks ...Lack) {
	r := rand.New(rand.NewPCG(seed, 0))
	var old ruleset.Ruleset
	for i := range sets {
		now := RandomRuleset(t, r)
		if err := b.Apply(context.Background(), old, now); err != nil {
			t.Fatalf("seed %d, set %d: apply: %v\n%s", seed, i, err, now)
		}
		old = now
		w.ForgetFlows()
		silences := 4 // each takes its time
		for range 24 {
			if err := randomPacket(r, w, &now, &silences, lacks); err != nil {
				t.Errorf("seed %d, set %d: %v", seed, i, err)
			}
		}
		if t.Failed() {
			t.Fatalf("ruleset:\n%s", now)
		}
	}
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

func randomPacket(r *rand.Rand, w *World, rs *ruleset.Ruleset, silences *int, lacks []Lack) error {
	from := pick(r, Client, Node, PodA, PodB, Remote)
	dst := pick(r, "cluster", "cluster2", "external", "balancer", Node, "node2")
	v6 := r.IntN(2) == 0
	p := ruleset.Packet{
		Src: Addr(from, v6), Dst: Addr(dst, v6), Proto: pick(r, protocols()...), Port: pick(r, uint16(80), 81),
		FromPod: from == PodA || from == PodB, FromNode: from == Node,
	}
	if p.ToNode = slices.Contains(NodeAddrs(), p.Dst); p.ToNode {
		p.Port += 30000
	}
	switch {
	case from == Remote:
		p.Src = Addr("host2", v6)
	case from == Node && p.ToNode:
		p.Src = p.Dst // the kernel's choice
	}
	if p.Proto == ruleset.SCTP && slices.Contains(lacks, SCTP) {
		return nil
	}
	want := rs.Trace(p)
	if f := rs.Find(ruleset.Key{Addr: p.Dst, Proto: p.Proto, Port: p.Port}); f != nil && slices.Contains(lacks, EmptyRanges) &&
		len(f.Endpoints)+len(f.Inside) == 0 && f.Empty == ruleset.Reject {
		want.Verdict = ruleset.Reject
	}
	switch want.Verdict {
	case ruleset.Pass:
		return nil
	case ruleset.Drop:
		if *silences--; *silences < 0 {
			return nil
		}
	}
	what := fmt.Sprintf("%s over %s to %s:%d", from, p.Proto, p.Dst, p.Port)
	got, err := w.Ask(from, p.Proto, netip.AddrPortFrom(p.Dst, p.Port), want.Verdict == ruleset.Drop)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if got.Verdict != want.Verdict {
		return fmt.Errorf("%s: the kernel's verdict is %s, the tracer's %s %v", what, got.Verdict, want.Verdict, want.Endpoints)
	}
	if got.Verdict != ruleset.Forward {
		return nil
	}
	server, port, _ := strings.Cut(got.Server, ":")
	addr := Addr(server, v6)
	if !slices.ContainsFunc(want.Endpoints, func(e netip.AddrPort) bool {
		return e.Addr() == addr && fmt.Sprint(e.Port()) == port
	}) {
		return fmt.Errorf("%s: %s answered, want one of %v", what, got.Server, want.Endpoints)
	}
	if slices.Contains(lacks, ClientAddress) {
		return nil
	}
	// The node's own packets come from the node either way.
	if masked := slices.Contains(NodeAddrs(), got.Source); from != Node && masked != want.MasqueradedTo(addr, p.Src) {
		return fmt.Errorf("%s: %s saw %s, masquerade is to be %t", what, got.Server, got.Source, !masked)
	}
	return nil
}
