package cli

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

const servicePath = "/api/v1/namespaces/default/services"

func clashing() *v1.Service {
	return &v1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "u", Generation: 1, CreationTimestamp: ago(time.Minute), Annotations: map[string]string{
			pod.AnnotationConfigSource: "api", pod.AnnotationOrigin: "api", pod.AnnotationProblem: "10.96.0.1 is taken"}},
		Spec: v1.ServiceSpec{Type: v1.ServiceTypeClusterIP, ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1"}, Selector: map[string]string{"app": "web"},
			SessionAffinity: v1.ServiceAffinityNone, Ports: []v1.ServicePort{{Port: 80, Protocol: v1.ProtocolTCP, TargetPort: intstr.FromString("http")}}},
	}
}

// serve answers for one Service and its EndpointSlice.
func (f *fakeAgent) serve(s *v1.Service) {
	slice := discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-1", CreationTimestamp: ago(time.Minute)}, AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{{Name: new(""), Port: new(int32(8080))}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}},
			{Addresses: []string{"10.0.0.2"}, Conditions: discoveryv1.EndpointConditions{Ready: new(false)}}},
	}
	f.extra = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.URL.Path == "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices":
			f.answer(w, 200, discoveryv1.EndpointSliceList{Items: []discoveryv1.EndpointSlice{slice}})
		case r.URL.Path == servicePath && r.Method == http.MethodGet:
			f.answer(w, 200, v1.ServiceList{Items: []v1.Service{*s}})
		case r.URL.Path == servicePath+"/web" && r.Method == http.MethodPut:
			var sent v1.Service
			b, _ := io.ReadAll(r.Body)
			if err := json.Unmarshal(b, &sent); err != nil {
				f.t.Error(err)
			}
			if s = s.DeepCopy(); sent.Spec.Ports[0].Port != s.Spec.Ports[0].Port {
				s.Spec.Ports, s.Generation = sent.Spec.Ports, s.Generation+1
			}
			delete(s.Annotations, pod.AnnotationProblem)
			f.answer(w, 200, s)
		case r.URL.Path == servicePath && r.Method == http.MethodPost:
			f.answer(w, 201, s)
		case strings.HasPrefix(r.URL.Path, servicePath+"/") && r.URL.Path != servicePath+"/web":
			f.fail(w, 404, metav1.StatusReasonNotFound, `services "none" not found`, nil)
		case r.URL.Path == servicePath+"/web" && r.Method == http.MethodGet:
			f.answer(w, 200, s)
		case r.URL.Path == servicePath+"/web" && r.Method == http.MethodDelete:
			f.answer(w, 200, metav1.Status{Status: "Success", Details: &metav1.StatusDetails{UID: s.UID}})
		default:
			return false
		}
		return true
	}
}

func TestGetServices(t *testing.T) {
	f, c, out, _ := newFake(t)
	f.serve(clashing())
	for _, tc := range []struct {
		args   []string
		output string
		want   string
	}{
		{[]string{"svc"}, "", "NAME   TYPE        CLUSTER-IP   EXTERNAL-IP   PORT(S)   AGE\nweb    ClusterIP   10.96.0.1    <none>        80/TCP    60s\n"},
		{[]string{"services", "web"}, "wide", "NAME   TYPE        CLUSTER-IP   EXTERNAL-IP   PORT(S)   AGE   SELECTOR   PROBLEM\n" +
			"web    ClusterIP   10.96.0.1    <none>        80/TCP    60s   app=web    10.96.0.1 is taken\n"},
		{[]string{"service/web"}, "name", "service/web\n"},
		{[]string{"endpointslices"}, "", "NAME    ADDRESSTYPE   PORTS   ENDPOINTS             AGE\nweb-1   IPv4          8080    10.0.0.1,10.0.0.2     60s\n"},
	} {
		out.Reset()
		err := c.Get(t.Context(), tc.args, GetOptions{Output: tc.output})
		if got := strings.Join(strings.Fields(out.String()), " "); err != nil || got != strings.Join(strings.Fields(tc.want), " ") {
			t.Errorf("%q: %v\n%s\nwant\n%s", tc.args, err, out, tc.want)
		}
	}
}

func TestDescribeService(t *testing.T) {
	f, c, out, errs := newFake(t)
	f.serve(clashing())
	if err := c.Describe(t.Context(), "Service", nil); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Name: web", "Selector: app=web", "IP: 10.96.0.1", "Port: <unset> 80/TCP", "TargetPort: http/TCP",
		"Endpoints: 10.0.0.1:8080 ", "Problem: 10.96.0.1 is taken", "Events: <none>"} {
		if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	if code := Report(errs, c.Describe(t.Context(), "Service", []string{"none"})); code != 1 || !strings.Contains(errs.String(), `services "none" not found`) {
		t.Errorf("code %d, %s", code, errs)
	}
	out.Reset()
	if err := c.Describe(t.Context(), "EndpointSlice", nil); err != nil || !strings.Contains(out.String(), "10.0.0.1,10.0.0.2") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestApplyAndDeleteServices(t *testing.T) {
	f, c, out, errs := newFake(t)
	f.serve(clashing())
	text := "apiVersion: v1\nkind: Service\nmetadata: {name: NAME}\nspec: {ports: [{port: PORT}]}\n"
	for _, tc := range []struct{ name, port, want string }{
		{"new", "80", "service/new created\n"}, {"web", "80", "service/web unchanged\n"}, {"web", "81", "service/web configured\n"},
	} {
		out.Reset()
		c.In = strings.NewReader(strings.NewReplacer("NAME", tc.name, "PORT", tc.port).Replace(text))
		if err := c.Apply(t.Context(), []string{"-"}, false); err != nil || out.String() != tc.want {
			t.Errorf("%s:%s: %v, %q", tc.name, tc.port, err, out)
		}
	}
	gone := "service \"web\" deleted from default namespace\n"
	c.In = strings.NewReader("kind: ServiceList\nitems: [{metadata: {name: web}}]\n")
	for name, remove := range map[string]func() error{
		"name": func() error {
			return c.Delete(t.Context(), []string{"web"}, DeleteOptions{Kind: "Service", GracePeriod: -1, Wait: true})
		},
		"all": func() error { return c.DeleteAll(t.Context(), "", DeleteOptions{Kind: "Service", GracePeriod: -1}) },
		"file": func() error {
			return c.DeleteFiles(t.Context(), []string{"-"}, DeleteOptions{GracePeriod: -1, Wait: true})
		},
	} {
		out.Reset()
		if err := remove(); err != nil || out.String() != gone {
			t.Errorf("by %s: %v, %q, %q", name, err, out, errs)
		}
	}
}
