package node

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/pkg/config"
)

// TestLogRotation: a log that is written to is rotated and packed, and reads as
// one from the first line to the last, also when the agent is killed in between;
// it goes with its pod.
func TestLogRotation(t *testing.T) {
	n := newNode(t, testbed.WithBuildTags("killpoints"))
	n.EditConfig(func(c *config.NodeAgentConfiguration) {
		c.ContainerLogMaxSize, c.ContainerLogMaxFiles = "16Ki", 1000
	})
	const lines = 4000
	n.WriteManifest("p.yaml", manifest{name: "p", script: fmt.Sprintf(
		"i=0; while [ $i -lt %d ]; do echo $i; i=$((i+1)); [ $((i %% 100)) != 0 ] || sleep 0.05; done; echo end; exec sleep 100000", lines)}.String())
	ended := n.LaunchAgent([]string{"NODEAGENT_KILL_AT=2", "NODEAGENT_KILL_POINT=between a log's rename and its reopening"})
	<-ended
	n.KillAgent() // forgets it
	n.StartAgent()
	n.WaitPods(long, testbed.Running("p"))
	all := func(out string) error {
		for i, line := range strings.Split(strings.TrimSpace(out), "\n") {
			if line != fmt.Sprint(i) && (line != "end" || i != lines) {
				return fmt.Errorf("line %d is %q", i, line)
			}
		}
		return nil
	}
	cmd := n.CLICommand("logs", "-f", "p")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	}()
	followed := ""
	for in := bufio.NewScanner(out); !strings.HasSuffix(followed, "end\n") && in.Scan(); {
		followed += in.Text() + "\n"
	}
	if err := all(followed); err != nil || !strings.HasSuffix(followed, "end\n") {
		t.Errorf("logs -f: %v", err)
	}
	if out := cli(t, n, "logs", "p"); out != followed {
		t.Errorf("logs: %d bytes, followed were %d; %v", len(out), len(followed), all(out))
	}
	if out := cli(t, n, "logs", "p", "--tail", "2001"); !strings.HasPrefix(out, "2000\n2001\n") || !strings.HasSuffix(out, "3999\nend\n") {
		t.Errorf("logs --tail 2001: %d bytes", len(out))
	}
	p := get(t, n, "p")
	folder := filepath.Join(n.Path("logs/pods"), "default_p_"+string(p.UID), "main")
	// How many there are depends on how soon the agent got to look.
	n.Eventually(long, "all but the newest of the older files are packed", func() error {
		packed, err := filepath.Glob(folder + "/0.log.*.gz")
		if err != nil {
			return err
		}
		older, err := filepath.Glob(folder + "/0.log.*")
		if err == nil && (len(packed) == 0 || len(older) != len(packed)+1) {
			err = fmt.Errorf("%v", older)
		}
		return err
	})
	if err := n.Signal(n.ContainerPID(runningID(t, n, "p", "main")), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.WaitPods(long, restarts("p", 1))
	if out := cli(t, n, "logs", "--previous", "p"); out != followed {
		t.Errorf("logs --previous: %d bytes, followed were %d; %v", len(out), len(followed), all(out))
	}
	n.RemoveManifest("p.yaml")
	n.WaitPods(long, testbed.Gone("p"))
	expectClean(t, n)
	if left, err := os.ReadDir(filepath.Dir(folder)); !os.IsNotExist(err) {
		t.Errorf("logs are left: %v, %v", left, err)
	}
}
