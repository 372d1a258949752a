//go:build bench

package bench

import (
	"bufio"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/internal/testbed/vm"
)

const ipvsFloor, ipvsOurs, ipvsPeer = "IPVS's messages alone", "nodeagent", "kube-proxy"

// TestIPVS lets nodeagent and kube-proxy serve through IPVS where there is one:
// one after the other in a guest of the VM tier, which follows an API server on
// the machine. It prints them beside IPVS's bare messages. All but the backend's
// own benchmarks is timed by the machine's clock.
func TestIPVS(t *testing.T) {
	p := readServicesPlan(t)
	began := time.Now()
	r := results{}
	c := &cluster{cp: testbed.NewControlPlane(t)}
	g := newGuest(t, c)
	for _, size := range p.sizes {
		if err := c.fill(t.Context(), size); err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{ipvsOurs, ipvsPeer} {
			t.Run(fmt.Sprintf("%d Services, %s", size, s), func(t *testing.T) { g.measure(t, r, p, s, size) })
		}
		g.bare(t, r, size)
	}
	p.big = 0
	out := servicesHeader(p, time.Since(began)) + "\n" + ipvsTable(r, p.sizes)
	fmt.Println("\n" + out)
	if file := os.Getenv("BENCH_OUT"); file != "" {
		if err := os.WriteFile(file, []byte(out), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// guest is the node that proxies run on.
type guest struct {
	vm *vm.VM
	c  *cluster
	// A program in the guest takes addresses and says which of them answer.
	asks net.Conn
	says *bufio.Scanner
}

// guestNetwork is a server for each address of answering, outside of the node.
const guestNetwork = `set -e
modprobe -a ip_vs ip_vs_rr dummy nf_conntrack
ip netns add outside
ip link add outside0 type veth peer name eth0 netns outside
ip addr add 192.0.2.1/24 dev outside0
ip link set outside0 up
ip -n outside link set lo up
for a in %s; do ip -n outside addr add $a/24 dev eth0; done
ip -n outside link set eth0 up
ip -n outside route add default via 192.0.2.1
sysctl -qw net.ipv4.ip_forward=1
`

const guestAgent = `apiVersion: nodeagent/v1alpha1
kind: NodeAgentConfiguration
nodeName: vm
kubeconfig: /root/kubeconfig
stateDir: /root/state
proxyMode: ipvs
proxy: {clusterCIDRs: [10.244.0.0/16]}
log: {level: info}
`

func newGuest(t *testing.T, c *cluster) *guest {
	t.Helper()
	g := &guest{vm: vm.Start(t, vm.WithControlPlane(c.cp)), c: c}
	if err := c.addNode(t.Context(), "vm", "10.0.2.15"); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	inside := exec.Command("go", "build", "-o", filepath.Join(dir, "inside"), "./inside")
	inside.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := inside.CombinedOutput(); err != nil {
		t.Fatalf("build the guest's program: %v: %s", err, out)
	}
	for name, text := range map[string]string{
		"kubeconfig": string(c.cp.GuestKubeconfig("system:kube-proxy")), "nodeagent.yaml": guestAgent,
		"kube-proxy.yaml": fmt.Sprintf(kubeProxyConfiguration, "ipvs", "vm", "/root/kubeconfig"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kubeProxy, err := testbed.KubernetesProgram("kube-proxy")
	if err != nil {
		t.Fatal(err)
	}
	// The agent has run before in that mode: the first time it looks, by
	// slow programs, for what other modes left.
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "state"), 0o700), os.WriteFile(filepath.Join(dir, "state/proxy-modes"), []byte("ipvs\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{dir: "/root", kubeProxy: "/root/kube-proxy", testbed.Binary(t, ""): "/root/nodeagent"} {
		if err := g.vm.Copy(t.Context(), from, to); err != nil {
			t.Fatal(err)
		}
	}
	g.vm.Sh(t, fmt.Sprintf(guestNetwork, strings.Join(answering, " ")))
	g.background(t, "exec nsenter --net=/run/netns/outside /root/inside serve 0.0.0.0:8080")
	return g
}

// background runs until the guest ends.
func (g *guest) background(t *testing.T, text string) net.Conn {
	t.Helper()
	conn, err := g.vm.Dial(t.Context(), text)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// first is when the Service first answered.
func (g *guest) first(ip string, limit time.Duration) (time.Time, error) {
	if err := g.asks.SetDeadline(time.Now().Add(limit)); err != nil {
		return time.Time{}, err
	}
	if _, err := fmt.Fprintf(g.asks, "%s:80\n", ip); err != nil {
		return time.Time{}, err
	}
	if !g.says.Scan() || g.says.Text() != ip+":80" {
		return time.Time{}, fmt.Errorf("Service %s does not answer: %q, %w", ip, g.says.Text(), g.says.Err())
	}
	return time.Now(), nil
}

// measure takes a first sync and some new Services of one program. What takes
// longer than the limit is given up.
func (g *guest) measure(t *testing.T, r results, p servicesPlan, system string, size int) {
	g.asks = g.background(t, "exec /root/inside connect")
	g.says = bufio.NewScanner(g.asks)
	began := time.Now()
	g.background(t, map[string]string{
		ipvsOurs: "exec /root/nodeagent run --config /root/nodeagent.yaml", ipvsPeer: "exec /root/kube-proxy --config /root/kube-proxy.yaml",
	}[system]+" >/root/proxy.log 2>&1")
	defer g.vm.Sh(t, `kill -9 $(pidof nodeagent kube-proxy); while pidof nodeagent kube-proxy; do sleep 0.1; done
ipvsadm -C; nft flush ruleset; ip link del kube-ipvs0 2>/dev/null; ip route flush table local proto 78; for i in 1 2 3; do ipset destroy 2>/dev/null; done; true`)
	late := func(measure string, err error) bool {
		t.Helper()
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) || err != nil && g.vm.Sh(t, "pidof nodeagent kube-proxy || true") == "" {
			t.Fatalf("%s: %v\n%s", system, err, g.vm.Sh(t, "tail -n 20 /root/proxy.log; ipvsadm -Ln | head -n 20"))
		}
		if err != nil {
			t.Logf("%s: %v; given up after %s", system, err, p.limit)
			r.add(sized(measure, size), system, math.Inf(1))
		}
		return err != nil
	}
	var last time.Time
	for _, ip := range g.c.probes {
		at, err := g.first(ip, p.limit)
		if late("first", err) {
			return
		}
		last = at
	}
	r.add(sized("first", size), system, last.Sub(began).Seconds())
	for range p.samples {
		g.c.last++
		name := fmt.Sprintf("new%d", g.c.last)
		ip, asked, _, err := g.c.create(t.Context(), name, answering)
		if err != nil {
			t.Fatal(err)
		}
		at, err := g.first(ip, p.limit)
		if e := g.c.remove(t.Context(), name); e != nil {
			t.Fatal(e)
		}
		if late("new", err) {
			return
		}
		r.add(sized("new", size), system, float64(at.Sub(asked))/float64(time.Millisecond))
		time.Sleep(200 * time.Millisecond) // a proxy that saves its work up is not always met at its worst
	}
}

// bare is the backend without an agent beside IPVS's messages alone.
func (g *guest) bare(t *testing.T, r results, size int) {
	out := g.vm.GoTest(t, "./pkg/proxy/backend/ipvs", "-test.run=^$", fmt.Sprintf("-test.bench=./^%d$", size))
	for line := range strings.Lines(out) {
		f := strings.Fields(line) // NAME RUNS N ns/op N floor-ms N ours-ms, or N max-ms N p50-ms
		if len(f) >= 8 && f[5] == "max-ms" && f[7] == "p50-ms" {
			ms, err := strconv.ParseFloat(f[6], 64)
			if err != nil {
				t.Fatal(err)
			}
			r.add(sized("heal", size), ipvsOurs, ms)
		}
		if len(f) < 8 || f[5] != "floor-ms" || f[7] != "ours-ms" {
			continue
		}
		floor, err1 := strconv.ParseFloat(f[4], 64)
		ours, err2 := strconv.ParseFloat(f[6], 64)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		backend, whole, unit := "more", "new", 1.0
		if strings.HasPrefix(f[0], "BenchmarkLoad/") {
			backend, whole, unit = "load", "first", 1000
		}
		r.add(sized(backend, size), ipvsOurs, ours/unit)
		r.add(sized(backend, size), ipvsFloor, floor/unit)
		r.add(sized(whole, size), ipvsFloor, floor/unit)
	}
}

func ipvsTable(r results, sizes []int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| measured in the guest | Services | unit | %s | %s | %s | nodeagent ÷ floor | kube-proxy ÷ nodeagent |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n",
		ipvsFloor, ipvsOurs, ipvsPeer)
	for _, m := range []struct{ id, text, unit string }{
		{"first", "start → all Services answer", "s"},
		{"load", "… of it the kernel's part: the backend loads all", "s"},
		{"new", "a new Service asked for → its first connect succeeds", "ms"},
		{"more", "… of it the kernel's part: the backend adds one", "ms"},
		{"heal", "somebody else deletes a server → it is there again", "ms"},
	} {
		for _, size := range sizes {
			of := r[sized(m.id, size)]
			floor, ours, peer := of[ipvsFloor], of[ipvsOurs], of[ipvsPeer]
			if size == 0 && m.unit == "s" {
				floor = nil // no Services, no messages
			}
			better := ratio(median(peer), median(ours))
			if math.IsInf(median(peer), 1) {
				better = "it was given up"
			}
			fmt.Fprintf(&b, "| %s | %d | %s | %s | %s | %s | %s | %s |\n", m.text, size, m.unit, cell(floor), finite(cell(ours)), finite(cell(peer)),
				ratio(median(ours), median(floor)), better)
		}
	}
	return b.String()
}
