// Package vm gives a test a Debian guest under qemu: systemd, cgroup v2,
// containerd and a kernel with IPVS, SCTP, SCSI and AppArmor, which the machine
// that tests run on may all lack. It emulates the processor (TCG), so it needs no
// KVM, and is slow: a boot takes half a minute or more, a fork and exec some
// milliseconds times seventy. Start one guest for many tests, and run few
// programs in it.
//
// The disk is an overlay on the image that hack/build-vm.sh makes and keeps. The
// guest reaches nobody: its network leads to the host's loopback interface, and
// only in the one direction that Run needs, but for WithControlPlane.
package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/internal/testbed"
)

// Patience for a boot: a loaded host took two minutes.
const bootLimit = 10 * time.Minute

// kernelLine leaves out what costs time and serves no test.
const kernelLine = "root=/dev/nvme0n1 rootwait rw console=ttyS0 loglevel=4 net.ifnames=0 mitigations=off audit=0 " +
	"cryptomgr.notests nokaslr systemd.show_status=false panic=-1"

// VM is a guest. Its methods may be called from any goroutine, but for Reboot
// and PowerCut, during which nothing else may run.
type VM struct {
	t      testing.TB
	dir    string // of this guest
	image  string // the folder that hack/build-vm.sh made
	log    *os.File
	booted chan string // the boot id, when the guest is ready

	forward string // one more option of qemu's network

	qemu   *exec.Cmd
	ended  chan struct{} // closed when qemu has ended
	qmp    *monitor
	port   int // on loopback, of the guest's shell
	bootID string
}

// Option changes how a guest is started.
type Option func(*VM)

// WithControlPlane lets the guest reach the API server of a control plane, and
// nothing else, at testbed.GuestControlPlaneIP.
func WithControlPlane(c *testbed.ControlPlane) Option {
	return func(v *VM) { v.forward = "," + c.GuestForward() }
}

// Start boots a guest. It is removed when the test ends, and the test fails
// when anything of it is left. The first Start on a machine makes the image, in
// some minutes.
func Start(t testing.TB, options ...Option) *VM {
	t.Helper()
	testbed.Require(t, "qemu-system-x86_64", "qemu-img", "mmdebstrap", "lz4", "mkfs.ext4", "unshare", "flock")
	v := &VM{t: t, image: image(t), booted: make(chan string, 1)}
	for _, o := range options {
		o(v)
	}
	var err error
	if v.dir, err = testbed.Dir(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.remove)
	if v.log, err = os.Create(filepath.Join(v.dir, "console.log")); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", filepath.Join(v.image, "root.img"), v.disk()).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img create: %v: %s", err, out)
	}
	v.powerOn()
	return v
}

// image makes what is missing of the image and returns its folder.
func image(t testing.TB) string {
	t.Helper()
	root, err := testbed.Root()
	if err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	cmd := exec.Command(filepath.Join(root, "hack/build-vm.sh"))
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("hack/build-vm.sh: %v: %s", err, errs.String())
	}
	return strings.TrimSpace(string(out))
}

func (v *VM) disk() string { return filepath.Join(v.dir, "disk.qcow2") }

// powerOn starts qemu and waits until the guest is ready.
func (v *VM) powerOn() {
	v.t.Helper()
	ours, theirs, err := socketpair()
	if err != nil {
		v.t.Fatal(err)
	}
	defer theirs.Close()
	// The console is qemu's standard output; its input stays open and empty.
	v.qemu = exec.Command("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048", "-machine", "q35",
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-kernel", filepath.Join(v.image, "vmlinux"), "-append", kernelLine,
		"-drive", "if=none,id=root,format=qcow2,cache=unsafe,discard=unmap,file="+v.disk(), "-device", "nvme,drive=root,serial=root",
		"-device", "virtio-scsi-pci,id=scsi0", "-device", "virtio-rng-pci",
		"-netdev", "user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:0-:7000"+v.forward, "-device", "virtio-net-pci,netdev=n0,romfile=",
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control")
	v.qemu.Stdout = &console{log: v.log, booted: v.booted}
	v.qemu.Stderr = v.log
	v.qemu.ExtraFiles = []*os.File{theirs}
	v.qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	stdin, err := v.qemu.StdinPipe()
	if err != nil {
		v.t.Fatal(err)
	}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		// The kernel sends the parent death signal when the thread that forked
		// ends, so this one stays until qemu is gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(ended)
		err := v.qemu.Start()
		started <- err
		if err == nil {
			_ = v.qemu.Wait() // ends by our signal
		}
		stdin.Close()
	}()
	err = <-started
	v.qmp = &monitor{conn: ours}
	if err != nil {
		v.t.Fatalf("start qemu: %v", err)
	}
	v.ended = ended
	v.waitReady()
	if v.port, err = v.forwarded(); err != nil {
		v.t.Fatal(err)
	}
}

func (v *VM) waitReady() {
	v.t.Helper()
	limit := time.NewTimer(bootLimit)
	defer limit.Stop()
	select {
	case v.bootID = <-v.booted:
	case <-v.ended:
		v.t.Fatalf("qemu has ended:\n%s", v.Console())
	case <-limit.C:
		v.t.Fatalf("the guest was not ready after %v; its console:\n%s", bootLimit, v.Console())
	}
}

// forwarded asks qemu which port of the host it took for the guest's shell.
func (v *VM) forwarded() (port int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var text string
	if err := v.QMP(ctx, "human-monitor-command", map[string]any{"command-line": "info usernet"}, &text); err != nil {
		return 0, err
	}
	//   TCP[HOST_FORWARD]  12   127.0.0.1 37221   10.0.2.15  7000 …
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 3 && f[0] == "TCP[HOST_FORWARD]" {
			_, err := fmt.Sscan(f[3], &port)
			return port, err
		}
	}
	return 0, fmt.Errorf("qemu forwards no port to the guest's shell: %q", text)
}

// Reboot has systemd stop all and reboot, and waits until the guest is ready
// again. qemu ends where a machine would reset, and starts anew, without what
// was plugged in meanwhile: a guest that was reset in place ran four times
// slower from then on.
func (v *VM) Reboot() {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), bootLimit)
	defer cancel()
	// The shell may be stopped before it has said how it went.
	var refused *ExitError
	if _, err := v.Run(ctx, "systemctl", "--no-block", "reboot"); errors.As(err, &refused) {
		v.t.Fatal(err)
	}
	select {
	case <-v.ended:
	case <-ctx.Done():
		v.t.Fatalf("the guest has not shut down after %v; its console:\n%s", bootLimit, v.Console())
	}
	v.powerOff()
	v.powerOn()
}

// PowerCut ends the guest at once, what it has not written to its disk is lost,
// and boots it again from that disk.
func (v *VM) PowerCut() {
	v.t.Helper()
	v.powerOff()
	v.powerOn()
}

func (v *VM) powerOff() {
	if v.ended != nil {
		_ = v.qemu.Process.Kill() // may have ended
		<-v.ended
	}
	if v.qmp != nil {
		v.qmp.conn.Close()
	}
}

// BootID is the kernel's id of this boot.
func (v *VM) BootID() string { return v.bootID }

// Console is the end of what the guest and qemu wrote to the console.
func (v *VM) Console() string {
	b, err := os.ReadFile(v.log.Name())
	if err != nil {
		return err.Error()
	}
	const most = 8 << 10
	return string(b[max(0, len(b)-most):])
}

// remove ends the guest and removes its folder. A test that failed gets the
// guest's log first.
func (v *VM) remove() {
	if v.t.Failed() && v.port != 0 {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		journal, err := v.Run(ctx, "journalctl", "-b", "--no-pager", "-n", "300", "-o", "short-monotonic")
		v.t.Logf("the guest's journal (%v):\n%s\nits console:\n%s", err, journal, v.Console())
	}
	v.powerOff()
	err := errors.Join(v.log.Close(), os.RemoveAll(v.dir))
	if err != nil {
		v.t.Errorf("remove the guest: %v", err)
	}
	for _, l := range testbed.Leftovers(filepath.Base(v.dir), v.dir) {
		v.t.Errorf("left behind: %s", l)
	}
}

// ready is the line of vm-ready.service. It comes several times: the kernel may
// write in the middle of one.
var ready = regexp.MustCompile(`vm-ready ([0-9a-f-]{36})`)

// console keeps what the guest writes to it and looks for the boot id.
type console struct {
	log    io.Writer
	booted chan<- string
	line   []byte
	known  bool
}

func (c *console) Write(p []byte) (int, error) {
	c.line = append(c.line, p...)
	for {
		line, rest, whole := bytes.Cut(c.line, []byte("\n"))
		if !whole {
			break
		}
		c.line = rest
		if m := ready.FindSubmatch(line); m != nil && !c.known {
			c.known = true
			c.booted <- string(m[1])
		}
	}
	return c.log.Write(p)
}
