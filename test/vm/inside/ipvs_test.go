// Package inside is what runs in the guest of test/vm against the agent that is
// installed there.
package inside

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/internal/testbed/services"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

const (
	program = "/usr/bin/nodeagent"
	// long is for an emulated machine on a busy one.
	long = 8 * time.Minute
)

// ports are those of the Service; its cluster IP is no other's of the world.
const (
	clusterIP       = "10.96.0.50"
	port, echoPort  = 80, 7
	nodePort        = 30080
	sctpPort        = 81
	manifest        = "svc.yaml"
	configuration   = "nodeagent.yaml"
	serviceManifest = `{apiVersion: v1, kind: Service, metadata: {name: svc}, spec: {type: NodePort, clusterIP: 10.96.0.50, ports: [
 {name: tcp, port: 80, nodePort: 30080}, {name: udp, port: 80, protocol: UDP}, {name: sctp, port: 81, protocol: SCTP}, {name: echo, port: 7}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: svc-1, labels: {kubernetes.io/service-name: svc}}, addressType: IPv4,
 ports: [{name: tcp, port: 8080}, {name: udp, port: 8080, protocol: UDP}, {name: sctp, port: 8080, protocol: SCTP}, {name: echo, port: 7070}],
 endpoints: [%s]}
`
	agentConfiguration = `apiVersion: nodeagent/v1alpha1
kind: NodeAgentConfiguration
nodeName: here
manifests: %[1]s/manifests
stateDir: %[1]s/state
runDir: %[1]s/run
podLogDir: %[1]s/logs
listen: none
network: {confDir: %[1]s/net.d, podCIDRs: [10.244.1.0/24]}
`
)

// agent is one in the node of a world.
type agent struct {
	t   *testing.T
	w   *services.World
	dir string
	cmd *exec.Cmd
	log bytes.Buffer
}

func (a *agent) write(name, text string) {
	a.t.Helper()
	file := filepath.Join(a.dir, name)
	tmp := filepath.Join(filepath.Dir(file), "."+filepath.Base(file)) // no manifest
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(tmp, []byte(text), 0o644), os.Rename(tmp, file)); err != nil {
		a.t.Fatal(err)
	}
}

// serve has these pods behind the Service.
func (a *agent) serve(hosts ...string) {
	a.t.Helper()
	var endpoints []string
	for _, h := range hosts {
		endpoints = append(endpoints, fmt.Sprintf("{addresses: [%s], conditions: {ready: true}}", services.Addr(h, false)))
	}
	a.write("manifests/"+manifest, fmt.Sprintf(serviceManifest, strings.Join(endpoints, ", ")))
}

func (a *agent) command(name string, args ...string) *exec.Cmd {
	words := append(a.w.Command(name), args...)
	return exec.Command(words[0], words[1:]...)
}

// run runs a program on the node.
func (a *agent) run(name string, args ...string) string {
	a.t.Helper()
	out, err := a.command(name, args...).CombinedOutput()
	if err != nil {
		a.t.Fatalf("%s %s: %v: %s", name, args, err, out)
	}
	return string(out)
}

// start returns when Services are served in that mode.
func (a *agent) start(mode string) {
	a.t.Helper()
	a.cmd = a.command(program, "run", "--config", filepath.Join(a.dir, configuration), "--proxy-mode", mode)
	a.cmd.Stdout, a.cmd.Stderr = &a.log, &a.log
	if err := a.cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	a.eventually("Services are served in mode "+mode, func() error {
		out, err := a.command(program, "version", "-o", "json", "--run-dir", filepath.Join(a.dir, "run")).CombinedOutput()
		text := strings.Join(strings.Fields(string(out)), "")
		if err != nil || !strings.Contains(text, `"mode":"`+mode+`","ready":true`) || !strings.Contains(text, `"services":1,`) {
			return fmt.Errorf("%w: %s", err, text)
		}
		return nil
	})
}

func (a *agent) kill() {
	a.t.Helper()
	if err := a.cmd.Process.Kill(); err != nil {
		a.t.Fatal(err)
	}
	_ = a.cmd.Wait() // killed
}

func (a *agent) eventually(what string, f func() error) {
	a.t.Helper()
	var err error
	for deadline := time.Now().Add(long); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	a.t.Fatalf("%s: still not: %v", what, err)
}

// asks has a client connect until the returned function is called, which says
// how many connections there were, and which were refused or not answered.
func (a *agent) asks() (end func() (int, []error)) {
	ctx, cancel := context.WithCancel(a.t.Context())
	asked, failed := 0, []error{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for ; ctx.Err() == nil; asked++ {
			if err := a.ask(services.Client, ruleset.TCP, clusterIP, port); err != nil {
				failed = append(failed, fmt.Errorf("at %s: %w", time.Now().UTC().Format("15:04:05.000"), err)) // the agent's log has times
			}
		}
	})
	return func() (int, []error) { cancel(); wg.Wait(); return asked, failed }
}

func (a *agent) ask(from string, proto ruleset.Proto, ip string, port uint16) error {
	to := netip.AddrPortFrom(netip.MustParseAddr(ip), port)
	got, err := a.w.Ask(from, proto, to, false)
	if err == nil && got.Verdict != ruleset.Forward {
		err = fmt.Errorf("%s to %s over %s: %s", from, to, proto, got.Verdict)
	}
	return err
}

func (a *agent) dial() net.Conn {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), long)
	defer cancel()
	c, err := a.w.Dial(ctx, services.Client, ruleset.TCP, netip.AddrPortFrom(netip.MustParseAddr(clusterIP), echoPort))
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { c.Close() })
	return c
}

func (a *agent) alive(c net.Conn, when string) {
	a.t.Helper()
	if err := c.SetDeadline(time.Now().Add(long)); err != nil {
		a.t.Fatal(err)
	}
	_, err := c.Write([]byte("x"))
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 1))
	}
	if err != nil {
		a.t.Errorf("%s: an established connection: %v", when, err)
	}
}

// ours is what the agent has in the kernel, of all modes.
func (a *agent) ours() string {
	a.t.Helper()
	return a.run("sh", "-c", "(ipvsadm -Sn; nft list tables | grep nodeagent; ip route show table local proto 78; ip -6 route show table local proto 78) | sort")
}

// The agent serves through IPVS with one flag. Neither kill -9 within changes
// nor a change of the mode refuses a connection, single edits by others are put
// right, and cleanup leaves nothing.
func TestIPVS(t *testing.T) {
	a := &agent{t: t, w: services.New(t), dir: t.TempDir()}
	if out, err := exec.Command("modprobe", "-a", "ip_vs", "ip_vs_rr").CombinedOutput(); err != nil {
		t.Fatalf("modprobe: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if a.cmd != nil && a.cmd.ProcessState == nil {
			a.kill()
		}
		if t.Failed() {
			t.Logf("the agent's log:\n%s", a.log.String())
		}
	})
	before := a.ours()
	a.write(configuration, fmt.Sprintf(agentConfiguration, a.dir))
	a.write("state/proxy-modes", "ipvs\n") // else it looks for what every mode left, with slow programs
	a.serve(services.PodA, services.PodB)
	a.start("ipvs")
	if table := a.run("ipvsadm", "-Sn"); !strings.Contains(table, "-a -t "+clusterIP+":80 -r "+services.Addr(services.PodA, false).String()+":8080 -m") {
		t.Errorf("IPVS has\n%s", table)
	}
	for _, proto := range []ruleset.Proto{ruleset.TCP, ruleset.UDP, ruleset.SCTP} {
		at := map[bool]uint16{true: sctpPort, false: port}[proto == ruleset.SCTP]
		for _, from := range []string{services.Client, services.Node, services.PodA} {
			if err := a.ask(from, proto, clusterIP, at); err != nil {
				t.Error(err)
			}
		}
	}
	if err := a.ask(services.Client, ruleset.TCP, services.Addr(services.Node, false).String(), nodePort); err != nil {
		t.Error(err)
	}

	a.killed()
	a.edited()
	a.otherMode()
	a.stop()
	if a.ours() == before {
		t.Error("an agent that ends takes its rules away")
	}
	a.run(program, "cleanup", "--config", filepath.Join(a.dir, configuration))
	if now := a.ours(); now != before {
		t.Errorf("cleanup leaves\n%s\nbefore there was\n%s", now, before)
	}
}

// stop ends the agent as systemd does.
func (a *agent) stop() {
	a.t.Helper()
	if err := errors.Join(a.cmd.Process.Signal(syscall.SIGTERM), a.cmd.Wait()); err != nil {
		a.t.Fatalf("the agent ended: %v", err)
	}
}

// killed: a connection and its likes outlive agents that die within changes.
func (a *agent) killed() {
	a.t.Helper()
	conn := a.dial()
	end := a.asks()
	for i := range 4 {
		a.serve([]string{services.PodA, services.PodB}[i%2:]...) // the agent may be within it
		a.kill()
		a.alive(conn, "without an agent")
		a.start("ipvs")
		a.alive(conn, "after a restart")
	}
	if n, failed := end(); n == 0 || len(failed) > 0 {
		a.t.Errorf("of %d new connections these failed: %v", n, errors.Join(failed...))
	}
}

// edited: what others do to single things is put right.
func (a *agent) edited() {
	a.t.Helper()
	a.serve(services.PodA, services.PodB)
	for _, edit := range [][]string{
		{"ipvsadm", "-D", "-t", clusterIP + ":80"},
		{"ipvsadm", "-d", "-t", clusterIP + ":80", "-r", services.Addr(services.PodA, false).String() + ":8080"},
		{"ip", "route", "del", "local", "10.96.0.0/16", "table", "local", "proto", "78"},
	} {
		var want string
		a.eventually("both pods are served", func() error {
			// Of 8 virtual services each has two; the change may be under way.
			if want = a.ours(); strings.Count(want, " -w 1\n") != 16 {
				return errors.New(want)
			}
			return nil
		})
		a.run(edit[0], edit[1:]...)
		a.eventually(fmt.Sprintf("%v is put right", edit), func() error {
			if now := a.ours(); now != want {
				return fmt.Errorf("now\n%s\nbefore\n%s", now, want)
			}
			return nil
		})
	}
}

// otherMode goes to another mode and back.
func (a *agent) otherMode() {
	a.t.Helper()
	// IPVS itself translates connections, so those end with the mode; no new one
	// may be refused.
	for _, mode := range []string{"nftables", "ipvs"} {
		end := a.asks()
		a.stop()
		a.start(mode)
		a.eventually("nothing of the other mode is left", func() error {
			other := map[string]string{"nftables": "nodeagent-ipvs", "ipvs": "table ip nodeagent\n"}[mode]
			if now := a.ours(); strings.Contains(now, other) {
				return errors.New(now)
			}
			return nil
		})
		n, failed := end()
		for _, err := range failed {
			if mode == "ipvs" || strings.Contains(err.Error(), ruleset.Reject.String()) {
				a.t.Errorf("to mode %s, one of %d new connections: %v", mode, n, err)
			}
		}
	}
}
