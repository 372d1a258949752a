package node

import (
	"fmt"
	"os"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/pkg/config"
)

// ready is a condition: the pods run, and are Ready or not.
func ready(want bool, names ...string) func(testbed.Pods) error {
	return func(pods testbed.Pods) error {
		if err := testbed.Running(names...)(pods); err != nil {
			return err
		}
		for _, name := range names {
			p, err := pods.Get(name)
			if err != nil {
				return err
			}
			for _, c := range p.Status.Conditions {
				if c.Type == v1.PodReady && (c.Status == v1.ConditionTrue) != want || p.Status.ContainerStatuses[0].Ready != want {
					return fmt.Errorf("%s: condition %+v, container %+v", name, c, p.Status.ContainerStatuses[0])
				}
			}
		}
		return nil
	}
}

// server serves /www on a port once there is a file /go.
func server(port int) string {
	return fmt.Sprintf("until [ -e /go ]; do sleep 0.1; done; mkdir /www; echo ok >/www/healthz; exec httpd -f -p %d -h /www", port)
}

// TestReadiness: each kind of probe turns a pod ready and unready; an agent
// that is killed takes nothing back and makes nobody ready.
func TestReadiness(t *testing.T) {
	n := started(t)
	probe := func(how string) string {
		return "readinessProbe: {" + how + ", periodSeconds: 1, failureThreshold: 1}\n"
	}
	for _, m := range []manifest{
		{name: "exec", container: probe("exec: {command: [test, -e, /go]}")},
		{name: "http", script: server(8080), container: "ports: [{name: web, containerPort: 8080}]\n" + probe("httpGet: {path: /healthz, port: web}")},
		{name: "tcp", script: server(8081), container: probe("tcpSocket: {port: 8081}")},
		{name: "host", script: server(8082), spec: "hostNetwork: true\n", container: probe("httpGet: {path: /healthz, port: 8082}")},
		{name: "never", container: probe("exec: {command: ['false']}")},
		{name: "slow", container: probe("exec: {command: [sleep, '100']}, timeoutSeconds: 1")},
	} {
		n.WriteManifest(m.name+".yaml", m.String())
	}
	probed := []string{"exec", "http", "tcp", "host"}
	n.WaitPods(long, all(ready(false, probed...), ready(false, "never", "slow")))
	n.Eventually(long, "events say why", func() error {
		out, err := n.CLI("get", "events")
		for _, text := range []string{"Readiness probe failed: Get", "Readiness probe failed: dial tcp", "Readiness probe failed: command timed out"} {
			if err == nil && (!strings.Contains(out, text) || !strings.Contains(out, "Unhealthy")) {
				err = fmt.Errorf("no %q in\n%s", text, out)
			}
		}
		return err
	})
	for _, name := range probed {
		sh(t, n, name, "touch /go")
	}
	n.WaitPods(long, all(ready(true, probed...), ready(false, "never")))

	n.KillAgent()
	n.StartAgent()
	n.WaitPods(long, func(pods testbed.Pods) error {
		for _, name := range append(probed, "never") {
			p, err := pods.Get(name)
			if err != nil || p.Status.Phase == v1.PodUnknown {
				return fmt.Errorf("%s has not been looked at: %v", name, err)
			}
		}
		if err := all(ready(true, probed...), ready(false, "never"))(pods); err != nil {
			t.Errorf("after the agent was killed: %v", err)
		}
		return nil
	})

	sh(t, n, "exec", "rm /go")
	sh(t, n, "http", "rm /www/healthz")
	sh(t, n, "host", "rm /www/healthz")
	n.WaitPods(long, all(ready(false, "exec", "http", "host", "never"), ready(true, "tcp")))
}

// TestNamesAndResolvers: what a pod is called and whom it asks for names; an
// agent with other settings leaves running pods alone.
func TestNamesAndResolvers(t *testing.T) {
	n := newNode(t)
	resolvers := n.Path("resolv.conf")
	if err := os.WriteFile(resolvers, []byte("nameserver 192.0.2.53\nsearch lan.test\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	n.EditConfig(func(c *config.NodeAgentConfiguration) {
		c.Network.ResolvConf = resolvers
		c.DNS = config.DNS{ClusterDNS: []string{"10.96.0.10"}, ClusterDomain: "k8s.test"}
	})
	n.StartAgent()
	for _, m := range []manifest{
		{name: "db", spec: "hostname: db-0\nsubdomain: db\n"},
		{name: "default", spec: "dnsPolicy: Default\n"},
		{name: "none", spec: "dnsPolicy: None\ndnsConfig: {nameservers: [198.51.100.53], searches: [a.test], options: [{name: ndots, value: '2'}]}\n"},
		{name: "host", spec: "hostNetwork: true\nhostAliases: [{ip: 192.0.2.9, hostnames: [nine.test]}]\n"},
		{name: "host-first", spec: "hostNetwork: true\ndnsPolicy: ClusterFirstWithHostNet\n"},
	} {
		n.WriteManifest(m.name+".yaml", m.String())
	}
	names := []string{"db", "default", "none", "host", "host-first"}
	n.WaitPods(long, testbed.Running(names...))
	if out := sh(t, n, "db", "hostname; hostname -f"); out != "db-0\ndb-0.db.default.svc.k8s.test" {
		t.Errorf("host names %q", out)
	}
	if out := sh(t, n, "host", "cat /etc/hosts"); !strings.Contains(out, "localhost") || !strings.HasSuffix(out, "192.0.2.9\tnine.test") {
		t.Errorf("/etc/hosts on the host's network: %s", out)
	}
	cluster := "search default.svc.k8s.test svc.k8s.test k8s.test lan.test\nnameserver 10.96.0.10\noptions ndots:5"
	host := "search lan.test\nnameserver 192.0.2.53"
	files := map[string]string{"db": cluster, "default": host, "host": host, "host-first": cluster,
		"none": "search a.test\nnameserver 198.51.100.53\noptions ndots:2"}
	ids := map[string]string{}
	for name, want := range files {
		ids[name] = runningID(t, n, name, "main")
		if got := sh(t, n, name, "cat /etc/resolv.conf"); got != want {
			t.Errorf("resolv.conf of %s is\n%s\nwant\n%s", name, got, want)
		}
	}

	n.KillAgent()
	n.EditConfig(func(c *config.NodeAgentConfiguration) { c.ProxyMode, c.DNS = config.ProxyNone, config.DNS{} })
	n.StartAgent()
	n.WriteManifest("new.yaml", manifest{name: "new"}.String())
	n.WaitPods(long, testbed.Running(append(names, "new")...))
	if got := sh(t, n, "new", "cat /etc/resolv.conf"); got != host {
		t.Errorf("resolv.conf without a cluster DNS is\n%s", got)
	}
	for name, want := range files {
		if id := runningID(t, n, name, "main"); id != ids[name] {
			t.Errorf("%s was started again", name)
		}
		if got := sh(t, n, name, "cat /etc/resolv.conf"); got != want {
			t.Errorf("resolv.conf of %s has become\n%s", name, got)
		}
	}
}
