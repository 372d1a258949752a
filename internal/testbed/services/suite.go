package services

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/proxy/plan"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
	"github.com/nodeagent/nodeagent/pkg/proxy/servicemap"
)

// Backend is what is tested.
type Backend interface {
	Apply(ctx context.Context, old, now ruleset.Ruleset) error
}

// row is one line of the table: Services, and what packets to them must do.
type row struct {
	name     string
	line     string // of the table in docs/services.md
	services []service
	node     func(*plan.Node)
	checks   []check
}

// service is a Service in both families and its endpoints.
type service struct {
	name      string // default "s"
	cluster   string // the name of its address, default "cluster"
	change    func(*corev1.Service)
	endpoints string // see endpointSlices
	second    bool   // a second port, 81 → PortB
	echo      bool   // 80 → PortEcho over TCP
}

// check is one kind of packet. to is NAME:PORT; want is the servers that
// answer, all of them in the end, or "refused" or "dropped"; source is what
// they see: "own", or "node" for an address of the node.
type check struct {
	from, to, want, source string
	only                   string // "v4" or "v6", where the other has no such thing
	needs                  Lack   // who lacks it has no such thing
	// sticky: one of want answers every time, and at this other place, too.
	sticky string
}

// planNode is the node as a plan sees it.
func planNode() plan.Node {
	n := plan.Node{Name: "here", Zone: "zone-1", Addresses: NodeAddrs()}
	n.IPs = []netip.Addr{Addr(Node, false), Addr(Node, true)}
	n.LocalPods.Prefixes = PodCIDRs
	return n
}

// Run runs the suite. The rows are applied one after the other, so each is a
// change from the one before.
func Run(t *testing.T, w *World, b Backend, lacks ...Lack) {
	t.Run("SCTP_among_the_protocols", func(t *testing.T) {
		switch err := noSCTP(); {
		case errors.Is(err, unix.EPROTONOSUPPORT):
			t.Skipf("this kernel has no SCTP sockets: %v", err)
		case err != nil:
			t.Fatal(err)
		}
	})
	var old ruleset.Ruleset
	for _, r := range rows {
		t.Run(strings.ReplaceAll(r.name, " ", "_"), func(t *testing.T) {
			now := r.ruleset(t)
			if err := b.Apply(context.Background(), old, now); err != nil {
				t.Fatalf("apply: %v\n%s", err, now)
			}
			old = now
			w.ForgetFlows()
			for _, c := range r.checks {
				for _, v6 := range []bool{false, true} {
					if c.only == "v4" && v6 || c.only == "v6" && !v6 || slices.Contains(lacks, c.needs) {
						continue
					}
					if slices.Contains(lacks, ClientAddress) {
						c.source = ""
					}
					for _, proto := range protocols() {
						if proto == ruleset.SCTP && slices.Contains(lacks, SCTP) {
							continue
						}
						if err := c.run(w, proto, v6); err != nil {
							t.Errorf("%s over %s to %s (IPv6 %t): %v", c.from, proto, c.to, v6, err)
						}
					}
				}
			}
			if t.Failed() {
				t.Logf("ruleset:\n%s", now)
			}
		})
	}
}

// snapshot is the row's Services from API objects.
func (r row) snapshot(t *testing.T) servicemap.Snapshot {
	m := servicemap.New()
	for i, s := range r.services {
		if s.name == "" {
			s.name = "s" + strconv.Itoa(i)
		}
		for _, o := range s.objects() {
			if _, err := m.Upsert(o); err != nil {
				t.Fatal(err)
			}
		}
	}
	return m.Snapshot()
}

// ruleset is what they mean.
func (r row) ruleset(t *testing.T) ruleset.Ruleset {
	n := planNode()
	if r.node != nil {
		r.node(&n)
	}
	return plan.Make(r.snapshot(t), n)
}

// objects are the Service with a port 80 of each protocol, and its slices.
func (s service) objects() []any {
	if s.cluster == "" {
		s.cluster = "cluster"
	}
	o := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: s.name}}
	o.Spec.Type = corev1.ServiceTypeClusterIP
	o.Spec.ClusterIPs = both(s.cluster)
	o.Spec.ClusterIP = o.Spec.ClusterIPs[0]
	ports := []discoveryv1.EndpointPort{}
	port := func(name string, proto corev1.Protocol, from, to int32) {
		o.Spec.Ports = append(o.Spec.Ports, corev1.ServicePort{Name: name, Protocol: proto, Port: from})
		ports = append(ports, discoveryv1.EndpointPort{Name: &name, Protocol: &proto, Port: &to})
	}
	for _, p := range protocols() {
		proto, to := corev1.Protocol(strings.ToUpper(p.String())), int32(PortA)
		if s.echo && p == ruleset.TCP {
			to = PortEcho
		}
		port("a-"+p.String(), proto, 80, to)
		if s.second {
			port("b-"+p.String(), proto, 81, PortB)
		}
	}
	if s.change != nil {
		s.change(o)
	}
	objects := []any{o}
	for _, v6 := range []bool{false, true} {
		slice := &discoveryv1.EndpointSlice{Ports: ports, AddressType: discoveryv1.AddressTypeIPv4}
		slice.Namespace, slice.Name = "default", fmt.Sprintf("%s-v6-%t", s.name, v6)
		slice.Labels = map[string]string{discoveryv1.LabelServiceName: s.name}
		if v6 {
			slice.AddressType = discoveryv1.AddressTypeIPv6
		}
		for _, word := range strings.Fields(s.endpoints) {
			slice.Endpoints = append(slice.Endpoints, endpoint(word, v6))
		}
		objects = append(objects, slice)
	}
	return objects
}

// endpoint reads HOST[:unready|:draining|:zone=Z|:node=N]...
func endpoint(word string, v6 bool) discoveryv1.Endpoint {
	parts := strings.Split(word, ":")
	node := "here"
	if parts[0] == Remote {
		node = "there"
	}
	e := discoveryv1.Endpoint{Addresses: []string{Addr(parts[0], v6).String()}, NodeName: &node}
	yes, no := true, false
	for _, p := range parts[1:] {
		kind, value, _ := strings.Cut(p, "=")
		if e.Hints == nil && value != "" {
			e.Hints = &discoveryv1.EndpointHints{}
		}
		switch kind {
		case "unready":
			e.Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &no}
		case "draining":
			e.Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}
		case "zone":
			e.Hints.ForZones = append(e.Hints.ForZones, discoveryv1.ForZone{Name: value})
		case "node":
			e.Hints.ForNodes = append(e.Hints.ForNodes, discoveryv1.ForNode{Name: value})
		default:
			panic("an endpoint cannot be " + p)
		}
	}
	return e
}

func both(name string) []string {
	return []string{Addr(name, false).String(), Addr(name, true).String()}
}

// run asks until every wanted server has answered; each answer must be right.
func (c check) run(w *World, proto ruleset.Proto, v6 bool) error {
	name, port, _ := strings.Cut(c.to, ":")
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return err
	}
	to := netip.AddrPortFrom(Addr(name, v6), uint16(number))
	verdict := map[string]ruleset.Verdict{"refused": ruleset.Reject, "dropped": ruleset.Drop}[c.want]
	if c.sticky != "" {
		return c.stick(w, proto, to, netip.AddrPortFrom(Addr(c.sticky, v6), to.Port()))
	}
	missing := strings.Fields(c.want)
	want := slices.Clone(missing)
	for range 300 {
		got, err := w.Ask(c.from, proto, to, verdict == ruleset.Drop)
		switch {
		case err != nil:
			return err
		case verdict != ruleset.Pass && got.Verdict == verdict:
			return nil
		case verdict != ruleset.Pass || got.Verdict != ruleset.Forward:
			return fmt.Errorf("got %v from %q, want %s", got.Verdict, got.Server, c.want)
		}
		server, _, _ := strings.Cut(got.Server, ":")
		if number == 81 {
			server = got.Server
		}
		if !slices.Contains(want, server) {
			return fmt.Errorf("%s answered, want one of %v", got.Server, want)
		}
		if err := c.checkSource(got, v6); err != nil {
			return err
		}
		missing = slices.DeleteFunc(missing, func(s string) bool { return s == server })
		if len(missing) == 0 {
			return nil
		}
	}
	return fmt.Errorf("no answer from %v in 300", missing)
}

func (c check) checkSource(got Answer, v6 bool) error {
	own := Addr(c.from, v6) == got.Source || c.from == Remote && Addr("host2", v6) == got.Source
	switch node := slices.Contains(NodeAddrs(), got.Source); {
	case c.source == "own" && !own, c.source == "node" && !node:
		return fmt.Errorf("%s saw %s, want its %s", got.Server, got.Source, c.source)
	}
	return nil
}

// stick asks often enough that chance would not answer the same each time.
func (c check) stick(w *World, proto ruleset.Proto, to ...netip.AddrPort) error {
	first := ""
	for i := range 30 {
		got, err := w.Ask(c.from, proto, to[i%len(to)], false)
		if err != nil {
			return err
		}
		server, _, _ := strings.Cut(got.Server, ":")
		if first == "" {
			first = server
		}
		if server != first || !slices.Contains(strings.Fields(c.want), server) {
			return fmt.Errorf("%s, %q answered after %q, want always the same of %s", got.Verdict, server, first, c.want)
		}
	}
	return nil
}
