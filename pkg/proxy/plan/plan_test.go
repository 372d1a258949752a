package plan_test

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/nodeagent/nodeagent/pkg/proxy/plan"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
	"github.com/nodeagent/nodeagent/pkg/proxy/servicemap"
)

func ptr[T any](v T) *T { return &v }

func prefixes(all ...string) (out []netip.Prefix) {
	for _, p := range all {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// snapshot is one dual-stack Service with one endpoint here and one elsewhere.
func snapshot(t *testing.T, change func(*corev1.Service)) servicemap.Snapshot {
	t.Helper()
	m := servicemap.New()
	s := &corev1.Service{Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1", "fd00:96::1"},
		Ports: []corev1.ServicePort{{Port: 80}},
	}}
	s.Namespace, s.Name = "ns", "s"
	change(s)
	objects := []any{s}
	for name, addrs := range map[string][2]string{"v4": {"10.244.1.1", "10.244.2.1"}, "v6": {"fd00:1::1", "fd00:2::1"}} {
		e := &discoveryv1.EndpointSlice{Ports: []discoveryv1.EndpointPort{
			{Port: ptr[int32](8080)}, {Port: ptr[int32](8080), Protocol: ptr(corev1.ProtocolUDP)},
		}}
		e.Namespace, e.Name = "ns", name
		e.Labels = map[string]string{discoveryv1.LabelServiceName: "s"}
		e.Endpoints = []discoveryv1.Endpoint{
			{Addresses: []string{addrs[0]}, NodeName: ptr("here")}, {Addresses: []string{addrs[1]}, NodeName: ptr("there")},
		}
		objects = append(objects, e)
	}
	for _, o := range objects {
		if _, err := m.Upsert(o); err != nil {
			t.Fatal(err)
		}
	}
	return m.Snapshot()
}

func TestMake(t *testing.T) {
	balancer := func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		s.Spec.Ports[0].NodePort = 30080
		s.Spec.LoadBalancerSourceRanges = []string{"192.0.2.0/24", "192.0.2.128/25"}
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{
			{IP: "203.0.113.5"}, {IP: "203.0.113.9", IPMode: ptr(corev1.LoadBalancerIPModeProxy)}, {IP: "2001:db8::5"},
		}
	}
	for _, c := range []struct {
		name   string
		change func(*corev1.Service)
		node   plan.Node
		want   string
	}{
		{"load balancer, Local", balancer, plan.Node{Name: "here", LocalPods: ruleset.LocalPods{Prefixes: prefixes("10.244.1.0/24")}}, `
node4:30080/tcp ns/s → [10.244.1.1:8080] inside=[10.244.1.1:8080 10.244.2.1:8080]
10.96.0.1:80/tcp ns/s → [10.244.1.1:8080 10.244.2.1:8080] masquerade=remote
203.0.113.5:80/tcp ns/s → [10.244.1.1:8080] inside=[10.244.1.1:8080 10.244.2.1:8080] from=[192.0.2.0/24]
node6:30080/tcp ns/s → [[fd00:1::1]:8080] inside=[[fd00:1::1]:8080 [fd00:2::1]:8080]
[2001:db8::5]:80/tcp ns/s → [[fd00:1::1]:8080] inside=[[fd00:1::1]:8080 [fd00:2::1]:8080]
[fd00:96::1]:80/tcp ns/s → [[fd00:1::1]:8080 [fd00:2::1]:8080]
cluster IPs [10.96.0.1 fd00:96::1]
hairpin [10.244.1.1 fd00:1::1]
`},
		{"the same on a node without endpoints that the ranges let in", balancer, plan.Node{
			Name: "third", IPs: []netip.Addr{netip.MustParseAddr("192.0.2.7")},
		}, `
node4:30080/tcp ns/s drop inside=[10.244.1.1:8080 10.244.2.1:8080]
10.96.0.1:80/tcp ns/s → [10.244.1.1:8080 10.244.2.1:8080]
203.0.113.5:80/tcp ns/s drop inside=[10.244.1.1:8080 10.244.2.1:8080] from=[192.0.2.0/24 203.0.113.5/32]
node6:30080/tcp ns/s drop inside=[[fd00:1::1]:8080 [fd00:2::1]:8080]
[2001:db8::5]:80/tcp ns/s drop inside=[[fd00:1::1]:8080 [fd00:2::1]:8080]
[fd00:96::1]:80/tcp ns/s → [[fd00:1::1]:8080 [fd00:2::1]:8080]
cluster IPs [10.96.0.1 fd00:96::1]
hairpin []
`},
		{"affinity and masquerade all", func(s *corev1.Service) {
			s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
			s.Spec.ClusterIPs = s.Spec.ClusterIPs[:1]
		}, plan.Node{MasqueradeAll: true}, `
10.96.0.1:80/tcp ns/s → [10.244.1.1:8080 10.244.2.1:8080] masquerade=all affinity=10800s
cluster IPs [10.96.0.1]
hairpin []
`},
	} {
		got := "\n" + plan.Make(snapshot(t, c.change), c.node).String()
		if got != c.want {
			t.Errorf("%s: got%swant%s", c.name, got, c.want)
		}
	}
}

func TestNodePortAddresses(t *testing.T) {
	n := plan.Node{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("127.0.0.1")}}
	for _, c := range []struct {
		prefixes []netip.Prefix
		want     []string
		loopback bool
	}{
		{nil, []string{"0.0.0.0", "::"}, false},
		{prefixes("192.0.2.0/24"), []string{"192.0.2.1", "::"}, false},
		{prefixes("198.51.100.0/24"), []string{"::"}, false},
		{prefixes("0.0.0.0/0", "127.0.0.0/8"), []string{"0.0.0.0", "::"}, true},
	} {
		n.NodePortAddresses = c.prefixes
		got := plan.Make(nil, n).Node
		same := len(got.NodePortAddresses) == len(c.want) && got.LoopbackNodePorts == c.loopback
		for i := range got.NodePortAddresses {
			same = same && got.NodePortAddresses[i].String() == c.want[i]
		}
		if !same {
			t.Errorf("%v: got %v, loopback %t", c.prefixes, got.NodePortAddresses, got.LoopbackNodePorts)
		}
	}
}

// Old UDP flows stay with what still serves, whatever the policies say of new ones.
func TestServingUDP(t *testing.T) {
	got := plan.ServingUDP(snapshot(t, func(s *corev1.Service) {
		s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal)
		s.Spec.ExternalIPs = []string{"203.0.113.5"}
		s.Spec.Ports = []corev1.ServicePort{{Port: 53, Protocol: corev1.ProtocolUDP, NodePort: 30053}, {Name: "tcp", Port: 53}}
	}))
	for _, c := range []struct {
		frontend  string
		endpoints int
	}{{"10.96.0.1:53", 2}, {"203.0.113.5:53", 2}, {"0.0.0.0:30053", 2}, {"[fd00:96::1]:53", 2}, {"[::]:30053", 2}} {
		if e := got[netip.MustParseAddrPort(c.frontend)]; len(e) != c.endpoints {
			t.Errorf("%s: %v", c.frontend, e)
		}
	}
	if len(got) != 5 {
		t.Errorf("got %v", got)
	}
}

// Of two Services that claim a place the flows are those of the one that has it.
func TestServingUDPOfTwo(t *testing.T) {
	services := snapshot(t, func(s *corev1.Service) {
		s.Spec.ExternalIPs = []string{"203.0.113.5"}
		s.Spec.Ports = []corev1.ServicePort{{Port: 53, Protocol: corev1.ProtocolUDP}}
	})
	second := *services[0]
	second.Name = servicemap.NewName("ns", "t")
	second.Ports = []servicemap.Port{{Proto: ruleset.UDP, Port: 53}} // no endpoints
	got := plan.ServingUDP(append(services, &second))
	if e := got[netip.MustParseAddrPort("203.0.113.5:53")]; len(e) != 2 {
		t.Errorf("got %v", e)
	}
}

func TestHealthChecks(t *testing.T) {
	s := snapshot(t, func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		s.Spec.HealthCheckNodePort = 31000
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Port: 53, Protocol: corev1.ProtocolUDP})
	})
	for node, want := range map[string]int{"here": 1, "third": 0} {
		got := plan.HealthChecks(s, plan.Node{Name: node})
		if len(got) != 2 || got[0] != (ruleset.HealthCheck{Namespace: "ns", Name: "s", Family: netip.IPv4Unspecified(), Port: 31000, Local: want}) ||
			got[1].Family != netip.IPv6Unspecified() || got[1].Local != want {
			t.Errorf("%s: got %+v", node, got)
		}
	}
}
