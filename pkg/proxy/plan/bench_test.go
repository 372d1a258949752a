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

func BenchmarkMake10000(b *testing.B) {
	m := servicemap.New()
	for i := range 10_000 {
		ip := func(a, c byte) string { return netip.AddrFrom4([4]byte{a, c, byte(i >> 8), byte(i)}).String() }
		meta := metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprintf("s-%d", i)}
		s := &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{ClusterIP: ip(10, 96), Ports: []corev1.ServicePort{{Port: 80}}}}
		meta.Labels = map[string]string{discoveryv1.LabelServiceName: meta.Name}
		e := &discoveryv1.EndpointSlice{ObjectMeta: meta, Ports: []discoveryv1.EndpointPort{{Port: ptr[int32](8080)}}}
		for _, a := range []string{ip(10, 1), ip(10, 2)} {
			e.Endpoints = append(e.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}, NodeName: ptr("here")})
		}
		for _, o := range []any{s, e} {
			if _, err := m.Upsert(o); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportAllocs()
	var r ruleset.Ruleset
	for b.Loop() {
		r = plan.Make(m.Snapshot(), plan.Node{Name: "here"})
	}
	if len(r.Frontends) != 10_000 {
		b.Fatal(len(r.Frontends))
	}
}
