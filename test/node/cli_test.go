package node

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/nodeagent/nodeagent/internal/testbed"
)

// TestCommandLine does what a user does with a pod that runs.
func TestCommandLine(t *testing.T) {
	n := started(t)
	n.WriteManifest("web.yaml", deck(t, "pod-example"))
	n.WriteManifest("p.yaml", manifest{name: "p", script: "echo ready; while read line; do echo got $line; done",
		container: "stdin: true\n"}.String())
	n.WaitPods(long, testbed.Running("pod-example", "p"))

	t.Run("exec", func(t *testing.T) {
		cmd := n.CLICommand("exec", "-i", "pod-example", "--", "sh", "-c", "cat; exit 7")
		cmd.Stdin = strings.NewReader("through stdin")
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState.ExitCode() != 7 || !strings.HasPrefix(string(out), "through stdin") {
			t.Errorf("code %d, %v: %s", cmd.ProcessState.ExitCode(), err, out)
		}
	})
	t.Run("cp", func(t *testing.T) {
		here, back := n.Path("here"), n.Path("back")
		if err := os.MkdirAll(filepath.Join(here, "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(here, "sub", "file"), []byte("content"), 0o640); err != nil {
			t.Fatal(err)
		}
		cli(t, n, "cp", here, "pod-example:/tmp/there")
		cli(t, n, "cp", "pod-example:/tmp/there", back)
		if b, err := os.ReadFile(filepath.Join(back, "sub", "file")); err != nil || string(b) != "content" {
			t.Errorf("%q, %v", b, err)
		}
	})
	t.Run("port-forward", func(t *testing.T) { portForward(t, n) })
	t.Run("attach and logs -f", func(t *testing.T) { attach(t, n) })
	t.Run("get -w", func(t *testing.T) {
		lines := follow(t, n, "get", "pods", "-w")
		n.WriteManifest("q.yaml", manifest{name: "q"}.String())
		for line := range lines {
			if hasRow(line, "q", "1/1", "Running") {
				return
			}
		}
		t.Error("the watch ended")
	})
	t.Run("describe", func(t *testing.T) {
		out := cli(t, n, "describe", "pod", "p")
		for _, want := range []string{"Name:         p", "spec.containers{main}: Container started", "QoS Class:"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in:\n%s", want, out)
			}
		}
	})
}

// TestAgentStopsUnderCommands: what the agent's end cuts short is no success,
// and a log that the container ended is one.
func TestAgentStopsUnderCommands(t *testing.T) {
	n := started(t)
	const echo = "echo got ready; while read line; do echo got $line; done; echo bye"
	n.WriteManifest("p.yaml", manifest{name: "p", script: echo, container: "stdin: true\n"}.String())
	n.WriteManifest("ends.yaml", manifest{name: "ends", script: "echo got ready; read line", container: "stdin: true\n", spec: "restartPolicy: Never\n"}.String())
	n.WaitPods(long, testbed.Running("p", "ends"))
	ended := begin(t, n, "", "logs", "-f", "ends")
	if err := begin(t, n, "x\n", "attach", "-i", "ends").Wait(); err != nil {
		t.Errorf("attach to a process that ends: %v", err)
	}
	if err := ended.Wait(); err != nil {
		t.Errorf("logs -f of a container that ended: %v", err)
	}
	cut := map[string]*exec.Cmd{
		"exec":    begin(t, n, "x\n", "exec", "-i", "p", "--", "sh", "-c", echo),
		"attach":  begin(t, n, "x\n", "attach", "-i", "p"),
		"logs -f": begin(t, n, "", "logs", "-f", "p"),
	}
	n.StopAgent()
	for name, cmd := range cut {
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 {
			t.Errorf("%s when the agent stops: %v", name, err)
		}
	}
}

// begin runs a command that goes on, types something, and returns once the
// container has said something; one that only attaches to a process that ends
// need not hear anything.
func begin(t *testing.T, n *testbed.Node, typed string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := n.CLICommand(args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	if _, err := io.WriteString(in, typed); err != nil {
		t.Fatal(err)
	}
	if b, err := bufio.NewReader(out).ReadString('\n'); err != nil && !errors.Is(err, io.EOF) || err == nil && !strings.HasPrefix(b, "got ") {
		t.Fatalf("%v shows %q, %v", args, b, err)
	}
	return cmd
}

// follow runs a command that does not end by itself and gives its lines.
func follow(t *testing.T, n *testbed.Node, args ...string) <-chan string {
	t.Helper()
	cmd := n.CLICommand(args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 100)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		for range lines { //nolint:revive // the reader ends with the process
		}
		_ = cmd.Wait()
	})
	return lines
}

func portForward(t *testing.T, n *testbed.Node) {
	lines := follow(t, n, "port-forward", "pod-example", ":80")
	first := <-lines
	_, rest, ok := strings.Cut(first, "Forwarding from ")
	addr, _, _ := strings.Cut(rest, " ")
	if _, _, err := net.SplitHostPort(addr); !ok || err != nil {
		t.Fatalf("port-forward says %q", first)
	}
	for range 3 {
		body, err := n.HTTPGet("http://" + addr + "/")
		if err != nil || !strings.Contains(body, "Welcome to nginx") {
			t.Errorf("through the forwarded port: %v: %q", err, body)
		}
	}
}

func attach(t *testing.T, n *testbed.Node) {
	logs := follow(t, n, "logs", "-f", "p")
	if first := <-logs; first != "ready" {
		t.Errorf("logs -f begins with %q", first)
	}
	cmd := n.CLICommand("attach", "-i", "p")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); _ = cmd.Wait() })
	if _, err := fmt.Fprintln(in, "hello"); err != nil {
		t.Fatal(err)
	}
	if next := <-logs; next != "got hello" {
		t.Errorf("the log goes on with %q", next)
	}
	b := make([]byte, len("got hello\n"))
	if _, err := io.ReadFull(out, b); err != nil || string(b) != "got hello\n" {
		t.Errorf("attach shows %q, %v", b, err)
	}
}

// TestCleanup removes all that the agent made, with and without its own
// runtime, and nothing else.
func TestCleanup(t *testing.T) {
	for _, runtime := range []string{testbed.Containerd16, testbed.NoContainerd} {
		t.Run("containerd "+runtime, func(t *testing.T) {
			n := newNode(t, testbed.WithContainerd(runtime))
			if runtime == testbed.NoContainerd {
				shipImages(t, n)
			}
			n.StartAgent()
			n.WriteManifest("p.yaml", manifest{name: "p", spec: "volumes:\n- {name: mem, emptyDir: {medium: Memory}}\n",
				container: "volumeMounts: [{name: mem, mountPath: /mem}]\n"}.String())
			n.WriteManifest("web.yaml", deck(t, "pod-example"))
			n.WaitPods(long, testbed.Running("p", "pod-example"))
			if out, err := n.CLI("cleanup", "--config", n.ConfigFile()); err == nil || !strings.Contains(err.Error(), "is in use") {
				t.Errorf("cleanup beside a running agent: %v: %s", err, out)
			}
			n.KillAgent()
			out := cli(t, n, "cleanup", "--config", n.ConfigFile())
			if !strings.Contains(out, "removed pod default/p") {
				t.Errorf("cleanup says:\n%s", out)
			}
			if again := cli(t, n, "cleanup", "--config", n.ConfigFile()); strings.Contains(again, n.Dir) || strings.Contains(again, "pod default/") {
				t.Errorf("a second cleanup says:\n%s", again)
			}
			for _, p := range n.Processes() {
				if p := strings.Join(p.Args, " "); strings.Contains(p, "shim") || runtime == testbed.NoContainerd && strings.Contains(p, "containerd") {
					t.Errorf("still runs: %s", p)
				}
			}
			if m := n.Mounts(n.Dir); len(m) > 0 && runtime == testbed.NoContainerd {
				t.Errorf("mounts: %v", m)
			}
			for _, what := range []struct {
				name string
				left []string
			}{{"addresses", n.Addresses()}, {"cgroups", n.PodCgroups()}, {"volumes", n.Mounts(n.StateDir())}, {"network namespaces", n.Mounts("/run/netns/cni-")}} {
				if len(what.left) > 0 {
					t.Errorf("%s: %v", what.name, what.left)
				}
			}
			if links, err := n.Exec("ip", "-br", "link"); err != nil || strings.Count(links, "\n") != 1 {
				t.Errorf("interfaces: %v\n%s", err, links)
			}
			if rules, err := n.Exec("iptables-save"); err != nil || strings.Contains(strings.ToUpper(rules), "NODEAGENT") {
				t.Errorf("rules: %v\n%s", err, rules)
			}
			if tables, err := n.Exec("nft", "list", "tables"); err != nil || tables != "" {
				t.Errorf("tables: %v\n%s", err, tables)
			}
			for _, dir := range []string{"logs/pods", "logs/containers"} {
				if left, err := os.ReadDir(n.Path(dir)); err != nil || len(left) > 0 {
					t.Errorf("%s: %v, %v", dir, left, err)
				}
			}
			if _, err := os.Stat(filepath.Join(n.Manifests(), "p.yaml")); err != nil {
				t.Errorf("the user's manifest: %v", err)
			}
		})
	}
}
