package services

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/proxy/plan"
)

const all = PodA + " " + PodB + " " + Remote

func nodePort(o *corev1.Service) {
	o.Spec.Type = corev1.ServiceTypeNodePort
	for i := range o.Spec.Ports {
		o.Spec.Ports[i].NodePort = 30000 + o.Spec.Ports[i].Port
	}
}

func balancer(o *corev1.Service) {
	nodePort(o)
	o.Spec.Type = corev1.ServiceTypeLoadBalancer
	for _, ip := range both("balancer") {
		o.Status.LoadBalancer.Ingress = append(o.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
	}
}

func externalIPs(o *corev1.Service) { o.Spec.ExternalIPs = both("external") }

// externalOwn is how a host without a load balancer is given one (k3s).
func externalOwn(o *corev1.Service) { o.Spec.ExternalIPs = both(Node) }

// oddBalancer has what an API server takes and few would write.
func oddBalancer(o *corev1.Service) {
	for _, ip := range []string{"224.0.0.5", "255.255.255.255", "169.254.1.1", "0.0.0.0", "240.0.0.1", "::ffff:203.0.113.77", "ff02::5", "fe80::5", "::"} {
		o.Status.LoadBalancer.Ingress = append(o.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip}, corev1.LoadBalancerIngress{Hostname: "example.org"})
	}
	o.Spec.LoadBalancerSourceRanges = []string{"0.0.0.0/1", "128.0.0.0/1", "203.0.113.5/8", "::/1", "8000::/1", "::ffff:10.0.0.0/104", "fe80::/10"}
}

func externalBalancer(o *corev1.Service) { o.Spec.ExternalIPs = both("balancer") }

func externalLocal(o *corev1.Service) {
	o.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

func internalLocal(o *corev1.Service) {
	p := corev1.ServiceInternalTrafficPolicyLocal
	o.Spec.InternalTrafficPolicy = &p
}

func affinity(o *corev1.Service) { o.Spec.SessionAffinity = corev1.ServiceAffinityClientIP }

func proxyMode(o *corev1.Service) {
	m := corev1.LoadBalancerIPModeProxy
	for i := range o.Status.LoadBalancer.Ingress {
		o.Status.LoadBalancer.Ingress[i].IPMode = &m
	}
}

func ranges(r ...string) func(*corev1.Service) {
	return func(o *corev1.Service) { o.Spec.LoadBalancerSourceRanges = r }
}

func changes(all ...func(*corev1.Service)) func(*corev1.Service) {
	return func(o *corev1.Service) {
		for _, c := range all {
			c(o)
		}
	}
}

func one(change func(*corev1.Service), endpoints string) []service {
	return []service{{change: change, endpoints: endpoints}}
}

// rows try the table of the semantics: each is of a line there.
var rows = []row{
	{name: "cluster IP", line: "cluster IP", services: one(nil, all), checks: []check{
		{from: PodA, to: "cluster:80", want: all}, // itself among them: see hairpin
		{from: Node, to: "cluster:80", want: all, source: "node"},
		{from: Client, to: "cluster:80", want: all, source: "node"},
	}},
	{name: "an endpoint on the node's own network", line: "cluster IP", services: one(changes(nodePort, externalLocal), Node), checks: []check{
		{from: PodA, to: "cluster:80", want: Node, source: "own"},
		{from: Node, to: "cluster:80", want: Node},
		{from: Client, to: "cluster:80", want: Node},
		{from: Client, to: "node:30080", want: Node, source: "own"},
		{from: PodA, to: "node:30080", want: Node, source: "own"},
		{from: Node, to: "node2:30080", want: Node},
	}},
	{name: "pods keep their address", line: "who is masqueraded", services: one(nil, PodB+" "+Remote), checks: []check{
		{from: PodA, to: "cluster:80", want: PodB + " " + Remote, source: "own"},
	}},
	{name: "hairpin", line: "hairpin", services: one(nil, PodA), checks: []check{
		{from: PodA, to: "cluster:80", want: PodA, source: "node"},
		{from: PodB, to: "cluster:80", want: PodA, source: "own"},
	}},
	{name: "masquerade all", line: "who is masqueraded", services: one(nil, PodB), node: func(n *plan.Node) { n.MasqueradeAll = true }, checks: []check{
		{from: PodA, to: "cluster:80", want: PodB, source: "node"},
	}},
	{name: "local pods by bridge", line: "who is masqueraded", services: one(nil, PodB), node: interfaces("cni0"), checks: []check{
		{from: PodA, to: "cluster:80", want: PodB, source: "own"},
		{from: Client, to: "cluster:80", want: PodB, source: "node"},
	}},
	{name: "local pods by interface prefix", line: "who is masqueraded", services: one(nil, PodB), node: interfaces("cn*"), checks: []check{
		{from: PodA, to: "cluster:80", want: PodB, source: "own"},
		{from: Client, to: "cluster:80", want: PodB, source: "node"},
	}},
	{name: "local pods unknown", line: "who is masqueraded", services: one(nil, PodB), node: interfaces(""), checks: []check{
		{from: Client, to: "cluster:80", want: PodB, source: "own"},
	}},
	{name: "two ports and another Service", line: "protocols and families", services: []service{
		{endpoints: PodA, second: true}, {cluster: "cluster2", endpoints: PodB},
	}, checks: []check{
		{from: Client, to: "cluster:80", want: PodA},
		{from: Client, to: "cluster:81", want: PodA + ":9090"},
		{from: Client, to: "cluster2:80", want: PodB},
	}},
	{name: "a port that nobody serves", line: "other ports of a cluster IP", services: one(nil, PodA), checks: []check{
		{from: Client, to: "cluster:8", want: "refused"},
		{from: Node, to: "cluster:8", want: "refused"},
		{from: PodB, to: "cluster:8", want: "refused"},
	}},
	{name: "an address that no Service has", line: "unused addresses of the service range", services: one(nil, PodA), node: func(n *plan.Node) {
		n.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")}
	}, checks: []check{
		{from: Client, to: "cluster:80", want: PodA},
		{from: Client, to: "cluster2:80", want: "dropped"},
	}},
	{name: "a cluster IP outside the service range", line: "cluster IP", services: one(nil, PodA), node: func(n *plan.Node) {
		n.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.97.0.0/16"), netip.MustParsePrefix("fd00:97::/112")}
	}, checks: []check{
		{from: Client, to: "cluster:80", want: PodA},
		{from: Node, to: "cluster:80", want: PodA},
		{from: Client, to: "cluster:8", want: "refused"},
	}},
	{name: "a Service of one family", line: "protocols and families", services: one(func(o *corev1.Service) { o.Spec.ClusterIPs = o.Spec.ClusterIPs[:1] }, PodA), checks: []check{
		{from: Client, to: "cluster:80", want: PodA, only: "v4"},
		{from: PodB, to: "cluster:80", want: "dropped", only: "v6"}, // it left the node, for nobody
	}},
	{name: "an address that the node itself serves", line: "unused addresses of the service range", services: one(nil, PodA), node: func(n *plan.Node) {
		n.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")}
		n.Served = []netip.Addr{Addr("served", false), Addr("served", true)}
	}, checks: []check{
		{from: Client, to: "served:8080", want: "served"},
		{from: PodB, to: "served:8080", want: "served", source: "own"},
		{from: Node, to: "served:8080", want: "served"},
		{from: Client, to: "cluster:80", want: PodA},
		{from: Client, to: "cluster2:80", want: "dropped"},
	}},
	{name: "no endpoints", line: "no endpoints at all", services: one(changes(balancer, externalIPs), PodA+":unready"), checks: []check{
		{from: Client, to: "cluster:80", want: "refused"},
		{from: PodB, to: "cluster:80", want: "refused"},
		{from: Node, to: "cluster:80", want: "refused"},
		{from: Client, to: "external:80", want: "refused"},
		{from: Client, to: "balancer:80", want: "refused"},
		{from: Client, to: "node:30080", want: "refused"},
	}},
	{name: "node port", line: "node port, load balancer IP, external IP", services: one(nodePort, PodA+" "+Remote), checks: []check{
		{from: Client, to: "node:30080", want: PodA + " " + Remote, source: "node"},
		{from: Client, to: "node2:30080", want: PodA + " " + Remote, source: "node"},
		{from: Node, to: "node:30080", want: PodA + " " + Remote, source: "node"},
		{from: PodB, to: "node:30080", want: PodA + " " + Remote, source: "node"},
		{from: PodB, to: "bridge:30080", want: PodA + " " + Remote, source: "node"},
		{from: Node, to: "loopback:30080", want: "refused"},
	}},
	{name: "node port on chosen addresses", line: "node port addresses", services: one(nodePort, PodA), node: func(n *plan.Node) {
		n.NodePortAddresses = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:1::/64")}
	}, checks: []check{
		{from: Client, to: "node:30080", want: PodA},
		{from: Client, to: "node2:30080", want: "refused"},
	}},
	{name: "node port on loopback", line: "node port addresses", services: one(nodePort, PodA+" "+Remote), node: func(n *plan.Node) {
		n.NodePortAddresses = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("127.0.0.0/8")}
	}, checks: []check{
		{from: Node, to: "loopback:30080", want: PodA + " " + Remote, source: "node", only: "v4", needs: LoopbackPorts},
		{from: Client, to: "node:30080", want: PodA + " " + Remote},
	}},
	{name: "external IP", line: "node port, load balancer IP, external IP", services: one(externalIPs, PodA+" "+Remote), checks: []check{
		{from: Client, to: "external:80", want: PodA + " " + Remote, source: "node"},
		{from: PodB, to: "external:80", want: PodA + " " + Remote, source: "node"},
		{from: Node, to: "external:80", want: PodA + " " + Remote, source: "node"},
	}},
	{name: "external IP that is the node's own", line: "node port, load balancer IP, external IP", services: one(changes(nodePort, externalOwn), PodA+" "+Remote), checks: []check{
		{from: Client, to: "node:80", want: PodA + " " + Remote, source: "node"},
		{from: PodB, to: "node:80", want: PodA + " " + Remote, source: "node"},
		{from: Node, to: "node:80", want: PodA + " " + Remote, source: "node"},
		{from: Client, to: "node:30080", want: PodA + " " + Remote, source: "node"},
		{from: Client, to: "node:8", want: "refused"},
		{from: Client, to: "node2:80", want: "refused"},
	}},
	{name: "load balancer", line: "node port, load balancer IP, external IP", services: one(balancer, PodA+" "+Remote), checks: []check{
		{from: Client, to: "balancer:80", want: PodA + " " + Remote, source: "node"},
		{from: PodB, to: "balancer:80", want: PodA + " " + Remote, source: "node"},
	}},
	{name: "odd addresses beside others", line: "node port, load balancer IP, external IP", services: []service{
		{change: changes(balancer, oddBalancer, affinityFor(86400)), endpoints: PodA}, {cluster: "cluster2", endpoints: PodB},
	}, checks: []check{
		{from: Client, to: "balancer:80", want: PodA},
		{from: Remote, to: "balancer:80", want: PodA},
		{from: Client, to: "cluster2:80", want: PodB},
	}},
	{name: "load balancer with ipMode Proxy", line: "`ipMode: Proxy`", services: one(changes(balancer, proxyMode), PodA), checks: []check{
		{from: PodB, to: "balancer:80", want: "dropped"}, // it left the node, for nobody
		{from: Client, to: "node:30080", want: PodA},
	}},
	{name: "source ranges", line: "source ranges", services: one(changes(balancer, ranges("192.0.2.10/32", " 2001:db8:1::10/128")), PodA), checks: []check{
		{from: Client, to: "balancer:80", want: PodA},
		{from: Remote, to: "balancer:80", want: "dropped"},
		{from: PodB, to: "balancer:80", want: "dropped"},
		{from: Remote, to: "node:30080", want: PodA}, // node ports are not subject to them
	}},
	{name: "source ranges for everybody", line: "source ranges", services: one(changes(balancer, ranges("0.0.0.0/0", "::/0")), PodA), checks: []check{
		{from: Remote, to: "balancer:80", want: PodA},
	}},
	{name: "source ranges of what is an external IP, too", line: "source ranges", services: one(changes(balancer, externalBalancer, ranges("192.0.2.10/32", "2001:db8:1::10/128")), PodA), checks: []check{
		{from: Client, to: "balancer:80", want: PodA},
		{from: Remote, to: "balancer:80", want: "dropped"},
	}},
	{name: "source ranges within each other", line: "source ranges", services: one(changes(balancer,
		ranges("192.0.2.0/24", "192.0.2.0/28", "198.51.0.0/16", "2001:db8::/32", "2001:db8:1::/64")), PodA), checks: []check{
		{from: Client, to: "balancer:80", want: PodA},
		{from: Remote, to: "balancer:80", want: PodA},
		{from: PodB, to: "balancer:80", want: "dropped"},
		{from: Node, to: "balancer:80", want: PodA},
	}},
	{name: "internal policy Local", line: "policy Local", services: one(internalLocal, PodA+" "+Remote), checks: []check{
		{from: PodB, to: "cluster:80", want: PodA, source: "own"},
		{from: Client, to: "cluster:80", want: PodA},
	}},
	{name: "internal policy Local without local endpoints", line: "policy Local without an endpoint here", services: one(changes(internalLocal, nodePort), Remote), checks: []check{
		{from: PodB, to: "cluster:80", want: "dropped"},
		{from: Client, to: "node:30080", want: Remote},
	}},
	{name: "internal policy Local with a terminating endpoint", line: "terminating endpoints", services: one(internalLocal, PodA+":draining "+Remote), checks: []check{
		{from: PodB, to: "cluster:80", want: PodA, source: "own"},
	}},
	{name: "external policy Local", line: "external policy Local, from the node or its pods", services: one(changes(balancer, externalIPs, externalLocal), PodA+" "+Remote), checks: []check{
		{from: Client, to: "node:30080", want: PodA, source: "own"},
		{from: Client, to: "balancer:80", want: PodA, source: "own"},
		{from: Client, to: "external:80", want: PodA, source: "own"},
		{from: Client, to: "cluster:80", want: PodA + " " + Remote, source: "node"},
		// Whoever is on the node is behind the load balancer already.
		{from: PodB, to: "balancer:80", want: PodA + " " + Remote, source: "own"},
		{from: PodB, to: "node:30080", want: PodA + " " + Remote, source: "own"},
		{from: PodB, to: "external:80", want: PodA + " " + Remote, source: "own"},
		{from: Node, to: "external:80", want: PodA + " " + Remote, source: "node"},
		{from: Node, to: "balancer:80", want: PodA + " " + Remote, source: "node"},
		{from: Node, to: "node:30080", want: PodA + " " + Remote, source: "node"},
	}},
	{name: "external policy Local without local endpoints", line: "policy Local without an endpoint here", services: one(changes(balancer, externalLocal), Remote), checks: []check{
		{from: Client, to: "node:30080", want: "dropped"},
		{from: Client, to: "balancer:80", want: "dropped"},
		{from: PodB, to: "balancer:80", want: Remote, source: "own"},
		{from: Node, to: "node:30080", want: Remote, source: "node"},
		{from: Client, to: "cluster:80", want: Remote},
	}},
	{name: "terminating endpoints only when none is ready", line: "terminating endpoints", services: []service{
		{endpoints: PodA + ":draining " + Remote},
		{cluster: "cluster2", endpoints: PodA + ":draining " + PodB + ":unready"},
	}, checks: []check{
		{from: Client, to: "cluster:80", want: Remote},
		{from: Client, to: "cluster2:80", want: PodA},
	}},
	{name: "external policy Local with a terminating endpoint", line: "terminating endpoints", services: one(changes(nodePort, externalLocal), PodA+":draining "+Remote), checks: []check{
		{from: Client, to: "node:30080", want: PodA, source: "own"},
		{from: Client, to: "cluster:80", want: Remote},
	}},
	{name: "hints for zones", line: "hints, `trafficDistribution`", services: one(nil, PodA+":zone=zone-1 "+PodB+":zone=zone-1 "+Remote+":zone=zone-2"), checks: []check{
		{from: Client, to: "cluster:80", want: PodA + " " + PodB},
	}},
	{name: "hints are all or nothing", line: "hints, `trafficDistribution`", services: one(nil, PodA+":zone=zone-1 "+Remote), checks: []check{
		{from: Client, to: "cluster:80", want: PodA + " " + Remote},
	}},
	{name: "hints for nodes go first", line: "hints, `trafficDistribution`", services: one(nil, PodA+":zone=zone-1:node=here "+PodB+":zone=zone-1:node=there"), checks: []check{
		{from: Client, to: "cluster:80", want: PodA},
	}},
	{name: "hints for other nodes leave those for zones", line: "hints, `trafficDistribution`", services: one(nil, PodA+":zone=zone-1:node=elsewhere "+Remote+":zone=zone-2:node=there"), checks: []check{
		{from: Client, to: "cluster:80", want: PodA},
	}},
	{name: "policy Local knows no hints", line: "hints, `trafficDistribution`", services: one(changes(nodePort, externalLocal), PodA+":zone=zone-2 "+Remote+":zone=zone-1"), checks: []check{
		{from: Client, to: "node:30080", want: PodA, source: "own"},
		{from: Client, to: "cluster:80", want: Remote},
	}},
	{name: "session affinity", line: "session affinity", services: one(changes(externalIPs, affinity), PodA+" "+PodB), checks: []check{
		{from: Client, to: "cluster:80", want: PodA + " " + PodB, sticky: "external"},
		{from: Remote, to: "cluster:80", want: PodA + " " + PodB, sticky: "external"},
		{from: Node, to: "cluster:80", want: PodA + " " + PodB, sticky: "external"},
	}},
	{name: "session affinity after an endpoint went", line: "session affinity", services: one(changes(externalIPs, affinity), PodB), checks: []check{
		{from: Client, to: "cluster:80", want: PodB, source: "node"},
		{from: PodA, to: "cluster:80", want: PodB, source: "own"},
	}},
	{name: "session affinity with external policy Local", line: "session affinity", services: one(changes(balancer, affinity, externalLocal), PodA+" "+Remote), checks: []check{
		{from: Client, to: "balancer:80", want: PodA, source: "own"},
		{from: PodB, to: "balancer:80", want: PodA + " " + Remote, sticky: "cluster"},
	}},
	{name: "headless and ExternalName", line: "headless, ExternalName", services: []service{
		{change: func(o *corev1.Service) { o.Spec.ClusterIP, o.Spec.ClusterIPs = "None", []string{"None"} }, endpoints: PodA},
		{change: func(o *corev1.Service) { o.Spec.Type = corev1.ServiceTypeExternalName }, endpoints: PodA, cluster: "cluster2"},
	}, checks: []check{
		{from: PodB, to: "pod-a:8080", want: PodA, source: "own"},
		{from: PodB, to: "cluster2:80", want: "dropped"}, // likewise
	}},
}

func interfaces(name string) func(*plan.Node) {
	return func(n *plan.Node) {
		n.LocalPods.Prefixes, n.LocalPods.Interface = nil, name
	}
}
