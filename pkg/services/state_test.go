package services

//lint:file-ignore SA1019 Endpoints are deprecated, and still what people write by hand.

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

func podKey(name string) pod.Key { return pod.Key{Namespace: "default", Name: name} }

// runningPod is a ready pod with one container that has a port named http.
func runningPod(name, app, ip string, httpPort int32) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name), Labels: map[string]string{"app": app}}}
	p.Spec.Containers = []v1.Container{{Name: "main", Ports: []v1.ContainerPort{{Name: "http", ContainerPort: httpPort, Protocol: v1.ProtocolTCP}}}}
	p.Status = v1.PodStatus{Phase: v1.PodRunning, PodIP: ip, PodIPs: []v1.PodIP{{IP: ip}}}
	p.Status.Conditions = []v1.PodCondition{{Type: v1.PodReady, Status: v1.ConditionTrue}}
	return p
}

func notReady(p *v1.Pod) *v1.Pod {
	p = p.DeepCopy()
	p.Status.Conditions[0].Status = v1.ConditionFalse
	return p
}

// shown lists what is in a slice: ADDRESS:PORT with ! for not ready and + for
// terminating.
func shown(all []*discoveryv1.EndpointSlice) string {
	var out []string
	for _, s := range all {
		for _, e := range s.Endpoints {
			mark := ""
			if !*e.Conditions.Ready {
				mark += "!"
			}
			if *e.Conditions.Terminating {
				mark += "+"
			}
			for _, p := range s.Ports {
				out = append(out, fmt.Sprintf("%s:%d%s", e.Addresses[0], *p.Port, mark))
			}
		}
	}
	return strings.Join(out, " ")
}

func desired(pods []*v1.Pod, all ...*v1.Service) (d Desired) {
	for i, s := range all {
		d.Services = append(d.Services, Service{Want: s, Order: uint64(i)})
	}
	d.Pods = pods
	return d
}

func TestEndpointsFollowPods(t *testing.T) {
	s := newState(testPools(), Place{NodeName: "here", Zone: "z"}, time.Now)
	web := service("web", func(s *v1.Service) { s.Spec.Ports[0].TargetPort = intstr.FromString("http") })
	a, b := runningPod("a", "web", "10.1.0.1", 8080), runningPod("b", "web", "10.1.0.2", 9090)
	ending := b.DeepCopy()
	ending.DeletionTimestamp = &metav1.Time{}
	done := notReady(b)
	done.Status.Phase = v1.PodSucceeded
	for _, step := range []struct {
		name, want string
		pods       []*v1.Pod
	}{
		{"none", "", nil},
		{"one", "10.1.0.1:8080", []*v1.Pod{a}},
		{"another number by the same name", "10.1.0.1:8080 10.1.0.2:9090", []*v1.Pod{a, b}},
		{"not ready", "10.1.0.1:8080! 10.1.0.2:9090", []*v1.Pod{notReady(a), b}},
		{"terminating", "10.1.0.1:8080 10.1.0.2:9090!+", []*v1.Pod{a, ending}},
		{"finished", "10.1.0.1:8080", []*v1.Pod{a, done}},
		{"somebody else's", "", []*v1.Pod{runningPod("c", "other", "10.1.0.3", 80)}},
		{"without an address yet", "", []*v1.Pod{runningPod("d", "web", "", 80)}},
		{"without the named port", "", []*v1.Pod{func() *v1.Pod {
			p := runningPod("e", "web", "10.1.0.5", 80)
			p.Spec.Containers[0].Ports = nil
			return p
		}()}},
		{"gone", "", nil},
	} {
		s.update(desired(step.pods, web))
		e := s.services[podKey("web")]
		if got := shown(e.slices); got != step.want {
			t.Errorf("%s: endpoints %q, want %q", step.name, got, step.want)
		}
		if again := s.update(desired(step.pods, web)); again.any() {
			t.Errorf("%s: the same once more is a change: %+v", step.name, again)
		}
	}
}

func TestUpdateSaysWhatIsDifferent(t *testing.T) {
	s := newState(testPools(), Place{NodeName: "here"}, time.Now)
	kinds := func(all []any) string {
		var out []string
		for _, o := range all {
			out = append(out, strings.TrimPrefix(fmt.Sprintf("%T", o), "*v1."))
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	web, a := service("web"), runningPod("a", "web", "10.1.0.1", 80)
	manual := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "manual"}}
	full := desired([]*v1.Pod{a}, web)
	full.Slices = []*discoveryv1.EndpointSlice{manual}
	for _, step := range []struct {
		name             string
		d                Desired
		upserted, deletd string
	}{
		{"all new", full, "EndpointSlice EndpointSlice Endpoints Service", ""},
		{"not ready", desired([]*v1.Pod{notReady(a)}, web), "EndpointSlice Endpoints", "EndpointSlice"},
		{"its label is another", desired(nil, service("web", func(s *v1.Service) { s.Labels = map[string]string{"x": "y"} })), "Endpoints Service", "EndpointSlice"},
		{"gone", Desired{}, "", "Endpoints Service"},
	} {
		c := s.update(step.d)
		if up, down := kinds(c.upserted), kinds(c.deleted); up != step.upserted || down != step.deletd {
			t.Errorf("%s: upserted %q, deleted %q; want %q and %q", step.name, up, down, step.upserted, step.deletd)
		}
	}
	if len(s.allocator.clusterIPs)+len(s.slices)+len(s.services) != 0 {
		t.Errorf("something is left: %+v", s)
	}
}

// The later of two Services that clash is refused, also when both come at once
// and in the other order, and is served once the first one is gone.
func TestLaterServiceIsRefused(t *testing.T) {
	s := newState(testPools(), Place{}, time.Now)
	first, second := service("z-first", clusterIP("10.96.0.5")), service("a-second", clusterIP("10.96.0.5"))
	d := Desired{Services: []Service{{Want: second, Order: 2}, {Want: first, Order: 1}}}
	s.update(d)
	if e := s.services[podKey("a-second")]; e.err == nil || e.served != nil {
		t.Errorf("the later one: served %v, error %v", e.served, e.err)
	}
	if e := s.services[podKey("z-first")]; e.err != nil || e.served == nil {
		t.Errorf("the first one: served %v, error %v", e.served, e.err)
	}
	c := s.update(Desired{Services: d.Services[:1]})
	if e := s.services[podKey("a-second")]; e.err != nil || e.served == nil || len(c.resolved) != 1 {
		t.Errorf("after the first one went: served %v, error %v, %d resolved", e.served, e.err, len(c.resolved))
	}
}

func TestServicesKeepWhatTheyHadBefore(t *testing.T) {
	had := service("old", clusterIP("10.96.7.7"))
	had.Spec.ClusterIPs = []string{"10.96.7.7"}
	s := newState(testPools(), Place{}, time.Now)
	// A new one claims the address while the agent was down.
	s.update(Desired{Services: []Service{
		{Want: service("new", clusterIP("10.96.7.7")), Order: 1},
		{Want: service("old"), Before: had, Order: 2},
	}})
	if e := s.services[podKey("old")]; e.served == nil || e.served.Spec.ClusterIP != "10.96.7.7" {
		t.Errorf("served %v, error %v", e.served, e.err)
	}
}

func TestNames(t *testing.T) {
	s := newState(testPools(), Place{NodeName: "here"}, time.Now)
	p := runningPod("a", "peers", "10.1.0.1", 80)
	p.Spec.Hostname, p.Spec.Subdomain = "a-0", "peers"
	d := desired([]*v1.Pod{p}, service("web"), service("peers", clusterIP("None")), service("manual", clusterIP("None"), func(s *v1.Service) { s.Spec.Selector = nil }),
		service("out", func(s *v1.Service) { s.Spec.Type, s.Spec.ExternalName = v1.ServiceTypeExternalName, "example.com" }))
	d.Endpoints = []*v1.Endpoints{{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "manual"}, Subsets: []v1.EndpointSubset{{
		Addresses: []v1.EndpointAddress{{IP: "192.0.2.1"}}, NotReadyAddresses: []v1.EndpointAddress{{IP: "192.0.2.2"}},
	}}}}
	s.update(d)
	var got []string
	for _, n := range s.names().Services {
		line := fmt.Sprintf("%s %v %s", n.Name, len(n.ClusterIPs), n.ExternalName)
		for _, set := range n.Endpoints {
			for _, e := range set.Endpoints {
				line += fmt.Sprintf(" %s=%s/%t", e.Hostname, e.Addr, e.Ready)
			}
		}
		got = append(got, line)
	}
	slices.Sort(got)
	want := []string{"manual 0  =192.0.2.1/true =192.0.2.2/false", "out 0 example.com", "peers 0  a-0=10.1.0.1/true", "web 1 "}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestEndpointsWithSomeOfThePorts: two pods that have one number each, by
// different names.
func TestEndpointsWithSomeOfThePorts(t *testing.T) {
	web := service("web", func(s *v1.Service) {
		s.Spec.Ports = []v1.ServicePort{
			{Name: "a", Protocol: v1.ProtocolTCP, Port: 80, TargetPort: intstr.FromString("http")},
			{Name: "b", Protocol: v1.ProtocolTCP, Port: 81, TargetPort: intstr.FromString("admin")},
		}
	})
	admin := runningPod("admin", "web", "10.1.0.2", 8080)
	admin.Spec.Containers[0].Ports[0].Name = "admin"
	s := newState(testPools(), Place{NodeName: "here"}, time.Now)
	s.update(desired([]*v1.Pod{runningPod("http", "web", "10.1.0.1", 8080), admin}, web))
	var got []string
	for _, slice := range s.services[podKey("web")].slices {
		got = append(got, *slice.Ports[0].Name+" "+shown([]*discoveryv1.EndpointSlice{slice}))
	}
	if want := []string{"a 10.1.0.1:8080", "b 10.1.0.2:8080"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
