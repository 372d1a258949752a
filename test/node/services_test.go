package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/internal/testbed"
)

// httpd answers every request on port 80 with the pod's name.
const httpd = "mkdir -p /tmp/www; hostname >/tmp/www/index.html; exec httpd -f -p 80 -h /tmp/www"

func webPod(name, labels, spec string) string {
	return manifest{name: name, labels: labels, script: httpd, spec: spec}.String()
}

// serviceNode is a node with pods for the slides' Services, and one that looks
// at them from inside.
func serviceNode(t *testing.T) *testbed.Node {
	n := started(t, testbed.WithOutside())
	for _, p := range []struct{ name, labels, spec string }{
		{"prod-1", "app: nginx, env: prod", ""},
		{"prod-2", "app: nginx, env: prod", ""},
		{"staging", "app: nginx, env: staging", ""},
		{"inner", "app: internal", ""},
		{"app-0", "app: stateful", "hostname: app-0\nsubdomain: app"},
		{"app-1", "app: stateful", "hostname: app-1\nsubdomain: app"},
		{"client", "", ""},
	} {
		n.WriteManifest("pod-"+p.name+".yaml", webPod(p.name, p.labels, p.spec))
	}
	n.WaitPods(long, testbed.Running("prod-1", "prod-2", "staging", "inner", "app-0", "app-1", "client"))
	return n
}

// answers asks until exactly these pods have answered and nobody else.
func answers(n *testbed.Node, what string, ask func() (string, error), want ...string) {
	n.Eventually(long, what, func() error {
		got := map[string]bool{}
		for range 40 {
			body, err := ask()
			if err != nil {
				return err
			}
			name := strings.TrimSpace(body)
			if !slices.Contains(want, name) {
				return fmt.Errorf("%q answered, want one of %v", name, want)
			}
			if got[name] = true; len(got) == len(want) {
				return nil
			}
		}
		return fmt.Errorf("only %v answered of %v", got, want)
	})
}

// fromPod fetches the page of a host from inside the client pod. (The wget of
// Debian's static busybox dies of a segmentation fault.)
func fromPod(n *testbed.Node, host string) func() (string, error) {
	return func() (string, error) {
		out, err := n.CLI("exec", "client", "--", "sh", "-c", `printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 5 `+host+" 80")
		_, body, _ := strings.Cut(out, "\r\n\r\n")
		return body, err
	}
}

// query asks the cluster DNS from the node's own namespace.
func query(n *testbed.Node, name string, qtype uint16) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := n.Dial(ctx, "udp", "10.96.0.10:53")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	answer, _, err := new(dns.Client).ExchangeWithConn(q, &dns.Conn{Conn: conn})
	return answer, err
}

// records are the right sides of an answer, sorted.
func records(m *dns.Msg) (out []string) {
	for _, rr := range m.Answer {
		f := strings.SplitN(rr.String(), "\t", 5)
		out = append(out, f[3]+" "+f[4])
	}
	slices.Sort(out)
	return out
}

// TestDeckServices applies the slides' Services from the folder. No control
// plane is anywhere.
func TestDeckServices(t *testing.T) {
	n := serviceNode(t)
	for _, m := range []string{"service-clusterip", "service-loadbalancer", "service-externalname", "service-headless", "service-internal"} {
		n.WriteManifest(m+".yaml", deck(t, m))
	}
	get := func(url string) func() (string, error) { return func() (string, error) { return n.HTTPGet(url) } }
	outside := func(url string) func() (string, error) {
		return func() (string, error) { return n.HTTPGetOutside(url) }
	}
	prod := []string{"prod-1", "prod-2"}

	t.Run("ClusterIP reaches what matches both labels", func(t *testing.T) {
		answers(n, "from the node", get("http://10.96.28.176/"), prod...)
		answers(n, "from a pod", fromPod(n, "10.96.28.176"), prod...)
		answers(n, "by name", fromPod(n, "example-prod"), prod...)
		answers(n, "by its full name", fromPod(n, "example-prod.default.svc.cluster.local"), prod...)
	})
	t.Run("LoadBalancer has three ways in", func(t *testing.T) {
		answers(n, "cluster IP", fromPod(n, "10.96.28.177"), prod...)
		answers(n, "node port", outside("http://"+testbed.NodeIP+":32410/"), prod...)
		answers(n, "ingress IP", outside("http://172.17.18.43/"), prod...)
	})
	t.Run("an internal Service gets the address that it names", func(t *testing.T) {
		answers(n, "its load balancer IP", outside("http://10.240.0.25/"), "inner")
		if out := cli(t, n, "get", "services"); !strings.Contains(out, "10.240.0.25") {
			t.Errorf("get services:\n%s", out)
		}
	})
	t.Run("ExternalName is an alias", func(t *testing.T) {
		m, err := query(n, "example-external.default.svc.cluster.local", dns.TypeCNAME)
		if err != nil || !slices.Equal(records(m), []string{"CNAME example.com."}) {
			t.Errorf("%v, %v", m, err)
		}
	})
	t.Run("a headless Service is the addresses of its pods", func(t *testing.T) {
		var want []string
		pods, err := n.Pods()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"app-0", "app-1"} {
			p, err := pods.Get(name)
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, "A "+p.Status.PodIP)
			n.Eventually(long, name, func() error {
				m, err := query(n, name+".app.default.svc.cluster.local", dns.TypeA)
				if err == nil && !slices.Equal(records(m), []string{"A " + p.Status.PodIP}) {
					err = fmt.Errorf("%v", m)
				}
				return err
			})
		}
		slices.Sort(want)
		n.Eventually(long, "the Service's name", func() error {
			m, err := query(n, "app.default.svc.cluster.local", dns.TypeA)
			if err == nil && !slices.Equal(records(m), want) {
				err = fmt.Errorf("%v, want %v", m, want)
			}
			return err
		})
		answers(n, "from a pod", fromPod(n, "app-1.app"), "app-1")
	})
	t.Run("get shows them", func(t *testing.T) {
		out := cli(t, n, "get", "services")
		for _, row := range [][]string{
			{"example-prod", "ClusterIP", "10.96.28.176", "<none>", "80/TCP"},
			{"example-prod-lb", "LoadBalancer", "10.96.28.177", "172.17.18.43", "80:32410/TCP"},
			{"example-external", "ExternalName", "<none>", "example.com", "<none>"},
			{"app", "ClusterIP", "None", "<none>", "80/TCP"},
		} {
			if !hasRow(out, row...) {
				t.Errorf("no row %v in\n%s", row, out)
			}
		}
	})
}

// refused says that a connection is refused, and at once.
func refused(n *testbed.Node, addr string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := n.Dial(ctx, "tcp", addr)
	switch {
	case err == nil:
		conn.Close()
		return errors.New("connected")
	case !errors.Is(err, syscall.ECONNREFUSED):
		return err
	}
	return nil
}

// TestServiceFollowsReadiness: a pod serves while its probe says so, and the
// agent's death changes nothing about it.
func TestServiceFollowsReadiness(t *testing.T) {
	n := started(t, testbed.WithOutside())
	n.WriteManifest("web.yaml", manifest{name: "web", labels: "app: web", script: httpd, container: `readinessProbe:
  exec: {command: ["test", "-e", "/tmp/ready"]}
  periodSeconds: 1
  failureThreshold: 1
`}.String())
	n.WriteManifest("service.yaml", `{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.1.1, selector: {app: web}, ports: [{port: 80}]}}`)
	n.WaitPods(long, func(p testbed.Pods) error {
		pod, err := p.Get("web")
		if err == nil && pod.Status.PodIP == "" {
			err = errors.New("no address yet")
		}
		return err
	})
	n.Eventually(long, "refused while not ready", func() error { return refused(n, "10.96.1.1:80") })
	ready := func(is bool) {
		t.Helper()
		verb := map[bool]string{true: "touch", false: "rm"}[is]
		n.Eventually(long, verb, func() error { _, err := n.CLI("exec", "web", "--", verb, "/tmp/ready"); return err })
	}
	page := func() error { _, err := n.HTTPGet("http://10.96.1.1/"); return err }
	ready(true)
	n.Eventually(long, "served when ready", page)

	n.KillAgent()
	if err := page(); err != nil {
		t.Errorf("while the agent is dead: %v", err)
	}
	n.StartAgent()
	for range 50 {
		if err := page(); err != nil {
			t.Fatalf("while the agent comes back: %v", err)
		}
	}
	ready(false)
	n.Eventually(long, "refused when not ready any more", func() error { return refused(n, "10.96.1.1:80") })
	ready(true)
	n.Eventually(long, "served again", page)
	n.RemoveManifest("service.yaml")
	n.Eventually(long, "gone with its manifest", func() error {
		if page() == nil {
			return errors.New("still served")
		}
		return nil
	})
}

// TestServiceAddresses: what is given stays, over restarts too, and the later
// of two that want the same is told so.
func TestServiceAddresses(t *testing.T) {
	n := started(t, testbed.WithOutside())
	service := func(name, spec string) {
		n.WriteManifest("svc-"+name+".yaml", fmt.Sprintf("{apiVersion: v1, kind: Service, metadata: {name: %s}, spec: {selector: {app: x}, ports: [{port: 80}]%s}}", name, spec))
	}
	served := func(name string) (ip string, port int32) {
		t.Helper()
		n.Eventually(long, name+" has an address", func() error {
			out, err := n.CLI("get", "service", name, "-o", "json")
			if err != nil {
				return err
			}
			var s v1.Service
			if err := json.Unmarshal([]byte(out), &s); err != nil {
				return err
			}
			if ip, port = s.Spec.ClusterIP, s.Spec.Ports[0].NodePort; ip == "" {
				return errors.New("nothing yet")
			}
			return nil
		})
		return ip, port
	}
	service("one", ", type: NodePort")
	ip, port := served("one")
	if a := net.ParseIP(ip); a == nil || !strings.HasPrefix(ip, "10.96.") {
		t.Errorf("cluster IP %q", ip)
	}
	service("two", ", clusterIP: "+ip)
	n.Eventually(long, "the later one is told", func() error {
		out, err := n.CLI("get", "events")
		if err == nil && !strings.Contains(out, ip+" is the cluster IP of Service default/one") {
			err = errors.New(out)
		}
		return err
	})
	n.KillAgent()
	n.StartAgent()
	if nowIP, nowPort := served("one"); nowIP != ip || nowPort != port || port == 0 {
		t.Errorf("%s and node port %d after a restart, %s and %d before", nowIP, nowPort, ip, port)
	}
	n.RemoveManifest("svc-one.yaml")
	n.Eventually(long, "the later one gets it", func() error {
		if err := refused(n, ip+":80"); err != nil {
			return err
		}
		out, err := n.CLI("get", "service", "two", "-o", "json") // with the problem as an annotation
		if err == nil && strings.Contains(out, "is the cluster IP of Service default/one") {
			err = errors.New(out)
		}
		return err
	})
}
