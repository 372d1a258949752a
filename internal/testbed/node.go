package testbed

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/nodeagent/nodeagent/pkg/config"
)

// parent is where node folders are: a real disk, which overlayfs needs, and a
// short path, which unix sockets need.
const parent = "/var/tmp"

// Node is one machine under test.
type Node struct {
	// Name is the node's host name and the name of its cgroup ("na-…").
	Name string
	// Dir holds all of the node's files.
	Dir string
	// Config is what the agent is started with; edit it through EditConfig.
	Config config.NodeAgentConfiguration

	t    testing.TB
	set  settings
	bin  string // the agent; built on first use
	regs []*servedRegistry

	mu         sync.Mutex // guards the three processes below
	h          *holder
	containerd *Program
	agent      *Program
	grpc       *grpc.ClientConn
}

// NewNode makes a node, with its runtime and registry running and no agent
// yet. Everything is taken down when the test ends, and the test fails when
// anything of the node is left.
func NewNode(t testing.TB, opts ...Option) *Node {
	t.Helper()
	Require(t, "unshare", "nsenter", "ip", "mount", "busybox", "runc", "iptables")
	s := newSettings(opts)
	if s.containerd == Containerd16 {
		Require(t, "containerd", "ctr")
	}
	dir, err := Dir()
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{t: t, set: s, Dir: dir, Name: "na-" + strings.ToLower(filepath.Base(dir)[3:])}
	t.Cleanup(n.teardown)
	if err := n.layout(); err != nil {
		t.Fatal(err)
	}
	n.boot()
	return n
}

// layout makes the folders and the agent's configuration.
func (n *Node) layout() error {
	for _, d := range []string{"manifests", "state", "run", "logs/pods", "logs/containers", "cni/net.d",
		"cni-state", "registry", "containerd"} {
		if err := os.MkdirAll(filepath.Join(n.Dir, d), 0o755); err != nil {
			return err
		}
	}
	n.Config = config.NodeAgentConfiguration{
		APIVersion: config.APIVersion, Kind: config.Kind,
		NodeName:  n.Name,
		NodeIP:    []string{n.ip()},
		Manifests: n.Manifests(),
		StateDir:  n.StateDir(), RunDir: n.Path("run"),
		PodLogDir: n.Path("logs/pods"), ContainerLogDir: n.Path("logs/containers"),
		Listen: "127.0.0.1:10248",
		// Memory and disk are the machine's, which others fill as well.
		EvictionHard: map[string]string{"memory.available": "0%"}, ImageGCHighThresholdPercent: 100,
	}
	n.Config.Runtime.CgroupRoot = "/" + n.Name
	n.Config.Runtime.CgroupDriver = "cgroupfs"
	n.Config.Runtime.Endpoint = "unix://" + n.RuntimeSocket()
	if n.set.containerd == NoContainerd {
		n.Config.Runtime.Endpoint = "embedded"
	}
	n.Config.Network.ConfDir = n.Path("cni/net.d")
	n.Config.Network.BinDir = n.CNIBin()
	n.Config.Log.Level = "debug"
	return nil
}

func (n *Node) ip() string {
	if n.set.outside {
		return NodeIP
	}
	return "127.0.0.1"
}

// boot starts the namespaces, the registries and the runtime.
func (n *Node) boot() {
	n.t.Helper()
	h, err := startHolder(n.Dir, n.Name, n.set.outside)
	if err != nil {
		n.t.Fatal(err)
	}
	n.mu.Lock()
	n.h = h
	n.mu.Unlock()
	if n.set.registry && len(n.regs) == 0 {
		n.ServeRegistry(demoRegistry(n.t), "docker.io", "ignite.azurecr.io", "registry.k8s.io")
	} else {
		n.listenRegistries()
	}
	if n.set.containerd == NoContainerd {
		return
	}
	n.StartContainerd()
}

// Reboot is a power cut and a fresh start: every process dies at once, mounts,
// network, /run and cgroups are gone, the boot id changes and the disk stays.
// The runtime runs again afterwards; the agent is not started.
func (n *Node) Reboot() {
	n.t.Helper()
	n.powerOff()
	for _, d := range []string{"run", "containerd/state"} {
		if err := os.RemoveAll(n.Path(d)); err != nil {
			n.t.Fatal(err)
		}
	}
	if err := os.MkdirAll(n.Path("run"), 0o755); err != nil {
		n.t.Fatal(err)
	}
	n.boot()
}

// powerOff ends every process of the node and removes its cgroups.
func (n *Node) powerOff() {
	n.mu.Lock()
	h := n.h
	n.h = nil
	n.mu.Unlock()
	for _, r := range n.regs {
		r.stop()
	}
	if h != nil {
		h.stop()
	}
	for _, p := range []*Program{n.agent, n.containerd} {
		if p != nil {
			<-p.done
		}
	}
	n.agent, n.containerd = nil, nil
	if err := removeCgroups(n.Name); err != nil {
		n.t.Errorf("cgroups of node %s: %v", n.Name, err)
	}
}

// teardown removes the node and fails the test when something stays behind.
func (n *Node) teardown() {
	if n.t.Failed() {
		for file, lines := range map[string]int{"agent.log": 120, "containerd.log": 30, "kube-apiserver.log": 20, "etcd.log": 10} {
			if _, err := os.Stat(n.Path(file)); err == nil {
				n.t.Logf("%s, last lines:\n%s", file, tail(readLog(n.Path(file)), lines))
			}
		}
	}
	n.powerOff()
	if n.grpc != nil {
		_ = n.grpc.Close()
	}
	if n.t.Failed() && os.Getenv("TESTBED_KEEP") != "" {
		n.t.Logf("kept %s", n.Dir)
		return
	}
	if err := os.RemoveAll(n.Dir); err != nil {
		n.t.Errorf("remove the node's folder: %v", err)
	}
	for _, l := range Leftovers(n.Name, n.Dir) {
		n.t.Errorf("left behind: %s", l)
	}
}

func (n *Node) holder() *holder {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.h == nil {
		n.t.Fatal("the node is off")
	}
	return n.h
}

// Path is a path under the node's folder.
func (n *Node) Path(rel string) string { return filepath.Join(n.Dir, rel) }

// Root is the node's file system as the test can open it; mounts that were
// made inside the node are seen only through it.
func (n *Node) Root() string { return n.holder().root() }

// Manifests is the folder the agent watches.
func (n *Node) Manifests() string { return n.Path("manifests") }

// StateDir is the agent's --state-dir.
func (n *Node) StateDir() string { return n.Path("state") }

// SocketPath is the local API's socket.
func (n *Node) SocketPath() string { return n.Path("run/nodeagent.sock") }

// Command prepares a program that runs inside the node.
func (n *Node) Command(name string, args ...string) *exec.Cmd {
	argv := append(append(n.holder().nsenter(), name), args...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = n.env()
	return cmd
}

// Exec runs a program inside the node and returns its output. The error holds
// what it wrote to stderr.
func (n *Node) Exec(name string, args ...string) (string, error) {
	return output(n.Command(name, args...))
}

func output(cmd *exec.Cmd) (string, error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), err
}

// env is the environment of programs inside the node.
func (n *Node) env() []string {
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	if d := containerdBin(n.set.containerd); d != "" {
		path = d + ":" + path
	}
	return []string{"PATH=" + path, "HOME=/root", "LANG=C.UTF-8", "GORACE=halt_on_error=1"}
}

// Process is one process of the node.
type Process struct {
	PID  int // inside the node
	Args []string
}

// Processes lists the node's processes, without the holder.
func (n *Node) Processes() []Process {
	entries, err := os.ReadDir(n.Root() + "/proc")
	if err != nil {
		n.t.Fatal(err)
	}
	var ps []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == 1 {
			continue
		}
		b, err := os.ReadFile(filepath.Join(n.Root(), "proc", e.Name(), "cmdline"))
		if err != nil || len(b) == 0 { // gone meanwhile, or a zombie
			continue
		}
		ps = append(ps, Process{PID: pid, Args: strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")})
	}
	return ps
}

// Shims lists the runtime's shim processes.
func (n *Node) Shims() []Process {
	var shims []Process
	for _, p := range n.Processes() {
		if strings.HasPrefix(filepath.Base(p.Args[0]), "containerd-shim") {
			shims = append(shims, p)
		}
	}
	return shims
}

// Signal sends a signal to a process of the node, by its PID inside the node.
func (n *Node) Signal(pid int, sig syscall.Signal) error {
	_, err := n.Exec("kill", "-"+strconv.Itoa(int(sig)), strconv.Itoa(pid))
	return err
}

// T is the test the node belongs to.
func (n *Node) T() testing.TB { return n.t }

func tail(s string, lines int) string {
	l := strings.Split(strings.TrimRight(s, "\n"), "\n")
	if len(l) > lines {
		l = l[len(l)-lines:]
	}
	return strings.Join(l, "\n")
}

// Program is a program that runs inside the node in the background.
type Program struct {
	cmd  *exec.Cmd
	pid  int // of the program itself, not of nsenter; as the test sees it
	done chan struct{}
	err  error // valid after done
}

// start runs a program in the node with its output appended to a file.
func (n *Node) start(logFile string, env []string, name string, args ...string) (*Program, error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := n.Command(name, args...)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &Program{cmd: cmd, done: make(chan struct{})}
	go func() { p.err = cmd.Wait(); close(p.done) }()
	if p.pid, err = onlyChild(cmd.Process.Pid); err != nil {
		select {
		case <-p.done:
			return p, nil // it has ended already, which is its right
		case <-time.After(time.Second):
			return nil, err
		}
	}
	return p, nil
}

// signal sends to the program and waits until it has ended.
func (p *Program) signal(sig syscall.Signal, d time.Duration) error {
	if p.pid > 0 {
		if err := syscall.Kill(p.pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(d):
		return fmt.Errorf("process %d has not ended %v after %v", p.pid, d, sig)
	}
}

// Run starts a program inside the node; its output is appended to a file of
// the node's folder. It ends with the node at the latest.
func (n *Node) Run(logFile, name string, args ...string) *Program {
	n.t.Helper()
	p, err := n.start(n.Path(logFile), nil, name, args...)
	if err != nil {
		n.t.Fatalf("start %s: %v", name, err)
	}
	return p
}

// PID is the program's process, as the test sees it.
func (p *Program) PID() int { return p.pid }

// Done is closed when the program has ended.
func (p *Program) Done() <-chan struct{} { return p.done }

// End sends a signal and waits for the program to end, for 30 s at most.
func (p *Program) End(sig syscall.Signal) error { return p.signal(sig, 30*time.Second) }
