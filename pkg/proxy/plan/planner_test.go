package plan_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/nodeagent/nodeagent/pkg/proxy/plan"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
	"github.com/nodeagent/nodeagent/pkg/proxy/servicemap"
)

// change does something to one of a few Services, which now and then claim the
// same addresses and ports.
func change(r *rand.Rand, m *servicemap.Map) error {
	name := fmt.Sprintf("s%02d", r.IntN(30))
	s := &corev1.Service{}
	s.Namespace, s.Name = "ns", name
	slice := &discoveryv1.EndpointSlice{Ports: []discoveryv1.EndpointPort{{Port: ptr[int32](8080)}}}
	slice.Namespace, slice.Name = "ns", name
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: name}
	var err error
	switch r.IntN(5) {
	case 0:
		_, err = m.Delete(s)
	case 1:
		_, err = m.Delete(slice)
	case 2, 3:
		for range r.IntN(3) {
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{fmt.Sprintf("10.244.1.%d", 1+r.IntN(20))}, NodeName: ptr([]string{"here", "there"}[r.IntN(2)]),
			})
		}
		_, err = m.Upsert(slice)
	default:
		s.Spec.Type = corev1.ServiceTypeNodePort
		s.Spec.ClusterIP = fmt.Sprintf("10.96.0.%d", r.IntN(250))
		s.Spec.Ports = []corev1.ServicePort{{Port: 80, NodePort: int32(30000 + r.IntN(400))}}
		if r.IntN(2) == 0 {
			s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		}
		_, err = m.Upsert(s)
	}
	return err
}

// However the snapshots came about, a planner says of each what Make says.
func TestPlannerSaysWhatMakeSays(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	m := servicemap.New()
	var p plan.Planner
	for i := range 3000 {
		for range 1 + r.IntN(3) {
			if err := change(r, m); err != nil {
				t.Fatal(err)
			}
		}
		node := plan.Node{Name: "here", MasqueradeAll: i%100 > 90}
		s := m.Snapshot()
		got, want := p.Make(s, node), plan.Make(s, node)
		if got.String() != want.String() || len(ruleset.Diff(got, want)) > 0 {
			t.Fatalf("after %d changes: got\n%swant\n%s", i, got, want)
		}
	}
}

// A Service that had to yield gets the place when the other one goes.
func TestYield(t *testing.T) {
	m := servicemap.New()
	var p plan.Planner
	var got ruleset.Ruleset
	for _, step := range []struct {
		name string
		do   func(any) (bool, error)
		want string
	}{{"b", m.Upsert, "ns/b"}, {"a", m.Upsert, "ns/a"}, {"a", m.Delete, "ns/b"}} {
		s := &corev1.Service{Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Port: 80}}}}
		s.Namespace, s.Name = "ns", step.name
		for i := range 20 { // others, so that a change is a small one
			o := s.DeepCopy()
			o.Name, o.Spec.ClusterIP = fmt.Sprintf("o%d", i), fmt.Sprintf("10.96.1.%d", i)
			if _, err := m.Upsert(o); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := step.do(s); err != nil {
			t.Fatal(err)
		}
		got = p.Make(m.Snapshot(), plan.Node{})
		f := got.Find(ruleset.Key{Addr: netip.MustParseAddr("10.96.0.1"), Proto: ruleset.TCP, Port: 80})
		if f == nil || f.Service != step.want {
			t.Errorf("got %v, want %s", f, step.want)
		}
	}
}

// What a change does not touch is not made again: two rulesets have it in common.
func TestUntouchedIsShared(t *testing.T) {
	m := servicemap.New()
	for i := range 100 {
		each(t, m.Upsert, objects(i))
	}
	var p plan.Planner
	before := p.Make(m.Snapshot(), plan.Node{Name: "elsewhere"})
	other := objects(50)[1].(*discoveryv1.EndpointSlice)
	other.Endpoints = other.Endpoints[:1]
	each(t, m.Upsert, []any{other})
	after := p.Make(m.Snapshot(), plan.Node{Name: "elsewhere"})
	for i := range before.Frontends {
		if touched := before.Frontends[i].Service == "ns/s-50"; (before.Frontends[i] == after.Frontends[i]) == touched {
			t.Errorf("%v and %v: touched is %v", before.Frontends[i], after.Frontends[i], touched)
		}
	}
	if &before.ClusterIPs[0] != &after.ClusterIPs[0] {
		t.Error("the cluster IPs were copied")
	}
}
