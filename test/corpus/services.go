package corpus

import (
	"fmt"
	"slices"
	"strings"
)

// Kinds are the kinds beside Pod that the corpus has manifests of.
var Kinds = []string{"Service", "EndpointSlice", "Endpoints", "ConfigMap", "Secret", "PersistentVolume", "PersistentVolumeClaim",
	"Namespace", "ServiceAccount", "RuntimeClass", "PriorityClass"}

// Network says that a kind is one of the network's.
func Network(kind string) bool { return slices.Contains(Kinds[:3], kind) }

// FullOf is Full for another kind.
func FullOf(kind string) Object {
	meta := Object{
		"name": "full", "generateName": "full-", "namespace": "shop", "uid": "0b7c1c62-64e6-4f0c-8a3e-2a7f4d7f9f11",
		"labels": Object{"app": "full"}, "annotations": Object{"example.com/note": "any text: at all\n"},
	}
	if !Network(kind) {
		return fullConfig(kind, meta)
	}
	target := Object{"kind": "Pod", "namespace": "shop", "name": "p", "uid": "u", "apiVersion": "v1", "resourceVersion": "7", "fieldPath": "spec"}
	switch kind {
	case "EndpointSlice":
		return Object{"apiVersion": "discovery.k8s.io/v1", "kind": kind, "metadata": meta, "addressType": "IPv4",
			"ports": []any{Object{"name": "http", "port": 8080, "protocol": "TCP", "appProtocol": "kubernetes.io/h2c"}, Object{"port": 53, "protocol": "UDP"}},
			"endpoints": []any{Object{"addresses": []any{"10.0.0.1", "10.0.0.2"}, "conditions": Object{"ready": true, "serving": true, "terminating": false},
				"hostname": "a", "nodeName": "node-a", "zone": "z", "targetRef": target,
				"hints": Object{"forZones": []any{Object{"name": "z"}}, "forNodes": []any{Object{"name": "node-a"}}}}}}
	case "Endpoints":
		address := func(ip string) Object {
			return Object{"ip": ip, "hostname": "a", "nodeName": "node-a", "targetRef": target}
		}
		return Object{"apiVersion": "v1", "kind": kind, "metadata": meta, "subsets": []any{Object{
			"addresses": []any{address("10.0.0.1")}, "notReadyAddresses": []any{address("fd00::1")},
			"ports": []any{Object{"name": "http", "port": 80, "protocol": "TCP", "appProtocol": "http"}, Object{"name": "dns", "port": 53}}}}}
	}
	return Object{"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": Object{
		"type": "LoadBalancer", "clusterIP": "10.96.0.7", "clusterIPs": []any{"10.96.0.7", "fd00::7"}, "ipFamilies": []any{"IPv4", "IPv6"},
		"ipFamilyPolicy": "PreferDualStack", "externalIPs": []any{"192.0.2.1"}, "externalName": "x.example", "loadBalancerIP": "192.0.2.2",
		"loadBalancerSourceRanges": []any{"10.0.0.0/8", " fd00::/8 "}, "loadBalancerClass": "example.com/lb", "allocateLoadBalancerNodePorts": true,
		"sessionAffinity": "ClientIP", "sessionAffinityConfig": Object{"clientIP": Object{"timeoutSeconds": 60}},
		"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local", "healthCheckNodePort": 30009, "publishNotReadyAddresses": true,
		"trafficDistribution": "PreferClose", "selector": Object{"app": "web"},
		"ports": []any{
			Object{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP", "nodePort": 30080, "appProtocol": "http"},
			Object{"name": "dns", "port": 53, "targetPort": 5353, "protocol": "UDP", "nodePort": 30053},
		}},
		"status": Object{"loadBalancer": Object{"ingress": []any{
			Object{"ip": "172.17.18.43", "ipMode": "VIP"}, Object{"hostname": "lb.example"}}}},
	}
}

// addresses are right and wrong ones, of both families.
var addresses = []any{"10.0.0.1", "fd00::1", "FD00::1", "fd00:0::1", "::ffff:10.0.0.1", "010.0.0.1", "10.0.0", "10.0.0.1/32", "None", "none", "0.0.0.0", "::",
	"127.0.0.1", "::1", "169.254.1.1", "fe80::1", "fe80::1%eth0", "224.0.0.1", "ff02::1", "ff01::1", "255.255.255.255", " 10.0.0.1", "example.com"}

var ranges = []any{"10.0.0.0/8", "10.0.0.1/8", " 10.0.0.0/8", "fd00::/8", "10.0.0.1", "010.0.0.0/8", "10.0.0.0/33", "0.0.0.0/0", "::ffff:10.0.0.0/104", "10.0.0.0/08"}

// serviceWords are those that Services and endpoints know.
var serviceWords = []any{"ClusterIP", "NodePort", "LoadBalancer", "ExternalName", "clusterip", "Local", "Cluster", "ClientIP", "None", "VIP", "Proxy", "IPv4", "IPv6",
	"FQDN", "TCP", "UDP", "SCTP", "tcp", "SingleStack", "PreferDualStack", "RequireDualStack", "PreferClose", "PreferSameZone", "PreferSameNode", "PreferSomewhere"}

// serviceBorders are the values that mean something in one place of these kinds.
func serviceBorders(p place) []any {
	switch {
	case strings.Contains(p.path, "Ranges["):
		return ranges
	case strings.Contains(p.path, "IPs[") || strings.Contains(p.path, ".addresses[") || slices.Contains([]string{"ip", "clusterIP", "loadBalancerIP"}, p.key):
		return addresses
	case slices.Contains([]string{"type", "sessionAffinity", "ipMode", "addressType", "protocol", "trafficDistribution"}, p.key) ||
		strings.HasSuffix(p.key, "olicy") || strings.Contains(p.path, ".ipFamilies["):
		return serviceWords
	}
	return nil
}

// SystematicOf is Systematic for another kind.
func SystematicOf(kind string) []Variant {
	full := func() Object { return FullOf(kind) }
	if Network(kind) {
		return systematic(full, serviceBorders)
	}
	return systematic(full, configBorders)
}

// ServerSideOf is ServerSide for another kind.
func ServerSideOf(kind string) (out []Variant) {
	for key, value := range map[string]any{
		"resourceVersion": "12345", "generation": 3, "creationTimestamp": "2026-01-02T03:04:05Z",
		"ownerReferences": []any{Object{"apiVersion": "v1", "kind": "Service", "name": "s", "uid": "u"}},
		"finalizers":      []any{"service.kubernetes.io/load-balancer-cleanup"},
	} {
		o := FullOf(kind)
		o["metadata"].(Object)[key] = value
		out = append(out, Variant{"server-side " + key, encode(o)})
	}
	slices.SortFunc(out, func(a, b Variant) int { return strings.Compare(a.What, b.What) })
	return out
}

// Of makes a manifest of another kind that is right most of the time.
func (g *Generator) Of(kind string) Object {
	meta := Object{"name": fmt.Sprintf("o-%d", g.r.IntN(1000))}
	g.maybe(meta, 40, "namespace", constant(g, "default", "shop"))
	g.maybe(meta, 40, "labels", constant(g, Object{"app": "web"}, Object{"kubernetes.io/service-name": "web"}))
	g.maybe(meta, 5, "annotations", constant(g, Object{"service.kubernetes.io/topology-mode": "Auto", "service.kubernetes.io/topology-aware-hints": "auto"},
		Object{"service.beta.kubernetes.io/load-balancer-source-ranges": "10.0.0.0/8, 10.1.0.0"}, Object{"service.beta.kubernetes.io/load-balancer-source-ranges": ""}))
	if !Network(kind) {
		return g.config(kind, meta)
	}
	switch kind {
	case "EndpointSlice":
		return g.endpointSlice(meta)
	case "Endpoints":
		return Object{"apiVersion": "v1", "kind": kind, "metadata": meta, "subsets": g.list(0, 2, func(int) any { return g.subset() })}
	}
	return g.service(meta)
}

func (g *Generator) service(meta Object) Object {
	o := Object{"apiVersion": "v1", "kind": "Service", "metadata": meta}
	spec := Object{"ports": g.list(0, 3, func(i int) any { return g.servicePort(i) })}
	o["spec"] = spec
	kind := pick(g, "ClusterIP", "ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer", "ExternalName", "")
	if kind != "" {
		spec["type"] = kind
	}
	if kind == "ExternalName" {
		spec["externalName"] = pick(g, "example.com", "example.com.", "")
	} else {
		g.maybe(spec, 40, "clusterIP", constant(g, "10.96.0.1", "None", "fd00::1", ""))
	}
	if ip, ok := spec["clusterIP"].(string); ok && g.chance(50) {
		spec["clusterIPs"] = pick(g, []any{ip}, []any{ip, "fd00::2"}, []any{ip, "10.96.0.2"}, []any{"10.96.0.3"})
	}
	g.maybe(spec, 20, "ipFamilies", constant(g, []any{"IPv4"}, []any{"IPv6"}, []any{"IPv4", "IPv6"}, []any{"IPv6", "IPv4"}, []any{"IPv4", "IPv4"}))
	g.maybe(spec, 20, "ipFamilyPolicy", constant(g, "SingleStack", "PreferDualStack", "RequireDualStack"))
	g.maybe(spec, 20, "externalIPs", constant(g, []any{"192.0.2.1"}, []any{"127.0.0.1"}, []any{"192.0.2.1", "fd00::9"}))
	g.maybe(spec, 60, "selector", constant(g, Object{"app": "web"}, Object{}))
	g.maybe(spec, 25, "sessionAffinity", constant(g, "ClientIP", "None"))
	g.maybe(spec, 15, "sessionAffinityConfig", constant(g, Object{"clientIP": Object{"timeoutSeconds": 60}}, Object{"clientIP": Object{"timeoutSeconds": 86401}}, Object{"clientIP": Object{}}, Object{}))
	g.maybe(spec, 20, "externalTrafficPolicy", constant(g, "Local", "Cluster"))
	g.maybe(spec, 20, "internalTrafficPolicy", constant(g, "Local", "Cluster"))
	g.maybe(spec, 10, "healthCheckNodePort", constant(g, 30009, 0, 70000))
	g.maybe(spec, 10, "publishNotReadyAddresses", constant(g, true, false))
	g.maybe(spec, 10, "trafficDistribution", constant(g, "PreferClose", "PreferSameNode", "PreferSameZone"))
	if kind == "LoadBalancer" || g.chance(5) {
		g.maybe(spec, 30, "loadBalancerSourceRanges", constant(g, []any{"10.0.0.0/8"}, []any{" 10.0.0.0/8 ", "fd00::/8"}, []any{"10.0.0.1/8"}))
		g.maybe(spec, 20, "loadBalancerClass", constant(g, "example.com/lb", "internal"))
		g.maybe(spec, 20, "allocateLoadBalancerNodePorts", constant(g, true, false))
		g.maybe(spec, 20, "loadBalancerIP", constant(g, "192.0.2.5", ""))
		g.maybe(o, 40, "status", constant(g, Object{"loadBalancer": Object{"ingress": []any{Object{"ip": "192.0.2.7"}, Object{"hostname": "lb.example"}}}}, Object{"loadBalancer": Object{}},
			Object{"loadBalancer": Object{"ingress": []any{Object{"ip": "192.0.2.7", "ipMode": "Proxy"}, Object{"hostname": "10.0.0.1"}}}}))
	}
	return o
}

func (g *Generator) servicePort(i int) Object {
	p := Object{"port": pick(g, 80, 443, 53, 8080+i)}
	g.maybe(p, 80, "name", constant(g, fmt.Sprintf("p%d", i), "http"))
	g.maybe(p, 40, "protocol", constant(g, "TCP", "UDP", "SCTP"))
	g.maybe(p, 50, "targetPort", constant[any](g, 8080, "http", 0, "", "9090"))
	g.maybe(p, 30, "nodePort", constant(g, 30080+i, 30053, 0))
	g.maybe(p, 10, "appProtocol", constant(g, "http", "kubernetes.io/h2c"))
	return p
}

func (g *Generator) endpointSlice(meta Object) Object {
	family := pick(g, "IPv4", "IPv4", "IPv6", "FQDN")
	valid := map[string][]string{"IPv4": {"10.0.0.1", "10.0.0.2"}, "IPv6": {"fd00::1", "fd00::2"}, "FQDN": {"a.example.com", "b.example.com"}}[family]
	return Object{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": meta, "addressType": family,
		"ports": g.list(0, 3, func(i int) any {
			p := Object{}
			g.maybe(p, 80, "port", constant(g, 80, 53))
			g.maybe(p, 70, "name", constant(g, fmt.Sprintf("p%d", i), ""))
			g.maybe(p, 40, "protocol", constant(g, "TCP", "UDP", "SCTP"))
			return p
		}),
		"endpoints": g.list(0, 3, func(int) any {
			e := Object{"addresses": []any{pick(g, valid...)}}
			g.maybe(e, 50, "conditions", constant(g, Object{"ready": true}, Object{"ready": false, "serving": true, "terminating": true}, Object{}))
			g.maybe(e, 30, "nodeName", constant(g, "node-a", "Node"))
			g.maybe(e, 20, "hostname", constant(g, "a", "a.b"))
			g.maybe(e, 20, "zone", constant(g, "z", ""))
			g.maybe(e, 20, "hints", constant(g, Object{"forZones": []any{Object{"name": "z"}}}, Object{"forNodes": []any{Object{"name": "n"}, Object{"name": "n"}}}, Object{}))
			return e
		})}
}

func (g *Generator) subset() Object {
	address := func(int) any {
		a := Object{"ip": pick(g, "10.0.0.1", "10.0.0.2", "fd00::1")}
		g.maybe(a, 30, "nodeName", constant(g, "node-a"))
		g.maybe(a, 20, "hostname", constant(g, "a", "A"))
		return a
	}
	s := Object{"addresses": g.list(0, 2, address)}
	g.maybe(s, 40, "notReadyAddresses", func() any { return g.list(0, 2, address) })
	g.maybe(s, 80, "ports", func() any {
		return g.list(0, 2, func(i int) any {
			p := Object{"port": pick(g, 80, 53)}
			g.maybe(p, 80, "name", constant(g, fmt.Sprintf("p%d", i)))
			g.maybe(p, 40, "protocol", constant(g, "TCP", "UDP"))
			return p
		})
	})
	return s
}

// UpdateOf makes a change that somebody may try on an object of another kind.
func (g *Generator) UpdateOf(o Object) (Object, string) {
	c := clone(o).(Object)
	if !Network(c["kind"].(string)) {
		if g.chance(30) {
			return g.Mutate(o)
		}
		return c, g.updateConfig(c)
	}
	spec, _ := c["spec"].(Object)
	if spec == nil || g.chance(40) {
		return g.Mutate(o)
	}
	switch g.r.IntN(6) {
	case 0:
		spec["type"] = pick(g, "ClusterIP", "NodePort", "LoadBalancer")
		return c, "type"
	case 1:
		spec["clusterIP"] = pick(g, "10.96.0.1", "10.96.0.9", "", "None")
		delete(spec, "clusterIPs")
		return c, "clusterIP"
	case 2:
		delete(spec, "clusterIP")
		delete(spec, "clusterIPs")
		return c, "no clusterIP"
	case 3:
		for _, p := range asList(spec["ports"]) {
			delete(p.(Object), "nodePort")
		}
		return c, "no nodePorts"
	case 4:
		spec["ipFamilies"] = pick(g, []any{"IPv4"}, []any{"IPv6"}, []any{"IPv4", "IPv6"})
		return c, "ipFamilies"
	}
	spec["loadBalancerClass"] = pick(g, "example.com/lb", "other")
	spec["externalTrafficPolicy"] = pick(g, "Local", "Cluster")
	return c, "class and policy"
}
