package testbed

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/nodeagent/nodeagent/pkg/config"
)

// builds remembers, per set of tags, the agent built by this test process.
var builds sync.Map // tags → *build

type build struct {
	once sync.Once
	path string
	err  error
}

// Binary builds the agent once per test process and returns its path. Set
// NODEAGENT_BIN to test a given binary, NODEAGENT_BIN_TAG to give the one for
// build tag "tag".
func Binary(t testing.TB, tags string) string {
	t.Helper()
	key := "NODEAGENT_BIN"
	if tags != "" {
		key += "_" + strings.ToUpper(tags)
	}
	if b := os.Getenv(key); b != "" {
		return b
	}
	v, _ := builds.LoadOrStore(tags, &build{})
	b := v.(*build)
	b.once.Do(func() { b.path, b.err = buildAgent(tags) })
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.path
}

// buildAgent leaves the binary in the checkout's bin: it must outlive the test
// that happened to be first, and another checkout must not replace it.
func buildAgent(tags string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	name := "nodeagent-test"
	args := []string{"build", "-tags", tags}
	if tags != "" {
		name += "-" + tags
	}
	if raceEnabled {
		name, args = name+"-race", append(args, "-race")
	}
	final := filepath.Join(root, "bin", name)
	tmp := fmt.Sprintf("%s.%d", final, os.Getpid())
	if err := os.MkdirAll(filepath.Dir(final), 0o755); err != nil {
		return "", err
	}
	cmd := exec.Command("go", append(args, "-o", tmp, "./cmd/nodeagent")...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the agent: %w\n%s", err, out)
	}
	// Rename: a running agent of another test process keeps its file.
	return final, os.Rename(tmp, final)
}

// CacheDir is where built images are kept between runs.
func CacheDir() (string, error) {
	c, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(c, "nodeagent-testbed")
	return dir, os.MkdirAll(dir, 0o755)
}

// EditConfig changes the configuration that the next StartAgent uses, or that
// a running agent finds on reload.
func (n *Node) EditConfig(f func(*config.NodeAgentConfiguration)) {
	n.t.Helper()
	f(&n.Config)
	n.writeConfig()
}

// ConfigFile is the agent's --config.
func (n *Node) ConfigFile() string { return n.Path("config.yaml") }

func (n *Node) writeConfig() {
	n.t.Helper()
	b, err := yaml.Marshal(n.Config)
	if err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(n.ConfigFile(), b, 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// LaunchAgent starts the agent and does not wait for it to be ready; wait for
// the returned channel to see it end.
func (n *Node) LaunchAgent(env []string, extra ...string) (ended <-chan struct{}) {
	n.t.Helper()
	n.bin = Binary(n.t, n.set.tags)
	n.writeConfig()
	p, err := n.start(n.Path("agent.log"), env, n.bin, append([]string{"run", "--config", n.ConfigFile()}, extra...)...)
	if err != nil {
		n.t.Fatalf("start the agent: %v", err)
	}
	n.mu.Lock()
	n.agent = p
	n.mu.Unlock()
	return p.done
}

// StartAgent starts the agent with the node's configuration and more flags, and
// returns when its API answers.
func (n *Node) StartAgent(extra ...string) {
	n.t.Helper()
	ended := n.LaunchAgent(nil, extra...)
	n.Eventually(60*time.Second, "the agent's API answers", func() error {
		select {
		case <-ended:
			n.t.Fatalf("the agent ended: %v\n%s", n.agent.err, tail(n.AgentLog(), 30))
		default:
		}
		_, err := n.apiGet("/api/v1/pods")
		return err
	})
}

// KillAgent ends the agent with SIGKILL.
func (n *Node) KillAgent() { n.t.Helper(); n.endAgent(syscall.SIGKILL) }

// StopAgent ends the agent with SIGTERM, as systemd does.
func (n *Node) StopAgent() { n.t.Helper(); n.endAgent(syscall.SIGTERM) }

func (n *Node) endAgent(sig syscall.Signal) {
	n.t.Helper()
	n.mu.Lock()
	p := n.agent
	n.agent = nil
	n.mu.Unlock()
	if p == nil {
		return
	}
	if err := p.signal(sig, 30*time.Second); err != nil {
		n.t.Fatalf("end the agent: %v", err)
	}
}

// SignalAgent sends a signal and does not wait.
func (n *Node) SignalAgent(sig syscall.Signal) {
	n.t.Helper()
	if err := syscall.Kill(n.AgentPID(), sig); err != nil {
		n.t.Fatal(err)
	}
}

// AgentPID is the running agent's process, as the test sees it.
func (n *Node) AgentPID() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.agent == nil {
		n.t.Fatal("the agent is not running")
	}
	return n.agent.pid
}

// AgentLog is what every agent of this node has logged so far.
func (n *Node) AgentLog() string { return readLog(n.Path("agent.log")) }

// CLI runs a sub-command of the agent's binary inside the node, against the
// node's agent. The error holds what it wrote to stderr.
func (n *Node) CLI(args ...string) (string, error) {
	n.t.Helper()
	return output(n.CLICommand(args...))
}

// CLICommand is CLI for callers that want to feed stdin or to read as it runs.
func (n *Node) CLICommand(args ...string) *exec.Cmd {
	n.t.Helper()
	cmd := n.Command(Binary(n.t, n.set.tags), args...)
	cmd.Env = append(cmd.Env, "NODEAGENT_RUN_DIR="+n.Path("run"))
	return cmd
}

// WriteManifest puts a manifest into the folder in one step (write, rename).
func (n *Node) WriteManifest(name, content string) {
	n.t.Helper()
	tmp := filepath.Join(n.Manifests(), "."+name+".tmp")
	if err := os.WriteFile(tmp, []byte(content), 0o644); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(n.Manifests(), name)); err != nil {
		n.t.Fatal(err)
	}
}

// RemoveManifest takes a manifest out of the folder.
func (n *Node) RemoveManifest(name string) {
	n.t.Helper()
	if err := os.Remove(filepath.Join(n.Manifests(), name)); err != nil {
		n.t.Fatal(err)
	}
}
