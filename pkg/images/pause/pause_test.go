package pause

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

var arches = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// missing skips, or fails where everything is meant to be installed.
func missing(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

func TestPrograms(t *testing.T) {
	for arch, machine := range arches {
		b, err := Program(arch)
		must(t, err)
		if len(b) > 8<<10 {
			t.Errorf("%s: %d bytes", arch, len(b))
		}
		f, err := elf.NewFile(bytes.NewReader(b))
		must(t, err)
		if f.Machine != machine || f.Type != elf.ET_EXEC {
			t.Errorf("%s: %v %v", arch, f.Machine, f.Type)
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
				t.Errorf("%s: not static", arch)
			}
			if p.Type == elf.PT_GNU_STACK && p.Flags&elf.PF_X != 0 {
				t.Errorf("%s: executable stack", arch)
			}
		}
	}
	if _, err := Program("m68k"); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("an unknown architecture: %v", err)
	}
}

// The committed programs are what the committed source gives.
func TestRebuild(t *testing.T) {
	for arch := range arches {
		t.Run(arch, func(t *testing.T) {
			out := t.TempDir()
			text, err := exec.Command("../../../hack/build-pause.sh", out, arch).CombinedOutput()
			var exit *exec.ExitError
			if errors.As(err, &exit) && exit.ExitCode() == 3 {
				missing(t, "%s", text)
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			got, err := os.ReadFile(filepath.Join(out, "pause-linux-"+arch))
			must(t, err)
			want, err := Program(arch)
			must(t, err)
			if !bytes.Equal(got, want) {
				cc, _ := exec.Command("gcc", "--version").Output()
				first, _, _ := strings.Cut(string(cc), "\n")
				if !strings.Contains(first, "Debian 12.2") {
					t.Skipf("another compiler than Debian 12's: %s", first)
				}
				t.Errorf("bin/pause-linux-%s is not what pause.c gives: run hack/build-pause.sh and raise Ref", arch)
			}
		})
	}
}

// unpack writes the program to a file and returns how to run it here.
func unpack(t *testing.T, arch string) []string {
	t.Helper()
	b, err := Program(arch)
	must(t, err)
	path := filepath.Join(t.TempDir(), "pause")
	must(t, os.WriteFile(path, b, 0o755))
	if arch == runtime.GOARCH {
		return []string{path}
	}
	qemu, err := exec.LookPath(map[string]string{"arm64": "qemu-aarch64-static", "amd64": "qemu-x86_64-static"}[arch])
	if err != nil {
		missing(t, "no emulator for %s: apt-get install qemu-user-static", arch)
	}
	return []string{qemu, path}
}

func TestSignalsEndIt(t *testing.T) {
	for arch := range arches {
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
			t.Run(fmt.Sprint(arch, " ", sig), func(t *testing.T) {
				args := unpack(t, arch)
				cmd := exec.Command(args[0], args[1:]...)
				must(t, cmd.Start())
				defer cmd.Process.Kill() //nolint:errcheck // dead on success
				waitFor(t, "it waits for signals", func() bool { return waits(cmd.Process.Pid) })
				must(t, cmd.Process.Signal(sig))
				if err := cmd.Wait(); err != nil {
					t.Errorf("ended with %v", err)
				}
			})
		}
	}
}

// waits says that the program sits in rt_sigtimedwait, its signals blocked: one
// before that would kill it. The mask in /proc/PID/status would not tell, since
// the kernel opens it for the time of that call; an emulator makes the same call
// for its guest.
func waits(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", pid))
	number, _, _ := strings.Cut(string(b), " ")
	return err == nil && number == strconv.Itoa(unix.SYS_RT_SIGTIMEDWAIT)
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// As process 1 of a shared pid namespace it reaps orphans.
func TestReaps(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a pid namespace needs root")
	}
	if _, err := exec.LookPath("nsenter"); err != nil {
		missing(t, "nsenter: %v", err)
	}
	args := unpack(t, runtime.GOARCH)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	defer cmd.Process.Kill() //nolint:errcheck // dead on success
	pid := cmd.Process.Pid
	waitFor(t, "it waits for signals", func() bool { return waits(pid) })

	const orphans = 5
	script := strings.Repeat("sleep 1000 >/dev/null 2>&1 </dev/null & ", orphans)
	if out, err := exec.Command("nsenter", "-t", strconv.Itoa(pid), "-p", "--", "sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	waitFor(t, "the orphans are its children", func() bool { return len(children(t, pid, "")) == orphans })
	// While it is stopped they stay zombies: this is how not reaping looks.
	must(t, cmd.Process.Signal(syscall.SIGSTOP))
	for _, child := range children(t, pid, "") {
		must(t, syscall.Kill(child, syscall.SIGKILL))
	}
	waitFor(t, "zombies while it is stopped", func() bool { return len(children(t, pid, "Z")) == orphans })
	must(t, cmd.Process.Signal(syscall.SIGCONT))
	waitFor(t, "the orphans are reaped", func() bool { return len(children(t, pid, "")) == 0 })
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	if err := cmd.Wait(); err != nil {
		t.Errorf("as process 1 it ended with %v", err)
	}
}

// children lists the processes with that parent, of one state or of any.
func children(t *testing.T, parent int, state string) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	must(t, err)
	var out []int
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		text := string(b)
		f := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
		if f[1] == strconv.Itoa(parent) && (state == "" || f[0] == state) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			must(t, err)
			out = append(out, pid)
		}
	}
	return out
}

// A reader that is not ours understands the archive. That containerd does is
// tested where one runs (pkg/runtime/embedded).
func TestArchive(t *testing.T) {
	for arch := range arches {
		a, err := Archive(Ref, arch)
		must(t, err)
		b, err := Archive(Ref, arch)
		must(t, err)
		if !bytes.Equal(a, b) {
			t.Errorf("%s: two archives differ", arch)
		}
		path := filepath.Join(t.TempDir(), "image.tar")
		must(t, os.WriteFile(path, a, 0o644))
		tag, err := name.NewTag(Ref)
		must(t, err)
		img, err := tarball.ImageFromPath(path, &tag)
		must(t, err)
		config, err := img.ConfigFile()
		must(t, err)
		layers, err := img.Layers()
		must(t, err)
		if config.Architecture != arch || config.OS != "linux" || config.Config.Entrypoint[0] != "/pause" || len(layers) != 1 {
			t.Errorf("%s: %+v, %d layers", arch, config, len(layers))
		}
		diff, err := layers[0].DiffID()
		must(t, err)
		if config.RootFS.DiffIDs[0] != diff {
			t.Errorf("%s: the layer is %s, the config says %s", arch, diff, config.RootFS.DiffIDs[0])
		}
	}
	if _, err := Archive(Ref, "m68k"); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("an unknown architecture: %v", err)
	}
}
