package node

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/pkg/config"
)

// clusterNode is a node that takes Services from a real API server with the
// rights of kube-proxy, and servers "a" and "b" outside that say their names.
type clusterNode struct {
	*testing.T
	n  *testbed.Node
	cp *testbed.ControlPlane
}

// endpoints are the addresses of the servers.
var endpoints = map[string]string{"a": "192.0.2.11", "b": "192.0.2.12"}

func newClusterNode(t *testing.T, opts ...testbed.Option) *clusterNode {
	t.Helper()
	n := newNode(t, append(opts, testbed.WithOutside())...)
	c := &clusterNode{T: t, n: n, cp: testbed.NewControlPlane(t)}
	c.cp.Join(n)
	for name, addr := range endpoints {
		if _, err := n.Exec("ip", "-n", "outside", "addr", "add", addr+"/24", "dev", "eth0"); err != nil {
			t.Fatal(err)
		}
		l, err := n.ListenOutside("tcp", net.JoinHostPort(addr, "8080"))
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) })}
		go func() { _ = srv.Serve(l) }()
		t.Cleanup(func() { srv.Close() })
	}
	kubeconfig := n.Path("kubeconfig")
	if err := os.WriteFile(kubeconfig, c.cp.Kubeconfig("system:kube-proxy"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.EditConfig(func(cfg *config.NodeAgentConfiguration) { cfg.Kubeconfig, cfg.Manifests = kubeconfig, "" })
	return c
}

// create makes a NodePort Service of that name and returns its cluster IP and
// node port.
func (c *clusterNode) create(name string, servers ...string) (clusterIP string, nodePort int32) {
	c.Helper()
	s, err := c.cp.Client().CoreV1().Services("default").Create(c.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{})
	if err != nil {
		c.Fatal(err)
	}
	if _, err := c.cp.Client().DiscoveryV1().EndpointSlices("default").Create(c.Context(), slice(name, servers), metav1.CreateOptions{}); err != nil {
		c.Fatal(err)
	}
	return s.Spec.ClusterIP, s.Spec.Ports[0].NodePort
}

func slice(service string, servers []string) *discoveryv1.EndpointSlice {
	port := int32(8080)
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: service, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: &port}},
	}
	for _, name := range servers {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{endpoints[name]}})
	}
	return s
}

func (c *clusterNode) scale(name string, servers ...string) {
	c.Helper()
	if _, err := c.cp.Client().DiscoveryV1().EndpointSlices("default").Update(c.Context(), slice(name, servers), metav1.UpdateOptions{}); err != nil {
		c.Fatal(err)
	}
}

func (c *clusterNode) remove(name string) {
	c.Helper()
	if err := c.cp.Client().DiscoveryV1().EndpointSlices("default").Delete(c.Context(), name, metav1.DeleteOptions{}); err != nil {
		c.Fatal(err)
	}
	if err := c.cp.Client().CoreV1().Services("default").Delete(c.Context(), name, metav1.DeleteOptions{}); err != nil {
		c.Fatal(err)
	}
}

// answers asks an address twenty times; the servers that answered, in order of
// their names, or the first error.
func (c *clusterNode) answers(ip string) (string, error) {
	seen := map[string]bool{}
	for range 20 {
		got, err := c.n.HTTPGet("http://" + ip + "/")
		if err != nil {
			return "", err
		}
		seen[got] = true
	}
	all := ""
	for _, name := range []string{"a", "b"} {
		if seen[name] {
			all += name
		}
	}
	return all, nil
}

// await waits until exactly these servers answer; "" is nobody.
func (c *clusterNode) await(what, ip, want string) {
	c.Helper()
	c.n.Eventually(long, what, func() error {
		got, err := c.answers(ip)
		if got == want {
			return nil
		}
		return fmt.Errorf("%q answer, want %q: %v", got, want, err)
	})
}

// serves checks that these servers answer now, the first time.
func (c *clusterNode) serves(what, ip, want string) {
	c.Helper()
	if got, err := c.answers(ip); got != want {
		c.Errorf("%s: %q answer, want %q: %v", what, got, want, err)
	}
}

// synced waits until the source's error holds what is given; "" is none.
func (c *clusterNode) source(want string) {
	c.Helper()
	c.n.Eventually(long, "the source apiserver says "+want, func() error {
		out, err := c.n.CLI("get", "sources", "-o", "wide")
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "apiserver ") && strings.Contains(line, want) {
				return nil
			}
		}
		return fmt.Errorf("%v: %s", err, out)
	})
}

// TestServicesOfAnAPIServer follows a real API server with the rights of
// kube-proxy and no more, through its absence and our own.
func TestServicesOfAnAPIServer(t *testing.T) {
	c := newClusterNode(t, testbed.WithContainerd(testbed.NoContainerd), testbed.WithoutImages(), testbed.WithoutRegistry())
	early, _ := c.create("early", "a")
	c.n.StartAgent()
	c.await("a Service from before the agent", early, "a")
	web, nodePort := c.create("web", "a", "b")
	c.await("a new Service", web, "ab")
	if got, err := c.n.HTTPGetOutside(fmt.Sprintf("http://%s:%d/", testbed.NodeIP, nodePort)); err != nil {
		t.Errorf("its node port from outside: %q, %v", got, err)
	}
	c.scale("web", "b")
	c.await("scaled down", web, "b")
	c.remove("early")
	c.await("deleted", early, "")
	c.source("Synced")

	// The API server is away, the agent is killed: nothing changes.
	c.cp.Stop()
	c.source("Failing")
	c.serves("without an API server", web, "b")
	for path, healthy := range map[string]bool{"/livez": true, "/readyz": false} {
		if _, err := c.n.HTTPGet("http://127.0.0.1:10248" + path); (err == nil) != healthy {
			t.Errorf("%s without an API server: %v", path, err)
		}
	}
	c.n.KillAgent()
	c.serves("without an agent", web, "b")
	c.n.StartAgent()
	c.source("Failing")
	c.serves("with a new agent and no API server", web, "b")
	c.cp.Start()
	c.source("Synced")
	c.serves("with all back", web, "b")
	c.scale("web", "a")
	c.await("scaled after the outage", web, "a")

	// What happens while the node is cut off is made up for, though the API
	// server no longer knows the revisions in between.
	cable := func(state string) {
		if _, err := c.n.Exec("ip", "link", "set", "cluster0", state); err != nil {
			t.Fatal(err)
		}
	}
	cable("down")
	c.remove("web")
	later, _ := c.create("later", "b")
	c.cp.Stop()
	c.cp.Compact()
	c.cp.Start()
	c.serves("while cut off", web, "a")
	cable("up")
	c.await("created while cut off", later, "b")
	c.await("deleted while cut off", web, "")
	c.source("Synced")

	// And while there is no agent.
	c.n.KillAgent()
	c.remove("later")
	last, _ := c.create("last", "a", "b")
	c.serves("deleted without an agent", later, "b")
	c.n.StartAgent()
	c.await("created without an agent", last, "ab")
	c.await("deleted without an agent", later, "")
}

// TestServicesBesideKubelet: an agent that serves Services only does not touch
// the runtime until it is given a pod.
func TestServicesBesideKubelet(t *testing.T) {
	c := newClusterNode(t)
	c.n.StartAgent()
	web, _ := c.create("web", "a")
	c.await("a Service", web, "a")
	if cs := c.n.Containers(); len(cs) > 0 {
		t.Errorf("containers %v", cs)
	}
	if _, err := os.Stat(c.n.StateDir() + "/runtime"); !os.IsNotExist(err) {
		t.Errorf("the runtime was asked: %v", err)
	}
	if out, err := c.n.HTTPGet("http://127.0.0.1:10248/readyz"); err != nil {
		t.Errorf("not ready: %v: %s", err, out)
	}
	cmd := c.n.CLICommand("apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest{name: "p"}.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("apply: %v: %s", err, out)
	}
	c.n.WaitPods(long, testbed.Running("p"))
}
