package plan_test

import (
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/proxy/plan"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
	"github.com/nodeagent/nodeagent/pkg/proxy/servicemap"
)

// objects are a Service of two endpoints.
func objects(i int) []any {
	ip := func(a, c byte) string { return netip.AddrFrom4([4]byte{a, c, byte(i >> 8), byte(i)}).String() }
	meta := metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprintf("s-%d", i)}
	s := &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{ClusterIP: ip(10, 96), Ports: []corev1.ServicePort{{Port: 80}}}}
	meta.Labels = map[string]string{discoveryv1.LabelServiceName: meta.Name}
	e := &discoveryv1.EndpointSlice{ObjectMeta: meta, Ports: []discoveryv1.EndpointPort{{Port: ptr[int32](8080)}}}
	for _, a := range []string{ip(10, 1), ip(10, 2)} {
		e.Endpoints = append(e.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}, NodeName: ptr("here")})
	}
	return []any{s, e}
}

func tenThousand(b *testing.B) *servicemap.Map {
	m := servicemap.New()
	for i := range 10_000 {
		each(b, m.Upsert, objects(i))
	}
	return m
}

func each(b testing.TB, do func(any) (bool, error), objects []any) {
	for _, o := range objects {
		if _, err := do(o); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMake10000(b *testing.B) {
	m := tenThousand(b)
	b.ReportAllocs()
	var r ruleset.Ruleset
	for b.Loop() {
		r = plan.Make(m.Snapshot(), plan.Node{Name: "here"})
	}
	if len(r.Frontends) != 10_000 {
		b.Fatal(len(r.Frontends))
	}
}

// One Service more, or one less, from the object to what a backend is to do.
func BenchmarkOneMoreThan10000(b *testing.B) {
	m := tenThousand(b)
	one := objects(10_000)
	b.ReportAllocs()
	var p plan.Planner
	old := p.Make(m.Snapshot(), plan.Node{Name: "here"})
	add := true
	for b.Loop() {
		if add {
			each(b, m.Upsert, one)
		} else {
			each(b, m.Delete, one)
		}
		add = !add
		now := p.Make(m.Snapshot(), plan.Node{Name: "here"})
		if changes := ruleset.Diff(old, now); len(changes) != 1 {
			b.Fatal(len(changes))
		}
		if gone, added := ruleset.DiffAddrs(old.Hairpin, now.Hairpin); len(gone)+len(added) != 2 {
			b.Fatal(gone, added)
		}
		old = now
	}
}

// An endpoint is another one, which is what happens most: nothing is copied but
// pointers.
func BenchmarkOneEndpointOf10000(b *testing.B) {
	m := tenThousand(b)
	slice := objects(5_000)[1].(*discoveryv1.EndpointSlice)
	b.ReportAllocs()
	var p plan.Planner
	old := p.Make(m.Snapshot(), plan.Node{Name: "elsewhere"})
	for i := 0; b.Loop(); i++ {
		slice.Endpoints[0].Addresses[0] = []string{"10.3.0.1", "10.3.0.2"}[i%2]
		each(b, m.Upsert, []any{slice})
		now := p.Make(m.Snapshot(), plan.Node{Name: "elsewhere"})
		if changes := ruleset.Diff(old, now); len(changes) != 1 {
			b.Fatal(len(changes))
		}
		old = now
	}
}
