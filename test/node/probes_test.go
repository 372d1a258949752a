package node

import (
	"fmt"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/internal/testbed"
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
	probe := func(how string) string { return "readinessProbe: {" + how + ", periodSeconds: 1, failureThreshold: 1}\n" }
	for _, m := range []manifest{
		{name: "exec", container: probe("exec: {command: [test, -e, /go]}")},
		{name: "http", script: server(8080), container: "ports: [{name: web, containerPort: 8080}]\n" + probe("httpGet: {path: /healthz, port: web}")},
		{name: "tcp", script: server(8081), container: probe("tcpSocket: {port: 8081}")},
		{name: "host", script: server(8082), spec: "hostNetwork: true\n", container: probe("httpGet: {path: /healthz, port: 8082}")},
		{name: "never", container: probe("exec: {command: ['false']}")},
	} {
		n.WriteManifest(m.name+".yaml", m.String())
	}
	probed := []string{"exec", "http", "tcp", "host"}
	n.WaitPods(long, all(ready(false, probed...), ready(false, "never")))
	n.Eventually(long, "events say why", func() error {
		out, err := n.CLI("get", "events")
		for _, text := range []string{"Readiness probe failed: Get", "Readiness probe failed: dial tcp"} {
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
