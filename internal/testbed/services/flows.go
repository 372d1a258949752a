package services

import (
	"bufio"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/nodeagent/nodeagent/pkg/proxy"
	"github.com/nodeagent/nodeagent/pkg/proxy/conntrack"
	"github.com/nodeagent/nodeagent/pkg/proxy/plan"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// RunFlows has clients that never close their UDP sockets: each is moved to
// another endpoint when its own serves no more, also when it began before there
// was any, and is left alone otherwise, by restarts, too.
func RunFlows(t *testing.T, w *World, b Restartable, lacks ...Lack) {
	keeper, keeps := b.(proxy.FlowKeeper)
	clients := map[netip.AddrPort]net.Conn{}
	for name, port := range map[string]uint16{"cluster": 80, "external": 80, Node: 30080} {
		for _, v6 := range []bool{false, true} {
			at := netip.AddrPortFrom(Addr(name, v6), port)
			err := w.In(Client, func() (err error) { clients[at], err = net.Dial("udp", at.String()); return err })
			if err != nil {
				t.Fatal(err)
			}
			defer clients[at].Close()
		}
	}
	var old ruleset.Ruleset
	var flows conntrack.Serving
	for _, step := range []struct {
		name, endpoints, want string
		restart               bool
	}{
		{"no endpoint", "", "refused", false},
		{"the first endpoint", PodA, PodA, false},
		{"one more", PodA + " " + PodB, PodA, false},
		{"a restart", PodA + " " + PodB, PodA, true},
		{"its endpoint ends, and still serves", PodA + ":draining " + PodB, PodA, false},
		{"its endpoint serves no more", PodA + ":unready " + PodB, PodB, false},
		{"another restart", PodA + " " + PodB, PodB, true},
		{"nobody serves", PodB + ":unready", "refused", false},
	} {
		if step.restart {
			b.Forget()
			flows = conntrack.Serving{}
		}
		r := row{services: one(changes(nodePort, externalIPs), step.endpoints)}
		now := r.ruleset(t)
		if err := b.Apply(t.Context(), old, now); err != nil {
			t.Fatal(err)
		}
		old = now
		serving := plan.ServingUDP(r.snapshot(t))
		if keeps {
			if err := keeper.EndFlows(func(at, to netip.AddrPort) bool { return slices.Contains(serving[at], to) }); err != nil {
				t.Fatal(err)
			}
		}
		flows = w.clean(t, flows, conntrack.Serving{Frontends: serving})
		want := []string{step.want}
		if step.want == PodA && strings.Contains(step.endpoints, "draining") && slices.Contains(lacks, DrainingFlow) {
			want = append(want, PodB)
		}
		for at, c := range clients {
			got, err := answers(c)
			if err != nil || !slices.Contains(want, got) {
				t.Errorf("%s: a flow to %s: %s answered, want %v: %v", step.name, at, got, want, err)
			}
		}
	}
}

// clean removes stale flows as the proxy does.
func (w *World) clean(t *testing.T, old, now conntrack.Serving) conntrack.Serving {
	t.Helper()
	now.NodeAddrs = map[netip.Addr]bool{}
	for _, a := range NodeAddrs() {
		now.NodeAddrs[a] = true
	}
	err := w.In(Node, func() error {
		h, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer h.Close()
		_, err = conntrack.Clean(h, old, now)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return now
}

// answers is who answers on a socket, or "refused".
func answers(c net.Conn) (string, error) {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	_, err := c.Write([]byte("?"))
	line := ""
	if err == nil {
		line, err = bufio.NewReader(c).ReadString('\n')
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return "refused", nil
	}
	server, _, _ := strings.Cut(line, ":")
	return server, err
}
