package embedded

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestMain makes this test binary a containerd when it is called by that name:
// enough of one to be started, asked, hung, and killed.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "containerd" {
		os.Exit(containerd())
	}
	os.Exit(m.Run())
}

// containerd obeys files that tests put beside the program: "version" is what
// --version says, "fail" has it end at once with that text, "hang" makes it
// never answer, "stubborn" makes it ignore SIGTERM.
func containerd() int {
	dir := filepath.Dir(os.Args[0])
	told := func(name string) (string, bool) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		return string(b), err == nil
	}
	if os.Args[1] == "--version" {
		v, _ := told("version")
		fmt.Println(v)
		return 0
	}
	if text, ok := told("fail"); ok {
		fmt.Fprintln(os.Stderr, `time="2026-01-01T00:00:00Z" level=info msg="starting"`)
		fmt.Fprintln(os.Stderr, text)
		return 1
	}
	if _, ok := told("stubborn"); ok {
		signal.Ignore(syscall.SIGTERM)
	}
	config, err := os.ReadFile(os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	_, rest, _ := strings.Cut(string(config), `address = "`)
	socket, _, _ := strings.Cut(rest, `"`)
	_ = os.Remove(socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	s := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(s, answers{hang: func() bool { _, ok := told("hang"); return ok }})
	// Nobody's leftover, should a test die.
	time.AfterFunc(2*time.Minute, func() { os.Exit(3) })
	_ = s.Serve(l)
	return 0
}

type answers struct {
	cri.UnimplementedRuntimeServiceServer
	hang func() bool
}

func (a answers) Version(ctx context.Context, _ *cri.VersionRequest) (*cri.VersionResponse, error) {
	if a.hang() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &cri.VersionResponse{RuntimeName: "containerd"}, nil
}

// host is a folder of programs and one for the runtime.
type host struct {
	*testing.T
	bin string
	o   Options
}

func newHost(t *testing.T) *host {
	t.Helper()
	// Short: a socket's path has 107 bytes.
	dir, err := os.MkdirTemp("", "emb")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{T: t, bin: filepath.Join(dir, "bin")}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h.must(os.Mkdir(h.bin, 0o755))
	h.must(os.Symlink(exe, filepath.Join(h.bin, "containerd")))
	for _, name := range []string{"runc", "containerd-shim-runc-v2"} {
		h.must(os.WriteFile(filepath.Join(h.bin, name), []byte("#!/bin/sh\n"), 0o755))
	}
	h.tell("version", "containerd github.com/containerd/containerd 1.7.1 abc")
	h.o = Options{
		StateDir: filepath.Join(dir, "state"), CNIConfDir: "/etc/cni/net.d", CNIBinDir: "/opt/cni/bin",
		Program: filepath.Join(h.bin, "containerd"), CgroupDriver: "cgroupfs", SandboxImage: "example.org/pause:1",
		RegistryConfigDir: "/registries", Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	t.Cleanup(func() {
		for _, p := range h.running() {
			_ = syscall.Kill(p, syscall.SIGKILL)
		}
		_ = os.RemoveAll(dir)
	})
	return h
}

func (h *host) must(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

func (h *host) tell(name, text string) {
	h.Helper()
	h.must(os.WriteFile(filepath.Join(h.bin, name), []byte(text), 0o644))
}

// agent is a supervisor as a new agent makes it.
func (h *host) agent() *Supervisor {
	h.Helper()
	s, err := New(h.o)
	h.must(err)
	return s
}

// running lists the processes that run the host's containerd.
func (h *host) running() []int {
	pids, err := processes()
	h.must(err)
	var out []int
	for _, pid := range pids {
		if args := commandLine(pid); len(args) == 3 && args[0] == h.o.Program {
			out = append(out, pid)
		}
	}
	return out
}

func (h *host) one() int {
	h.Helper()
	r := h.running()
	if len(r) != 1 {
		h.Fatalf("%d containerd processes run, want one: %v", len(r), r)
	}
	return r[0]
}

func (h *host) until(what string, f func() bool) {
	h.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); {
		if time.Now().After(deadline) {
			h.Fatalf("never happened: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
