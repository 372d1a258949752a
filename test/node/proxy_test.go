package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/pkg/config"
	"github.com/nodeagent/nodeagent/pkg/server/api"
)

// TestProxyUnderLoad: neither an agent that is killed nor a change of the proxy
// mode cuts a connection through a Service or refuses a new one, and rules that
// somebody flushed come back.
func TestProxyUnderLoad(t *testing.T) {
	n := newNode(t, testbed.WithOutside())
	testbed.Require(t, "nft", "iptables")
	n.EditConfig(func(c *config.NodeAgentConfiguration) { c.ProxyMode = "nftables" })
	n.StartAgent()
	n.WriteManifest("echo.yaml", manifest{name: "echo", labels: "app: echo", script: "exec busybox nc -ll -p 70 -e cat"}.String())
	n.WriteManifest("web.yaml", `{apiVersion: v1, kind: Pod, metadata: {name: web, labels: {app: web}}, spec: {containers: [
		{name: nginx, image: "nginx:stable-alpine", ports: [{containerPort: 80}]}]}}`)
	for name, port := range map[string]int{"echo": 70, "web": 80} {
		n.WriteManifest(name+"-service.yaml", fmt.Sprintf(`{apiVersion: v1, kind: Service, metadata: {name: %s},
			spec: {type: NodePort, selector: {app: %s}, ports: [{port: %d, nodePort: %d}]}}`, name, name, port, 30000+port))
	}
	n.WaitPods(long, testbed.Running("echo", "web"))
	url := "http://" + testbed.NodeIP + ":30080/"
	answers := func() error { _, err := n.HTTPGetOutside(url); return err }
	n.Eventually(long, "the Service answers from outside", answers)

	var conn net.Conn
	n.Eventually(long, "the echo Service answers", func() (err error) {
		conn, err = n.DialOutside(t.Context(), "tcp", testbed.NodeIP+":30070")
		return err
	})
	defer conn.Close()
	alive := func(when string) {
		t.Helper()
		if err := errors.Join(conn.SetDeadline(time.Now().Add(long)), echo(conn)); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
	}
	alive("at first")

	ctx, cancel := context.WithCancel(t.Context())
	asked, failed := 0, []error{}
	var load sync.WaitGroup
	load.Go(func() {
		for ; ctx.Err() == nil; asked++ {
			if err := answers(); err != nil {
				failed = append(failed, fmt.Errorf("connection %d: %w", asked, err))
			}
		}
	})
	for range 3 {
		n.KillAgent()
		alive("without an agent")
		n.StartAgent()
		n.Eventually(long, "the agent serves again", func() error { return serves(n, "nftables") })
		alive("after a restart")
	}
	for _, mode := range []string{"iptables", "nftables"} {
		n.EditConfig(func(c *config.NodeAgentConfiguration) { c.ProxyMode = mode })
		n.SignalAgent(syscall.SIGHUP)
		n.Eventually(long, "Services are served in mode "+mode, func() error { return serves(n, mode) })
		alive("in mode " + mode)
	}
	cancel()
	load.Wait()
	if asked == 0 || len(failed) > 0 {
		t.Errorf("of %d new connections these failed: %v", asked, errors.Join(failed...))
	}

	if _, err := n.Exec("nft", "flush", "ruleset"); err != nil {
		t.Fatal(err)
	}
	n.Eventually(long, "the Service answers after a flush", answers)
	n.Eventually(long, "a flush is an event", func() error {
		out, err := n.CLI("get", "events")
		if err == nil && !strings.Contains(out, "ProxyRulesChanged") {
			err = errors.New(out)
		}
		return err
	})
}

func echo(c net.Conn) error {
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

// serves says whether both Services are in the kernel in that mode.
func serves(n *testbed.Node, mode string) error {
	out, err := n.CLI("version", "-o", "json")
	if err != nil {
		return err
	}
	var v struct {
		Agent api.Info `json:"agent"`
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		return err
	}
	if p := v.Agent.Proxy; p.Mode != mode || !p.Ready || p.Services < 2 {
		return fmt.Errorf("%+v", p)
	}
	return nil
}
