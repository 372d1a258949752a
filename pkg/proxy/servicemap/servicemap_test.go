//lint:file-ignore SA1019 Endpoints are deprecated, and still what people write by hand.

package servicemap_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/proxy/servicemap"
)

func ptr[T any](v T) *T { return &v }

func service(name, ip string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip,
			Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
		},
	}
}

func slice(name, service string, addrs ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		Ports:      []discoveryv1.EndpointPort{{Name: ptr("http"), Port: ptr[int32](8080)}},
	}
	for _, a := range addrs {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}, NodeName: ptr("n")})
	}
	return s
}

// show is the endpoints of each Service.
func show(s servicemap.Snapshot) string {
	var b strings.Builder
	for _, svc := range s {
		for _, p := range svc.Ports {
			fmt.Fprintf(&b, "%s:", p.ID)
			for _, e := range p.Endpoints {
				fmt.Fprintf(&b, " %s", e.Addr)
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func TestObjectsComeAndGo(t *testing.T) {
	m := servicemap.New()
	upsert, remove := m.Upsert, m.Delete
	for _, step := range []struct {
		what    string
		do      func(any) (bool, error)
		object  any
		changed bool
		want    string
	}{
		{"a slice before its Service", upsert, slice("a-1", "a", "10.0.0.1"), false, ""},
		{"its Service", upsert, service("a", "10.96.0.1"), true, "ns/a:http: 10.0.0.1:8080\n"},
		{"the same again", upsert, service("a", "10.96.0.1"), false, "ns/a:http: 10.0.0.1:8080\n"},
		{"a second slice, with an address of the first", upsert, slice("a-2", "a", "10.0.0.2", "10.0.0.1"), true,
			"ns/a:http: 10.0.0.1:8080 10.0.0.2:8080\n"},
		{"an older copy as Endpoints", upsert, &corev1.Endpoints{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "a"},
			Subsets: []corev1.EndpointSubset{{
				Addresses: []corev1.EndpointAddress{{IP: "10.0.0.9"}}, Ports: []corev1.EndpointPort{{Name: "http", Port: 1}},
			}},
		}, false, "ns/a:http: 10.0.0.1:8080 10.0.0.2:8080\n"},
		{"the second slice is another Service's now", upsert, slice("a-2", "b", "10.0.0.2"), true, "ns/a:http: 10.0.0.1:8080\n"},
		{"the first slice goes: Endpoints count", remove, slice("a-1", "a"), true, "ns/a:http: 10.0.0.9:1\n"},
		{"the Endpoints go", remove, &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "a"}}, true, "ns/a:http:\n"},
		{"it becomes headless", upsert, service("a", "None"), true, ""},
		{"and goes", remove, service("a", ""), false, ""},
	} {
		changed, err := step.do(step.object)
		if err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
		if changed != step.changed {
			t.Errorf("%s: changed = %t", step.what, changed)
		}
		if got := show(m.Snapshot()); got != step.want {
			t.Errorf("%s: got\n%swant\n%s", step.what, got, step.want)
		}
	}
}

// An endpoint must not lead to what listens only for the node (CVE-2021-25737).
func TestLoopbackAndLinkLocalEndpointsAreRefused(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "169.254.169.254", "::1", "fe80::1", "::ffff:127.0.0.1", "224.0.0.1", "0.0.0.0", "::"} {
		m := servicemap.New()
		_, _ = m.Upsert(service("a", "10.96.0.1"))
		if _, err := m.Upsert(slice("a-1", "a", addr, "10.0.0.1")); err == nil {
			t.Errorf("%s: no error", addr)
		}
		if got := show(m.Snapshot()); got != "ns/a:http: 10.0.0.1:8080\n" {
			t.Errorf("%s: got %s", addr, got)
		}
	}
}

// A Service that cannot be said to the kernel, or is another proxy's, must not
// be in the way of all others.
func TestWhatIsLeftOut(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*corev1.Service)
		fails  bool
		want   string // its addresses
	}{
		{"an address of an interface", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"fe80::1%eth0", "203.0.113.1"} }, true, "[10.96.0.1] [203.0.113.1]"},
		{"no address", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"somewhere"} }, true, "[10.96.0.1] []"},
		{"the unspecified address", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"0.0.0.0"} }, false, "[10.96.0.1] []"},
		{"the same twice", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"203.0.113.1", "::ffff:203.0.113.1"} }, false, "[10.96.0.1] [203.0.113.1]"},
		{"another proxy's", func(s *corev1.Service) {
			s.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "other"}
		}, false, ""},
		{"headless", func(s *corev1.Service) { s.Spec.ClusterIP = "None" }, false, ""},
		{"ExternalName", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName }, false, ""},
	} {
		m := servicemap.New()
		s := service("a", "10.96.0.1")
		c.change(s)
		_, err := m.Upsert(s)
		got := ""
		for _, s := range m.Snapshot() {
			got += fmt.Sprint(s.ClusterIPs, " ", s.ExternalIPs)
		}
		if got != c.want || (err != nil) != c.fails {
			t.Errorf("%s: got %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}

// An EndpointSlice of names, an endpoint without addresses and a port without a
// number serve nothing; of several addresses the first is the endpoint's.
func TestOddSlices(t *testing.T) {
	names := slice("names", "a", "example.org")
	names.AddressType = discoveryv1.AddressTypeFQDN
	several := slice("several", "a", "10.0.0.1")
	several.Endpoints[0].Addresses = append(several.Endpoints[0].Addresses, "10.0.0.2")
	several.Endpoints = append(several.Endpoints, discoveryv1.Endpoint{}, several.Endpoints[0])
	everyPort := slice("every-port", "a", "10.0.0.3")
	everyPort.Ports[0].Port = nil
	otherName := slice("other-name", "a", "10.0.0.4")
	otherName.Ports[0].Name = nil
	m := servicemap.New()
	_, _ = m.Upsert(service("a", "10.96.0.1"))
	for _, s := range []*discoveryv1.EndpointSlice{names, several, everyPort, otherName} {
		_, _ = m.Upsert(s)
	}
	if got := show(m.Snapshot()); got != "ns/a:http: 10.0.0.1:8080\n" {
		t.Errorf("got %s", got)
	}
}

func TestRunningGoesBeforeTerminating(t *testing.T) {
	m := servicemap.New()
	_, _ = m.Upsert(service("a", "10.96.0.1"))
	old := slice("a-1", "a", "10.0.0.1")
	old.Endpoints[0].Conditions = discoveryv1.EndpointConditions{Ready: ptr(false), Terminating: ptr(true)}
	_, _ = m.Upsert(old)
	_, _ = m.Upsert(slice("a-2", "a", "10.0.0.1"))
	if got := m.Snapshot()[0].Ports[0].Endpoints; len(got) != 1 || !got[0].Conditions.Has(servicemap.Ready) {
		t.Errorf("got %+v", got)
	}
}

func TestSize(t *testing.T) {
	const services = 10_000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	m := servicemap.New()
	for i := range services {
		ip := netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}).String()
		name := fmt.Sprintf("s-%d", i)
		if _, err := m.Upsert(service(name, ip)); err != nil {
			t.Fatal(err)
		}
		a := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}).String()
		b := netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)}).String()
		if _, err := m.Upsert(slice(name+"-1", name, a, b)); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if n := len(m.Snapshot()); n != services {
		t.Fatalf("%d Services", n)
	}
	if used := int64(after.HeapAlloc) - int64(before.HeapAlloc); used > 14<<20 {
		t.Errorf("%d Services take %d bytes", services, used)
	} else {
		t.Logf("%d Services of two endpoints take %.1f MB", services, float64(used)/(1<<20))
	}
}
