package podworker

import (
	"errors"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// world is a few objects.
type world struct {
	configs  map[string]*v1.ConfigMap
	secrets  map[string]*v1.Secret
	services []*v1.Service
}

func (w world) ConfigMap(namespace, name string) (*v1.ConfigMap, error) {
	if c := w.configs[namespace+"/"+name]; c != nil {
		return c, nil
	}
	return nil, errdefs.Errorf(errdefs.ErrNotFound, "configmap %q not found", name)
}

func (w world) Secret(namespace, name string) (*v1.Secret, error) {
	if s := w.secrets[namespace+"/"+name]; s != nil {
		return s, nil
	}
	return nil, errdefs.Errorf(errdefs.ErrNotFound, "secret %q not found", name)
}

func (w world) Services(namespace string) (out []*v1.Service) {
	for _, s := range w.services {
		if s.Namespace == namespace {
			out = append(out, s)
		}
	}
	return out
}

func service(namespace, name, ip string, ports ...v1.ServicePort) *v1.Service {
	return &v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: v1.ServiceSpec{ClusterIP: ip, Ports: ports}}
}

func named(name string) v1.LocalObjectReference { return v1.LocalObjectReference{Name: name} }

func field(path string) *v1.EnvVarSource {
	return &v1.EnvVarSource{FieldRef: &v1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path}}
}

func configKey(name, key string, optional *bool) *v1.EnvVarSource {
	return &v1.EnvVarSource{ConfigMapKeyRef: &v1.ConfigMapKeySelector{LocalObjectReference: named(name), Key: key, Optional: optional}}
}

func secretKey(name, key string, optional *bool) *v1.EnvVarSource {
	return &v1.EnvVarSource{SecretKeyRef: &v1.SecretKeySelector{LocalObjectReference: named(name), Key: key, Optional: optional}}
}

func testEnvironment() environment {
	return environment{
		objects: world{
			configs: map[string]*v1.ConfigMap{"shop/c": {Data: map[string]string{"city": "Ann Arbor", "a.b-c": "odd", "literal": "$(city)"}}, "shop/nul": {Data: map[string]string{"x": "a\x00b"}}},
			secrets: map[string]*v1.Secret{"shop/s": {Data: map[string][]byte{"user": []byte("u"), "city": []byte("Detroit")}}},
			services: []*v1.Service{
				service("default", "kubernetes", "10.96.0.1", v1.ServicePort{Name: "https", Port: 443, Protocol: "TCP"}),
				service("shop", "my-db", "fd00::5", v1.ServicePort{Port: 5432, Protocol: "TCP"}, v1.ServicePort{Name: "dns-udp", Port: 53, Protocol: "UDP"}),
				service("shop", "headless", "None", v1.ServicePort{Port: 1, Protocol: "TCP"}), service("shop", "new", "", v1.ServicePort{Port: 1}),
				service("other", "db", "10.96.0.9", v1.ServicePort{Port: 1, Protocol: "TCP"}),
			},
		},
		pod: &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "u-1", Labels: map[string]string{"app": "web"}, Annotations: map[string]string{"example.com/A": "note"}},
			Spec: v1.PodSpec{NodeName: "n1", Containers: []v1.Container{{Name: "c", Resources: v1.ResourceRequirements{
				Limits: v1.ResourceList{v1.ResourceMemory: resource.MustParse("64Mi")}, Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse("250m")}}}}}},
		podIPs: []string{"10.0.0.7", "fd00::7"}, hostIPs: []string{"192.0.2.1", "2001:db8::1"},
		allocatable: v1.ResourceList{v1.ResourceCPU: resource.MustParse("4")},
	}
}

// TestEnvironment: names and values, in order.
func TestEnvironment(t *testing.T) {
	all := []v1.EnvFromSource{
		{ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: named("c")}},
		{Prefix: "S_", SecretRef: &v1.SecretEnvSource{LocalObjectReference: named("s")}},
		{SecretRef: &v1.SecretEnvSource{LocalObjectReference: named("s")}},
		{ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: named("none"), Optional: new(true)}},
		{SecretRef: &v1.SecretEnvSource{LocalObjectReference: named("none"), Optional: new(true)}},
	}
	c := &v1.Container{Name: "c", EnvFrom: all, Env: []v1.EnvVar{
		{Name: "PLAIN", Value: "x"}, {Name: "BOTH", Value: "$(PLAIN)-$(city)-$(LATER)-$$(PLAIN)-$(KUBERNETES_SERVICE_HOST)"}, {Name: "LATER", Value: "y"},
		{Name: "user", Value: "mine"}, {Name: "EMPTY"}, {Name: "PLAIN", Value: "$(PLAIN)y"},
		{Name: "NAME", ValueFrom: field("metadata.name")}, {Name: "NS", ValueFrom: field("metadata.namespace")}, {Name: "UID", ValueFrom: field("metadata.uid")},
		{Name: "LABEL", ValueFrom: field("metadata.labels['app']")}, {Name: "NOTE", ValueFrom: field("metadata.annotations['example.com/A']")},
		{Name: "NOLABEL", ValueFrom: field("metadata.labels['none']")},
		{Name: "NODE", ValueFrom: field("spec.nodeName")}, {Name: "ACCOUNT", ValueFrom: field("spec.serviceAccountName")},
		{Name: "HOST", ValueFrom: field("status.hostIP")}, {Name: "HOSTS", ValueFrom: field("status.hostIPs")},
		{Name: "IP", ValueFrom: field("status.podIP")}, {Name: "IPS", ValueFrom: field("status.podIPs")},
		{Name: "MEM", ValueFrom: &v1.EnvVarSource{ResourceFieldRef: &v1.ResourceFieldSelector{Resource: "limits.memory", Divisor: resource.MustParse("1Mi")}}},
		{Name: "CPU", ValueFrom: &v1.EnvVarSource{ResourceFieldRef: &v1.ResourceFieldSelector{ContainerName: "c", Resource: "requests.cpu", Divisor: resource.MustParse("1m")}}},
		{Name: "ALL", ValueFrom: &v1.EnvVarSource{ResourceFieldRef: &v1.ResourceFieldSelector{Resource: "limits.cpu"}}},
		{Name: "KEY", ValueFrom: configKey("c", "a.b-c", nil)}, {Name: "SECRET", ValueFrom: secretKey("s", "user", nil)},
		{Name: "GONE1", ValueFrom: configKey("c", "none", new(true))}, {Name: "GONE2", ValueFrom: configKey("none", "x", new(true))},
		{Name: "GONE3", ValueFrom: secretKey("s", "none", new(true))}, {Name: "GONE4", ValueFrom: secretKey("none", "x", new(true))},
		{Name: "MY_DB_PORT", Value: "own"},
	}}
	e := testEnvironment()
	vars, err := e.environ(c)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, v := range vars {
		got = append(got, v.Name+"="+v.Value)
	}
	want := []string{"a.b-c=odd", "city=Detroit", "literal=$(city)", "S_city=Detroit", "S_user=u", "user=mine",
		"PLAIN=xy", "BOTH=x-Detroit-$(LATER)-$(PLAIN)-10.96.0.1", "LATER=y", "EMPTY=", "NAME=web", "NS=shop", "UID=u-1", "LABEL=web", "NOTE=note", "NOLABEL=", "NODE=n1", "ACCOUNT=default",
		"HOST=192.0.2.1", "HOSTS=192.0.2.1,2001:db8::1", "IP=10.0.0.7", "IPS=10.0.0.7,fd00::7", "MEM=64", "CPU=250", "ALL=4", "KEY=odd", "SECRET=u", "MY_DB_PORT=own",
		"KUBERNETES_PORT=tcp://10.96.0.1:443", "KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443", "KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1", "KUBERNETES_PORT_443_TCP_PORT=443",
		"KUBERNETES_PORT_443_TCP_PROTO=tcp", "KUBERNETES_SERVICE_HOST=10.96.0.1", "KUBERNETES_SERVICE_PORT=443", "KUBERNETES_SERVICE_PORT_HTTPS=443",
		"MY_DB_PORT_53_UDP=udp://[fd00::5]:53", "MY_DB_PORT_53_UDP_ADDR=fd00::5", "MY_DB_PORT_53_UDP_PORT=53", "MY_DB_PORT_53_UDP_PROTO=udp",
		"MY_DB_PORT_5432_TCP=tcp://[fd00::5]:5432", "MY_DB_PORT_5432_TCP_ADDR=fd00::5", "MY_DB_PORT_5432_TCP_PORT=5432", "MY_DB_PORT_5432_TCP_PROTO=tcp",
		"MY_DB_SERVICE_HOST=fd00::5", "MY_DB_SERVICE_PORT=5432", "MY_DB_SERVICE_PORT_DNS_UDP=53"}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	e = testEnvironment()
	e.pod.Spec.EnableServiceLinks, e.pod.Spec.ServiceAccountName = new(false), "robot"
	vars, err = e.environ(&v1.Container{Env: []v1.EnvVar{{Name: "ACCOUNT", ValueFrom: field("spec.serviceAccountName")}}})
	if err != nil || len(vars) != 9 || vars[0].Value != "robot" || vars[1].Name != "KUBERNETES_PORT" {
		t.Errorf("without links: %v, %v", vars, err)
	}
}

// TestEnvironmentErrors: kubelet's words, which people look for.
func TestEnvironmentErrors(t *testing.T) {
	for want, c := range map[string]*v1.Container{
		`configmap "none" not found`:                                                  {Env: []v1.EnvVar{{Name: "A", ValueFrom: configKey("none", "x", nil)}}},
		`secret "none" not found`:                                                     {Env: []v1.EnvVar{{Name: "A", ValueFrom: secretKey("none", "x", new(false))}}},
		"couldn't find key none in ConfigMap shop/c":                                  {Env: []v1.EnvVar{{Name: "A", ValueFrom: configKey("c", "none", nil)}}},
		"couldn't find key none in Secret shop/s":                                     {Env: []v1.EnvVar{{Name: "A", ValueFrom: secretKey("s", "none", nil)}}},
		`configmap "gone" not found`:                                                  {EnvFrom: []v1.EnvFromSource{{ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: named("gone")}}}},
		`secret "gone" not found`:                                                     {EnvFrom: []v1.EnvFromSource{{SecretRef: &v1.SecretEnvSource{LocalObjectReference: named("gone")}}}},
		"the value of variable A has a NUL byte in it, which no process can be given": {Env: []v1.EnvVar{{Name: "A", ValueFrom: configKey("nul", "x", nil)}}},
	} {
		e := testEnvironment()
		if _, err := e.environ(c); err == nil || err.Error() != want || !errors.Is(err, runtime.ErrConfig) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// TestMissingObject: a container whose ConfigMap is not there waits with
// kubelet's reason, and starts as soon as it is.
func TestMissingObject(t *testing.T) {
	n := newNode(t)
	p := testPod("a", v1.RestartPolicyAlways, "main")
	p.Spec.Containers[0].Env = []v1.EnvVar{{Name: "CITY", ValueFrom: configKey("c", "city", nil)}}
	n.want(p)
	a := n.agent(t.TempDir(), nil)
	n.until("the container waits", func() bool {
		st := n.records["a"].Pod.Status.ContainerStatuses
		return len(st) == 1 && st[0].State.Waiting != nil && st[0].State.Waiting.Reason == "CreateContainerConfigError" &&
			st[0].State.Waiting.Message == `configmap "c" not found`
	})
	n.until("the event", func() bool {
		return slices.ContainsFunc(n.events, func(e string) bool { return strings.Contains(e, `Error: configmap "c" not found`) })
	})
	n.mu.Lock()
	n.config = map[string]*v1.ConfigMap{"c": {Data: map[string]string{"city": "Ann Arbor"}}}
	n.mu.Unlock()
	a.ObjectChanged("ConfigMap", pod.Key{Namespace: "default", Name: "c"})
	n.until("it runs with the value", func() bool {
		return slices.Contains(n.env["main"], runtime.EnvVar{Name: "CITY", Value: "Ann Arbor"}) && n.records["a"].Pod.Status.Phase == v1.PodRunning
	})
}
