package node

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/pkg/config"
)

// TestUnitFile has systemd judge the unit. systemd need not run for that; the
// program it names has to exist, so a stand-in takes its place.
func TestUnitFile(t *testing.T) {
	testbed.Require(t, "systemd-analyze")
	root, err := testbed.Root()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(root, "systemd/nodeagent.service"))
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), "nodeagent.service")
	if err := os.WriteFile(unit, []byte(strings.ReplaceAll(string(b), "/usr/bin/nodeagent", "/bin/true")), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("systemd-analyze", "--man=no", "verify", unit).CombinedOutput()
	if err != nil || strings.Contains(string(out), "nodeagent.service") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	for _, want := range []string{"Type=notify", "KillMode=process", "Delegate=yes", "WatchdogSec=", "ExecReload="} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the unit lacks %s", want)
		}
	}
}

// TestServiceManager runs the agent as systemd would: READY once all is up,
// whatever a source does, RELOADING and READY around a reload, a fed watchdog,
// STOPPING, and a log that journald keeps with its fields.
func TestServiceManager(t *testing.T) {
	n := newNode(t)
	notify := datagrams(t, n.Path("notify"))
	if err := os.MkdirAll(n.Root()+"/run/systemd/journal", 0o755); err != nil {
		t.Fatal(err)
	}
	entries := datagrams(t, n.Root()+"/run/systemd/journal/socket")
	n.EditConfig(func(c *config.NodeAgentConfiguration) { c.ManifestURL = "http://127.0.0.1:1/pods.yaml" })
	n.WriteManifest("p.yaml", manifest{name: "p"}.String())
	n.LaunchAgent([]string{"NOTIFY_SOCKET=" + n.Path("notify"), "WATCHDOG_USEC=3000000", "JOURNAL_STREAM=" + journalStream(t, n.Path("agent.log"))})

	until(t, notify, "READY=1\nSTATUS=running pods of ")
	if e := until(t, entries, "MESSAGE=ready node="); !strings.Contains(e, "PRIORITY=6\n") || !strings.Contains(e, "NODEAGENT_NODE=") || !strings.Contains(e, "SYSLOG_IDENTIFIER=nodeagent\n") {
		t.Errorf("journald gets %q", e)
	}
	if out := cli(t, n, "get", "sources", "http"); !hasRow(out, "http", "http://127.0.0.1:1/pods.yaml", "Failing") {
		t.Errorf("get sources:\n%s", out)
	}
	if ready, err := n.HTTPGet("http://127.0.0.1:10248/readyz"); err == nil || !strings.Contains(ready, "[-]source-http failed") || !strings.Contains(ready, "[+]source-file ok") {
		t.Errorf("readyz: %v, %s", err, ready)
	}
	n.WaitPods(long, testbed.Running("p"))
	before := runningID(t, n, "p", "main")

	if err := os.WriteFile(n.ConfigFile(), []byte("apiVersion: nodeagent/v1alpha1\nkind: NodeAgentConfiguration\nbogus: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.SignalAgent(syscall.SIGHUP)
	if e := until(t, entries, "MESSAGE=the configuration is not taken over"); !strings.Contains(e, "PRIORITY=3\n") || !strings.Contains(e, "config.yaml:3: bogus: unknown field") {
		t.Errorf("journald gets %q", e)
	}
	n.EditConfig(func(c *config.NodeAgentConfiguration) { c.ManifestURL = "" })
	n.SignalAgent(syscall.SIGHUP)
	until(t, notify, "RELOADING=1\nMONOTONIC_USEC=")
	until(t, notify, "READY=1\n")
	if out := cli(t, n, "get", "sources"); strings.Contains(out, "http") {
		t.Errorf("after the reload, get sources:\n%s", out)
	}
	until(t, notify, "WATCHDOG=1")
	n.StopAgent()
	until(t, notify, "STOPPING=1")
	until(t, entries, "MESSAGE=stopped; pods keep running\n")
	if now := runningID(t, n, "p", "main"); now != before {
		t.Errorf("the pod's container changed: %s → %s", before, now)
	}
}

// datagrams binds a socket and hands over what is sent to it.
func datagrams(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// until reads datagrams up to the one that holds a text.
func until(t *testing.T, l *net.UnixConn, text string) string {
	t.Helper()
	if err := l.SetReadDeadline(time.Now().Add(long)); err != nil {
		t.Fatal(err)
	}
	var seen []string
	for b := make([]byte, 64<<10); ; {
		n, err := l.Read(b)
		if err != nil {
			t.Fatalf("%q never came: %v; there was %q", text, err, seen)
		}
		if strings.Contains(string(b[:n]), text) {
			return string(b[:n])
		}
		seen = append(seen, string(b[:n]))
	}
}

// journalStream is $JOURNAL_STREAM for a process whose standard error is file.
func journalStream(t *testing.T, file string) string {
	t.Helper()
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}
