package services

//lint:file-ignore SA1019 Endpoints are deprecated, and still what people look at.

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// managedBy marks the slices that are ours.
const managedBy = "nodeagent"

// Place is where this node's pods run.
type Place struct{ NodeName, Zone string }

// selects says that a Service's endpoints are pods, and that this is one.
func selects(s *v1.Service, p *v1.Pod) bool {
	if s.Namespace != p.Namespace || len(s.Spec.Selector) == 0 || s.Spec.Type == v1.ServiceTypeExternalName {
		return false
	}
	for k, v := range s.Spec.Selector {
		if got, ok := p.Labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// endpointSlices are the endpoints of a Service among pods that it selects: one
// slice for each family and each set of port numbers, since pods may mean
// different numbers by a named port. Names that are taken are passed over.
func endpointSlices(s *v1.Service, pods []*v1.Pod, at Place, taken func(name string) bool) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for _, family := range s.Spec.IPFamilies {
		bySet := map[string]*discoveryv1.EndpointSlice{}
		n := 0
		for _, p := range pods {
			addr, ok := address(p, family)
			if !ok || pod.IsTerminal(p.Status.Phase) {
				continue
			}
			ports := endpointPorts(s, p)
			if len(ports) == 0 && len(s.Spec.Ports) > 0 {
				continue // it has none of the named ports
			}
			set := portSet(ports)
			slice := bySet[set]
			if slice == nil {
				for taken(sliceName(s, family, n)) {
					n++
				}
				slice = newSlice(s, family, sliceName(s, family, n), ports)
				bySet[set] = slice
				n++
				out = append(out, slice)
			}
			slice.Endpoints = append(slice.Endpoints, endpoint(s, p, addr, at))
		}
	}
	return out
}

func sliceName(s *v1.Service, family v1.IPFamily, n int) string {
	name := s.Name + "-" + strings.ToLower(string(family))
	if n > 0 {
		name += fmt.Sprintf("-%d", n)
	}
	return name
}

func newSlice(s *v1.Service, family v1.IPFamily, name string, ports []discoveryv1.EndpointPort) *discoveryv1.EndpointSlice {
	slice := &discoveryv1.EndpointSlice{
		TypeMeta:    metav1.TypeMeta{APIVersion: discoveryv1.SchemeGroupVersion.String(), Kind: "EndpointSlice"},
		ObjectMeta:  metav1.ObjectMeta{Namespace: s.Namespace, Name: name, Labels: map[string]string{}},
		AddressType: discoveryv1.AddressType(family), Ports: ports,
	}
	for k, v := range s.Labels {
		slice.Labels[k] = v
	}
	slice.Labels[discoveryv1.LabelServiceName] = s.Name
	slice.Labels[discoveryv1.LabelManagedBy] = managedBy
	if s.Spec.ClusterIP == v1.ClusterIPNone {
		slice.Labels[v1.IsHeadlessService] = ""
	}
	return slice
}

// address is a pod's in one family.
func address(p *v1.Pod, family v1.IPFamily) (string, bool) {
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil && familyOf(a) == family {
			return ip.IP, true
		}
	}
	return "", false
}

// endpointPorts are the Service's ports as that pod has them.
func endpointPorts(s *v1.Service, p *v1.Pod) []discoveryv1.EndpointPort {
	var out []discoveryv1.EndpointPort
	for _, sp := range s.Spec.Ports {
		number, ok := targetPort(sp, p)
		if !ok {
			continue
		}
		name, proto := sp.Name, sp.Protocol
		out = append(out, discoveryv1.EndpointPort{Name: &name, Protocol: &proto, Port: &number, AppProtocol: sp.AppProtocol})
	}
	return out
}

// targetPort looks a named port up among those of the pod's containers,
// restartable init containers included.
func targetPort(sp v1.ServicePort, p *v1.Pod) (int32, bool) {
	if sp.TargetPort.StrVal == "" {
		if sp.TargetPort.IntVal == 0 {
			return sp.Port, true
		}
		return sp.TargetPort.IntVal, true
	}
	for _, c := range slices.Concat(p.Spec.Containers, sidecars(p)) {
		for _, cp := range c.Ports {
			if cp.Name == sp.TargetPort.StrVal && cmp.Or(cp.Protocol, v1.ProtocolTCP) == cmp.Or(sp.Protocol, v1.ProtocolTCP) {
				return cp.ContainerPort, true
			}
		}
	}
	return 0, false
}

func sidecars(p *v1.Pod) []v1.Container {
	return slices.DeleteFunc(slices.Clone(p.Spec.InitContainers), func(c v1.Container) bool {
		return c.RestartPolicy == nil || *c.RestartPolicy != v1.ContainerRestartPolicyAlways
	})
}

// portSet tells sets of ports apart: a pod may lack some of the named ones.
func portSet(ports []discoveryv1.EndpointPort) string {
	var out strings.Builder
	for _, p := range ports {
		fmt.Fprintf(&out, "%s=%d ", *p.Name, *p.Port)
	}
	return out.String()
}

func endpoint(s *v1.Service, p *v1.Pod, addr string, at Place) discoveryv1.Endpoint {
	serving, terminating := isReady(p), p.DeletionTimestamp != nil
	ready := s.Spec.PublishNotReadyAddresses || serving && !terminating
	e := discoveryv1.Endpoint{
		Addresses:  []string{addr},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
		TargetRef:  &v1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
		NodeName:   &at.NodeName,
	}
	if at.Zone != "" {
		e.Zone = &at.Zone
	}
	if p.Spec.Hostname != "" && p.Spec.Subdomain == s.Name {
		e.Hostname = &p.Spec.Hostname
	}
	return e
}

func isReady(p *v1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == v1.PodReady {
			return c.Status == v1.ConditionTrue
		}
	}
	return false
}

// endpointsObject says the same as an Endpoints object, which holds one family
// and knows no terminating endpoints.
func endpointsObject(s *v1.Service, all []*discoveryv1.EndpointSlice) *v1.Endpoints {
	out := &v1.Endpoints{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Endpoints"},
		ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name, Labels: map[string]string{discoveryv1.LabelManagedBy: managedBy}},
	}
	for _, slice := range all {
		if slice.AddressType != discoveryv1.AddressType(s.Spec.IPFamilies[0]) {
			continue
		}
		var sub v1.EndpointSubset
		for _, p := range slice.Ports {
			sub.Ports = append(sub.Ports, v1.EndpointPort{Name: *p.Name, Port: *p.Port, Protocol: *p.Protocol, AppProtocol: p.AppProtocol})
		}
		for _, e := range slice.Endpoints {
			a := v1.EndpointAddress{IP: e.Addresses[0], NodeName: e.NodeName, TargetRef: e.TargetRef}
			if e.Hostname != nil {
				a.Hostname = *e.Hostname
			}
			switch {
			case *e.Conditions.Ready:
				sub.Addresses = append(sub.Addresses, a)
			case !*e.Conditions.Terminating:
				sub.NotReadyAddresses = append(sub.NotReadyAddresses, a)
			}
		}
		if len(sub.Addresses)+len(sub.NotReadyAddresses) > 0 {
			out.Subsets = append(out.Subsets, sub)
		}
	}
	return out
}
