package testbed

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// holderScript is the first process of a node. It makes what a booting machine
// would, says so on file descriptor 3, and then reaps orphans (shims re-parent
// to it) until it is killed. The loop matters: a shell execs its last command
// and would not reap as `sleep`.
const holderScript = `set -e
mount --make-rshared /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/lock /var/lib/cni
mount --bind "$NODE_DIR/cni-state" /var/lib/cni
mount --bind "$NODE_DIR/boot_id" /proc/sys/kernel/random/boot_id
mount -t proc proc /mnt # a whole one, or the kernel refuses any to pods with users of their own
hostname "$NODE_NAME"
ip link set lo up
if [ -n "$NODE_OUTSIDE" ]; then
  ip netns add outside
  ip link add eth0 type veth peer name eth0 netns outside
  ip addr add "$NODE_IP/24" dev eth0
  ip link set eth0 up
  ip -n outside link set lo up
  ip -n outside addr add "$OUTSIDE_IP/24" dev eth0
  ip -n outside link set eth0 up
  ip -n outside route add default via "$NODE_IP"
  ip route add default via "$OUTSIDE_IP"
fi
echo ready >&3
exec 3>&-
while :; do sleep 3600; done
`

// holder is a running set of namespaces.
type holder struct {
	cmd  *exec.Cmd
	init int // the first process of the PID namespace, as the test sees it
	done chan struct{}
}

// startHolder makes the namespaces and returns when they are ready.
func startHolder(dir, name string, outside bool) (*holder, error) {
	if err := os.WriteFile(filepath.Join(dir, "boot_id"), []byte(bootID()), 0o444); err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var errs bytes.Buffer
	cmd := exec.Command("unshare", "--mount", "--net", "--pid", "--uts", "--fork", "--kill-child=SIGKILL",
		"--mount-proc", "--propagation", "private", "--", "/bin/sh", "-c", holderScript)
	cmd.Env = append(os.Environ(), "NODE_DIR="+dir, "NODE_NAME="+name, "NODE_IP="+NodeIP, "OUTSIDE_IP="+OutsideIP)
	if outside {
		cmd.Env = append(cmd.Env, "NODE_OUTSIDE=1")
	}
	cmd.ExtraFiles = []*os.File{w}
	cmd.Stderr = &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}

	h := &holder{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// The kernel sends the parent death signal when the *thread* that
		// forked ends, so this thread stays until the holder is gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(h.done)
	}()
	err = <-started
	w.Close()
	if err != nil {
		return nil, fmt.Errorf("start the node's namespaces: %w", err)
	}
	line, _ := bufio.NewReader(r).ReadString('\n')
	if line != "ready\n" {
		h.stop()
		return nil, fmt.Errorf("make the node's namespaces: %s", strings.TrimSpace(errs.String()))
	}
	if h.init, err = onlyChild(cmd.Process.Pid); err != nil {
		h.stop()
		return nil, err
	}
	return h, nil
}

// stop kills the holder and with it every process of the node, and waits until
// the kernel has ended them all.
func (h *holder) stop() {
	if h.init > 0 {
		// The first process of a PID namespace is reaped only after all
		// others of it are dead.
		_ = syscall.Kill(h.init, syscall.SIGKILL)
	} else {
		_ = h.cmd.Process.Kill()
	}
	<-h.done
}

// nsenter is the command line that runs something inside the node.
func (h *holder) nsenter() []string {
	return []string{"nsenter", "--target", strconv.Itoa(h.init), "--mount", "--net", "--pid", "--uts", "--"}
}

// root is the node's file system as seen from the test.
func (h *holder) root() string { return fmt.Sprintf("/proc/%d/root", h.init) }

// onlyChild waits for and returns the single child of pid.
func onlyChild(pid int) (int, error) {
	path := fmt.Sprintf("/proc/%d/task/%d/children", pid, pid)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(path)
		if err != nil {
			return 0, fmt.Errorf("find the child of process %d: %w", pid, err)
		}
		if f := strings.Fields(string(b)); len(f) > 0 {
			return strconv.Atoi(f[0])
		}
	}
	return 0, fmt.Errorf("process %d has no child after 10 s", pid)
}

// bootID is a random UUID as the kernel prints it.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		return "00000000-0000-4000-8000-000000000000\n"
	}
	return string(b)
}
