package services

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func testPools() Pools {
	return Pools{
		ServiceCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")},
		Served:        []netip.Addr{netip.MustParseAddr("10.96.0.10")},
		FirstNodePort: 30000, LastNodePort: 30003,
		LoadBalancerIPs: []Range{{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2")}},
	}
}

// service is one with a TCP port 80.
func service(name string, change ...func(*v1.Service)) *v1.Service {
	s := &v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	s.Spec.Type = v1.ServiceTypeClusterIP
	s.Spec.Ports = []v1.ServicePort{{Port: 80, Protocol: v1.ProtocolTCP}}
	s.Spec.Selector = map[string]string{"app": name}
	for _, c := range change {
		c(s)
	}
	return s
}

func clusterIP(ip string) func(*v1.Service) { return func(s *v1.Service) { s.Spec.ClusterIP = ip } }

func external(ip string) func(*v1.Service) {
	return func(s *v1.Service) { s.Spec.ExternalIPs = []string{ip} }
}

func typed(t v1.ServiceType) func(*v1.Service) { return func(s *v1.Service) { s.Spec.Type = t } }

func nodePort(n int32) func(*v1.Service) {
	return func(s *v1.Service) { s.Spec.Type, s.Spec.Ports[0].NodePort = v1.ServiceTypeNodePort, n }
}

func families(p v1.IPFamilyPolicy, f ...v1.IPFamily) func(*v1.Service) {
	return func(s *v1.Service) { s.Spec.IPFamilyPolicy, s.Spec.IPFamilies = &p, f }
}

func mustAssign(t *testing.T, a *allocator, s, before *v1.Service) *v1.Service {
	t.Helper()
	out, err := a.assign(s, before, newClaims())
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestGivenAddressIsKeptAndFoundAgain(t *testing.T) {
	a := newAllocator(testPools())
	first := mustAssign(t, a, service("web"), nil)
	if ip := netip.MustParseAddr(first.Spec.ClusterIP); !a.pools.ServiceCIDRs[0].Contains(ip) || ip.Compare(netip.MustParseAddr("10.96.1.0")) < 0 {
		t.Errorf("%s is not in the range above the addresses that people choose", ip)
	}
	changed := mustAssign(t, a, service("web", typed(v1.ServiceTypeNodePort)), first)
	if changed.Spec.ClusterIP != first.Spec.ClusterIP || changed.Spec.Ports[0].NodePort == 0 {
		t.Errorf("became %s with node port %d, want the address it had and a port", changed.Spec.ClusterIP, changed.Spec.Ports[0].NodePort)
	}
	restarted := newAllocator(testPools())
	again := mustAssign(t, restarted, service("web", typed(v1.ServiceTypeNodePort)), changed)
	if again.Spec.ClusterIP != first.Spec.ClusterIP || again.Spec.Ports[0].NodePort != changed.Spec.Ports[0].NodePort {
		t.Errorf("after a restart %s:%d", again.Spec.ClusterIP, again.Spec.Ports[0].NodePort)
	}
	if lost := mustAssign(t, newAllocator(testPools()), service("web"), nil); lost.Spec.ClusterIP != first.Spec.ClusterIP {
		t.Errorf("with no record %s, want %s again", lost.Spec.ClusterIP, first.Spec.ClusterIP)
	}
}

func TestClashes(t *testing.T) {
	lb := func(ip string, port int32) func(*v1.Service) {
		return func(s *v1.Service) {
			s.Spec.Type, s.Spec.LoadBalancerIP, s.Spec.Ports[0].Port = v1.ServiceTypeLoadBalancer, ip, port
			no := false
			s.Spec.AllocateLoadBalancerNodePorts = &no
		}
	}
	for name, c := range map[string]struct {
		first, second func(*v1.Service)
		want          string // of the error; empty is none
	}{
		"cluster IP":           {clusterIP("10.96.0.5"), clusterIP("10.96.0.5"), "spec.clusterIP: 10.96.0.5 is the cluster IP of Service default/one"},
		"node port":            {nodePort(30001), nodePort(30001), "spec.ports[0].nodePort: node port 30001 is that of Service default/one"},
		"outside the range":    {nil, clusterIP("10.97.0.1"), "not in the service range"},
		"the DNS":              {nil, clusterIP("10.96.0.10"), ""},
		"node port range":      {nil, nodePort(80), "not in the node port range 30000-30003"},
		"balancer":             {lb("192.0.2.1", 80), lb("192.0.2.1", 80), "port 80/TCP of 192.0.2.1 is that of Service default/one"},
		"balancer, other port": {lb("192.0.2.1", 80), lb("192.0.2.1", 81), ""},
		"external IP and port": {external("203.0.113.5"), external("203.0.113.5"), "spec.externalIPs[0]: port 80/TCP of 203.0.113.5 is that of Service default/one"},
		"external IP, another port": {external("203.0.113.5"), func(s *v1.Service) {
			external("203.0.113.5")(s)
			s.Spec.Ports[0].Port = 81
		}, ""},
		"external IP that is a cluster IP":  {clusterIP("10.96.0.5"), external("10.96.0.5"), "spec.externalIPs[0]: 10.96.0.5 is the cluster IP of Service default/one"},
		"cluster IP that is an external IP": {external("10.96.0.5"), clusterIP("10.96.0.5"), "spec.clusterIP: port 80/TCP of 10.96.0.5 is that of Service default/one"},
		"external IP of one without rules": {func(s *v1.Service) {
			external("203.0.113.5")(s)
			s.Spec.ClusterIP = v1.ClusterIPNone
		}, external("203.0.113.5"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAllocator(testPools())
			if c.first != nil {
				mustAssign(t, a, service("one", c.first), nil)
			}
			_, err := a.assign(service("two", c.second), nil, newClaims())
			switch {
			case c.want == "" && err != nil:
				t.Fatal(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Fatalf("got %v, want %q", err, c.want)
			case c.want == "" || c.first == nil:
				return
			}
			a.release(podKey("one"))
			if _, err := a.assign(service("two", c.second), nil, newClaims()); err != nil {
				t.Errorf("still refused after the first one went: %v", err)
			}
		})
	}
}

func TestRefusedChangeKeepsWhatWas(t *testing.T) {
	a := newAllocator(testPools())
	mustAssign(t, a, service("one", clusterIP("10.96.0.5")), nil)
	two := mustAssign(t, a, service("two", clusterIP("10.96.0.6")), nil)
	for _, restarted := range []bool{false, true} {
		if restarted {
			a = newAllocator(testPools())
			mustAssign(t, a, service("one", clusterIP("10.96.0.5")), nil)
		}
		now, err := a.assign(service("two", clusterIP("10.96.0.5")), two, newClaims())
		if err == nil || !reflect.DeepEqual(now, two) {
			t.Fatalf("restarted %t: got %v, %v; want what was, and an error", restarted, now, err)
		}
	}
	if _, err := a.assign(service("three", clusterIP("10.96.0.6")), nil, newClaims()); err == nil {
		t.Error("somebody else got the address that the refused change left in use")
	}
}

func TestPoolsRunOut(t *testing.T) {
	a := newAllocator(testPools())
	for _, n := range []string{"a", "b", "c", "d"} {
		mustAssign(t, a, service(n, nodePort(0)), nil)
	}
	if _, err := a.assign(service("e", nodePort(0)), nil, newClaims()); err == nil || !strings.Contains(err.Error(), "no node port is free") {
		t.Errorf("five ports of four: %v", err)
	}
	no := false
	lb := func(s *v1.Service) {
		s.Spec.Type, s.Spec.AllocateLoadBalancerNodePorts = v1.ServiceTypeLoadBalancer, &no
	}
	got := map[string]bool{}
	for _, n := range []string{"f", "g"} {
		got[mustAssign(t, a, service(n, lb), nil).Status.LoadBalancer.Ingress[0].IP] = true
	}
	if len(got) != 2 {
		t.Errorf("two balancers share %v", got)
	}
	h, err := a.assign(service("h", lb), nil, newClaims())
	if err == nil || h == nil || h.Spec.ClusterIP == "" || len(h.Status.LoadBalancer.Ingress) != 0 {
		t.Errorf("without an address left: %v, %v; want a cluster IP and an error", h, err)
	}
	small := newAllocator(Pools{ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/30")}})
	mustAssign(t, small, service("a"), nil)
	mustAssign(t, small, service("b"), nil)
	if _, err := small.assign(service("c"), nil, newClaims()); err == nil || !strings.Contains(err.Error(), "no address is free in 10.0.0.0/30") {
		t.Errorf("three addresses of two: %v", err)
	}
}

func TestNobodyIsGivenWhatAnotherNames(t *testing.T) {
	pools := testPools()
	pools.LastNodePort = 30001
	probe := mustAssign(t, newAllocator(pools), service("auto", nodePort(0)), nil)
	taken := service("named", nodePort(probe.Spec.Ports[0].NodePort), clusterIP(probe.Spec.ClusterIP))
	all := newClaims()
	all.add(taken)
	a := newAllocator(pools)
	auto, err := a.assign(service("auto", nodePort(0)), nil, all)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.assign(taken, nil, all); err != nil {
		t.Errorf("%v; auto has %s and %d", err, auto.Spec.ClusterIP, auto.Spec.Ports[0].NodePort)
	}
}

func TestFamilies(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*v1.Service)
		want   string // families, and a or b for each address's family
	}{
		"default":         {func(*v1.Service) {}, "IPv4 SingleStack"},
		"by address":      {clusterIP("fd00:96::5"), "IPv6 SingleStack"},
		"one family":      {families(v1.IPFamilyPolicySingleStack, v1.IPv6Protocol), "IPv6 SingleStack"},
		"both preferred":  {families(v1.IPFamilyPolicyPreferDualStack), "IPv4 IPv6 PreferDualStack"},
		"the other first": {families(v1.IPFamilyPolicyRequireDualStack, v1.IPv6Protocol), "IPv6 IPv4 RequireDualStack"},
		"headless":        {clusterIP("None"), "IPv4 SingleStack"},
		"headless without a selector": {func(s *v1.Service) { s.Spec.ClusterIP, s.Spec.Selector = "None", nil },
			"IPv4 IPv6 RequireDualStack"},
		"ExternalName": {func(s *v1.Service) { s.Spec.Type, s.Spec.ExternalName = v1.ServiceTypeExternalName, "example.com" }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			out := mustAssign(t, newAllocator(testPools()), service("web", c.change), nil)
			var words []string
			for _, f := range out.Spec.IPFamilies {
				words = append(words, string(f))
			}
			if out.Spec.IPFamilyPolicy != nil {
				words = append(words, string(*out.Spec.IPFamilyPolicy))
			}
			if got := strings.Join(words, " "); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			for i, ip := range out.Spec.ClusterIPs {
				if ip != v1.ClusterIPNone && familyOf(netip.MustParseAddr(ip)) != out.Spec.IPFamilies[i] {
					t.Errorf("cluster IPs %v for %v", out.Spec.ClusterIPs, out.Spec.IPFamilies)
				}
			}
		})
	}
	single := newAllocator(Pools{ServiceCIDRs: testPools().ServiceCIDRs[:1]})
	if _, err := single.assign(service("web", families(v1.IPFamilyPolicyRequireDualStack)), nil, newClaims()); err == nil {
		t.Error("two families of one range")
	}
	if _, err := single.assign(service("web", families(v1.IPFamilyPolicySingleStack, v1.IPv6Protocol)), nil, newClaims()); err == nil {
		t.Error("a family that there is no range of")
	}
	if out := mustAssign(t, single, service("web", families(v1.IPFamilyPolicyPreferDualStack)), nil); len(out.Spec.ClusterIPs) != 1 {
		t.Errorf("preferred: %v", out.Spec.ClusterIPs)
	}
}

func TestNodePortsOfOnePortAreTheSame(t *testing.T) {
	s := service("dns", nodePort(0))
	s.Spec.Ports = []v1.ServicePort{
		{Name: "tcp", Port: 53, Protocol: v1.ProtocolTCP}, {Name: "udp", Port: 53, Protocol: v1.ProtocolUDP}, {Name: "metrics", Port: 9153, Protocol: v1.ProtocolTCP},
	}
	out := mustAssign(t, newAllocator(testPools()), s, nil)
	p := out.Spec.Ports
	if p[0].NodePort == 0 || p[0].NodePort != p[1].NodePort || p[2].NodePort == p[0].NodePort {
		t.Errorf("node ports %d %d %d", p[0].NodePort, p[1].NodePort, p[2].NodePort)
	}
}

func TestBalancerStatus(t *testing.T) {
	lb := typed(v1.ServiceTypeLoadBalancer)
	class := "example.com/other"
	for name, c := range map[string]struct {
		change func(*v1.Service)
		want   string
	}{
		"from the pool":   {func(*v1.Service) {}, "203.0.113.1"},
		"by its own name": {func(s *v1.Service) { s.Spec.LoadBalancerIP = "10.240.0.25" }, "10.240.0.25"},
		"as written":      {func(s *v1.Service) { s.Status.LoadBalancer.Ingress = []v1.LoadBalancerIngress{{IP: "172.17.18.43"}} }, "172.17.18.43"},
		"somebody else's": {func(s *v1.Service) { s.Spec.LoadBalancerClass = &class }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			out := mustAssign(t, newAllocator(testPools()), service("web", lb, c.change), nil)
			got := ""
			for _, i := range out.Status.LoadBalancer.Ingress {
				got += i.IP
			}
			if got != c.want {
				t.Errorf("ingress %q, want %q", got, c.want)
			}
		})
	}
	local := func(s *v1.Service) { s.Spec.ExternalTrafficPolicy = v1.ServiceExternalTrafficPolicyLocal }
	a := newAllocator(testPools())
	out := mustAssign(t, a, service("web", lb, local), nil)
	ports := []int32{out.Spec.Ports[0].NodePort, out.Spec.HealthCheckNodePort}
	if slices.Contains(ports, 0) || ports[0] == ports[1] {
		t.Errorf("node port and health check node port %v", ports)
	}
	back := mustAssign(t, a, service("web"), out)
	if back.Spec.HealthCheckNodePort != 0 || back.Spec.Ports[0].NodePort != 0 || len(back.Status.LoadBalancer.Ingress) != 0 || len(a.nodePorts) != 0 {
		t.Errorf("a balancer no more, and still %+v %+v %v", back.Spec, back.Status, a.nodePorts)
	}
}
