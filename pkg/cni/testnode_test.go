package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The main thread is what /proc/PID/ns shows, and Go keeps it when a goroutine
// ends on it: no test may take it into another namespace.
func init() { runtime.LockOSThread() }

const inNodeEnv = "NODEAGENT_TEST_IN_NODE"

// inNode runs the rest of a test in a process with network and mount
// namespaces of its own, which take everything with them when it ends, however
// it ends. In the parent it returns false.
func inNode(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inNodeEnv) == t.Name() {
		setUpNode(t)
		return true
	}
	needs(t)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, exe, "-test.run=^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), inNodeEnv+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
	// Pdeathsig goes by the thread that started the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil || !strings.Contains(out.String(), "--- PASS: "+t.Name()) {
		t.Fatalf("in the test node: %v\n%s", err, out.String())
	}
	t.Log(out.String())
	return false
}

// needs skips, or fails under CI, when the machine lacks what these tests use.
func needs(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("makes network namespaces, which needs root")
	}
	for _, p := range []string{"iptables", "ip6tables", "/usr/lib/cni/bridge"} {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is missing: %v", p, err)
			}
			t.Skipf("%s is missing: %v", p, err)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func setUpNode(t *testing.T) {
	t.Helper()
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	must(t, unix.Mount("run", "/run", "tmpfs", 0, "")) // namespaces and the xtables lock
	must(t, os.MkdirAll("/run/netns", 0o755))
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("0"), 0o644)
	// Duplicate address detection takes a second that no test is about.
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0o644)
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/all/accept_dad", []byte("0"), 0o644)
}

// newNS makes a namespace mounted at /run/netns/NAME.
func newNS(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join("/run/netns", name)
	must(t, os.WriteFile(path, nil, 0o600))
	done := make(chan error)
	go func() {
		// The thread ends with the goroutine: it is never given back.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
	}()
	must(t, <-done)
	must(t, within(path, func() error {
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0o644)
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	}))
	return path
}

// within runs f on a thread in the namespace.
func within(path string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- err
			return
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// serve answers every connection in the namespace with the address it sees.
func serve(t *testing.T, ns, addr string) {
	t.Helper()
	var ln net.Listener
	must(t, within(ns, func() (err error) {
		ln, err = net.Listen("tcp", addr)
		return err
	}))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			_, _ = c.Write([]byte(host))
			c.Close()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-ended })
}

// ask connects from the namespace ("" for the node) and returns the answer.
func ask(ns, addr string) (string, error) {
	var answer string
	f := func() error {
		c, err := (&net.Dialer{Timeout: 5 * time.Second}).Dial("tcp", addr)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		b := make([]byte, 64)
		n, err := c.Read(b)
		answer = string(b[:n])
		return err
	}
	if ns == "" {
		return answer, errors.Join(f())
	}
	err := within(ns, f)
	return answer, err
}

// wantAnswer connects and compares the address that the server saw.
func wantAnswer(t *testing.T, what, ns, addr, want string) {
	t.Helper()
	got, err := ask(ns, addr)
	if err != nil || got != want {
		t.Fatalf("%s: connect to %s: the server saw %q, want %q (%v)\n%s", what, addr, got, want, err, dump())
	}
}

// dump is the node's state for a failed test.
func dump() string {
	out, _ := exec.Command("sh", "-c", "iptables-save; ip6tables-save; ip a; ip r; ip -6 r").CombinedOutput()
	return string(out)
}

// addLink joins the node and a namespace by a veth pair with these addresses.
func addLink(t *testing.T, ns, name string, nodeAddrs, nsAddrs []string) {
	t.Helper()
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"}))
	fd, err := unix.Open(ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	peer, err := netlink.LinkByName(name + "p")
	must(t, err)
	must(t, netlink.LinkSetNsFd(peer, fd))
	setAddrs := func(name string, addrs []string) error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			addr.Flags = unix.IFA_F_NODAD
			if err := netlink.AddrAdd(l, addr); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(l)
	}
	must(t, setAddrs(name, nodeAddrs))
	must(t, within(ns, func() error { return setAddrs(name+"p", nsAddrs) }))
}

// node is a manager with folders of its own and the runtime's side of CNI.
type node struct {
	*Manager
	t    *testing.T
	opts Options
	live []Attachment
}

const newPlugins = "/var/tmp/nodeagent-build/containerd2"

// binDirs are the sets of plugins on this machine, by their versions.
func binDirs(t *testing.T) map[string]string {
	dirs := map[string]string{"debian": "/usr/lib/cni"}
	if _, err := os.Stat(filepath.Join(newPlugins, "bridge")); err == nil {
		dirs["latest"] = newPlugins
	} else {
		t.Logf("the newest plugins are not built in %s: trying Debian's only", newPlugins)
	}
	return dirs
}

func newNode(t *testing.T, binDir string, cidrs ...string) *node {
	t.Helper()
	dir := t.TempDir()
	o := Options{
		ConfDir: filepath.Join(dir, "net.d"), BinDir: binDir, CacheDir: filepath.Join(dir, "cache"),
		DataDir: filepath.Join(dir, "networks"), Owner: "test", Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	for _, c := range cidrs {
		o.PodCIDRs = append(o.PodCIDRs, netip.MustParsePrefix(c))
	}
	n := &node{t: t, opts: o}
	n.restart()
	return n
}

// restart is a new agent on the same node, perhaps with other options.
func (n *node) restart() {
	n.t.Helper()
	m, err := New(n.opts)
	must(n.t, err)
	n.Manager = m
}

// add is what the runtime does for a new sandbox.
func (n *node) add(id string, hostPort, port int) (ns string, ips []string) {
	n.t.Helper()
	ns = newNS(n.t, "cni-"+id)
	c, err := n.active()
	must(n.t, err)
	must(n.t, c.err)
	rt := &libcni.RuntimeConf{ContainerID: id, NetNS: ns, IfName: "eth0", CapabilityArgs: map[string]any{}}
	if hostPort > 0 {
		rt.CapabilityArgs["portMappings"] = []map[string]any{{"hostPort": hostPort, "containerPort": port, "protocol": "tcp"}}
	}
	res, err := n.cni.AddNetworkList(context.Background(), c.list, rt)
	must(n.t, err)
	r, err := types100.NewResultFromResult(res)
	must(n.t, err)
	for _, ip := range r.IPs {
		ips = append(ips, ip.Address.IP.String())
	}
	n.live = append(n.live, Attachment{SandboxID: id, IfName: "eth0", NetNS: ns, IPs: ips})
	return ns, ips
}

// forget makes the runtime lose a sandbox, as a crash would.
func (n *node) forget(id string) {
	for i, a := range n.live {
		if a.SandboxID == id {
			n.live = append(n.live[:i:i], n.live[i+1:]...)
			return
		}
	}
	n.t.Fatalf("no sandbox %s", id)
}

func (n *node) gc() Report {
	n.t.Helper()
	rep, err := n.GC(context.Background(), func(context.Context) ([]Attachment, error) { return n.live, nil })
	must(n.t, err)
	return rep
}

// reserved are the addresses that host-local holds for our network.
func (n *node) reserved() []string {
	n.t.Helper()
	rs, err := readReservations(filepath.Join(n.opts.DataDir, netName))
	must(n.t, err)
	var out []string
	for _, r := range rs {
		out = append(out, r.ip)
	}
	return out
}

func rules(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", "iptables-save; ip6tables-save").CombinedOutput()
	must(t, err)
	var keep []string
	for _, l := range strings.Split(string(out), "\n") {
		if !strings.HasPrefix(l, "#") {
			keep = append(keep, l)
		}
	}
	return strings.Join(keep, "\n")
}

func asJSON(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}
