package plan_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/nodeagent/nodeagent/pkg/proxy/plan"
	"github.com/nodeagent/nodeagent/pkg/proxy/servicemap"
)

// endpoints reads NUMBER@NODE[:unready|:draining|:gone|:zone=Z|:node=N]...
func endpoints(text string) (out []discoveryv1.Endpoint) {
	for word := range strings.FieldsSeq(text) {
		parts := strings.Split(word, ":")
		number, node, _ := strings.Cut(parts[0], "@")
		e := discoveryv1.Endpoint{Addresses: []string{"10.0.0." + number}, NodeName: &node, Hints: &discoveryv1.EndpointHints{}}
		for _, p := range parts[1:] {
			kind, value, _ := strings.Cut(p, "=")
			switch kind {
			case "unready":
				e.Conditions = discoveryv1.EndpointConditions{Ready: ptr(false), Serving: ptr(false)}
			case "draining":
				e.Conditions = discoveryv1.EndpointConditions{Ready: ptr(false), Serving: ptr(true), Terminating: ptr(true)}
			case "gone":
				e.Conditions = discoveryv1.EndpointConditions{Ready: ptr(false), Serving: ptr(false), Terminating: ptr(true)}
			case "zone":
				e.Hints.ForZones = append(e.Hints.ForZones, discoveryv1.ForZone{Name: value})
			case "node":
				e.Hints.ForNodes = append(e.Hints.ForNodes, discoveryv1.ForNode{Name: value})
			}
		}
		out = append(out, e)
	}
	return out
}

// Who serves the cluster IP and the node port of a Service, on the node here in
// zone a: policies, hints and conditions in combination.
func TestPolicies(t *testing.T) {
	internal := func(s *corev1.Service) {
		s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal)
	}
	external := func(s *corev1.Service) {
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	}
	both := func(s *corev1.Service) { internal(s); external(s) }
	neither := func(*corev1.Service) {}
	for _, c := range []struct {
		name, endpoints string
		change          func(*corev1.Service)
		cluster, outer  string // numbers, or what happens
		inside          string
	}{
		{"ready before draining", "1@here:draining 2@there", neither, "2", "2", ""},
		{"draining where nothing is ready", "1@here:draining 2@there:draining 3@here:unready 4@here:gone", neither, "1 2", "1 2", ""},
		{"nobody that serves", "1@here:gone 2@there:unready", both, "reject", "reject", ""},
		{"nobody at all", "", both, "reject", "reject", ""},
		{"internal Local: draining here before ready elsewhere", "1@here:draining 2@there", internal, "1", "2", ""},
		{"internal Local: nobody here", "2@there", internal, "drop", "2", ""},
		{"internal Local: only draining elsewhere", "2@there:draining", internal, "drop", "2", ""},
		{"external Local: draining here, ready elsewhere", "1@here:draining 2@there", external, "2", "1", "2"},
		{"external Local: nobody here", "2@there", external, "2", "drop", "2"},
		{"external Local: only unready here", "1@here:unready 2@there:draining", external, "2", "drop", "2"},
		{"both Local", "1@here 2@there", both, "1", "1", "1 2"},
		{"zone", "1@here:zone=b 2@there:zone=a 3@there:zone=a", neither, "2 3", "2 3", ""},
		{"zone: two hints", "1@here:zone=b 2@there:zone=b:zone=a", neither, "2", "2", ""},
		{"zone: none for here", "1@here:zone=b 2@there:zone=c", neither, "1 2", "1 2", ""},
		{"zone: one without", "1@here:zone=b 2@there:zone=a 3@there", neither, "1 2 3", "1 2 3", ""},
		{"zone: who is not ready has no say", "1@here:unready 2@there:zone=a 3@there:zone=b", neither, "2", "2", ""},
		{"zone: hints of those who drain are not looked at", "1@here:draining:zone=b 2@there:draining:zone=a", neither, "1 2", "1 2", ""},
		{"node", "1@here:zone=a:node=here 2@there:zone=a:node=there", neither, "1", "1", ""},
		{"node: none for here, the zone then", "1@x:zone=a:node=x 2@there:zone=b:node=there", neither, "1", "1", ""},
		{"node: one without, the zone then", "1@here:zone=b:node=here 2@there:zone=a", neither, "2", "2", ""},
		{"node: nothing for node or zone", "1@x:zone=b:node=x 2@there:zone=b:node=there", neither, "1 2", "1 2", ""},
		{"policy Local knows no hints", "1@here:zone=b 2@there:zone=a", both, "1", "1", "2"},
		{"external Local: the cluster's own side has hints", "1@here:zone=b 2@there:zone=a", external, "2", "1", "2"},
	} {
		m := servicemap.New()
		s := &corev1.Service{Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Port: 80, NodePort: 30080}},
		}}
		s.Namespace, s.Name = "ns", "s"
		c.change(s)
		e := &discoveryv1.EndpointSlice{Ports: []discoveryv1.EndpointPort{{Port: ptr[int32](8080)}}, Endpoints: endpoints(c.endpoints)}
		e.Namespace, e.Name, e.Labels = "ns", "s", map[string]string{discoveryv1.LabelServiceName: "s"}
		for _, o := range []any{s, e} {
			if _, err := m.Upsert(o); err != nil {
				t.Fatal(err)
			}
		}
		r := plan.Make(m.Snapshot(), plan.Node{Name: "here", Zone: "a"})
		outer, cluster := r.Frontends[0], r.Frontends[1]
		for _, got := range []struct {
			what      string
			endpoints []netip.AddrPort
			empty     fmt.Stringer
			want      string
		}{
			{"cluster IP", cluster.Endpoints, cluster.Empty, c.cluster},
			{"node port", outer.Endpoints, outer.Empty, c.outer},
			{"node port from inside", outer.Inside, nil, c.inside},
		} {
			var numbers []string
			for _, e := range got.endpoints {
				numbers = append(numbers, fmt.Sprint(e.Addr().As4()[3]))
			}
			text := strings.Join(numbers, " ")
			if text == "" && got.empty != nil {
				text = got.empty.String()
			}
			if text != got.want {
				t.Errorf("%s: %s: got %s, want %s", c.name, got.what, text, got.want)
			}
		}
	}
}

// A load balancer's source ranges hold for its address, also when somebody
// wrote it down as an external one, too.
func TestSourceRangesHaveNoWayRound(t *testing.T) {
	r := plan.Make(snapshot(t, func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Spec.LoadBalancerSourceRanges = []string{"192.0.2.0/24"}
		s.Spec.ExternalIPs = []string{"203.0.113.5", "203.0.113.6"}
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.5"}}
	}), plan.Node{Name: "here"})
	for addr, ranges := range map[string]string{"203.0.113.5": "[192.0.2.0/24]", "203.0.113.6": "[]"} {
		found := false
		for _, f := range r.Frontends {
			if f.Key.Addr.String() == addr {
				found = true
				if got := fmt.Sprint(f.SourceRanges); got != ranges {
					t.Errorf("%s: from %s, want %s", addr, got, ranges)
				}
			}
		}
		if !found {
			t.Errorf("%s is not served", addr)
		}
	}
}
