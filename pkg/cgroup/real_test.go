package cgroup

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/types"
)

// onKernel returns a Manager on the machine's own cgroups, below a root of its
// own that is gone when the test ends.
func onKernel(t testing.TB) *Manager {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("cgroups need root")
	}
	m, err := New(Options{
		Root:      fmt.Sprintf("/na-test-cgroup-%d-%s", os.Getpid(), strings.ToLower(t.Name())),
		PidsLimit: 50,
		Owner:     "na-test",
		Log:       slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Skipf("no cgroups on this machine: %v", err)
	}
	t.Cleanup(func() {
		// The test's own context is done by now.
		uids, err := m.Pods()
		if err != nil {
			t.Error(err)
		}
		for _, uid := range uids {
			if err := m.Remove(context.Background(), uid); err != nil {
				t.Log(err)
			}
		}
		for _, h := range m.trees {
			if err := m.rmTree(m.dir(h, m.names.root)); err != nil {
				t.Errorf("left behind: %v", err)
			}
		}
	})
	return m
}

func TestKernel(t *testing.T) {
	m := onKernel(t)
	pod := newPod("5f3b9a52-real", burstable)
	for range 2 {
		if err := m.Ensure(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	chain := m.names.chain("burstable", podName(pod.UID))
	for _, h := range m.trees {
		for _, s := range h.settings(m.podLimits(pod), m.pageSizes, m.period) {
			got, err := read(m.dir(h, chain), s.file)
			if err != nil || got != s.value {
				t.Errorf("%s: %s is %q (%v), want %q", h.dir, s.file, got, err, s.value)
			}
		}
	}
	// All pods together are held to what Enforce says, in place of what others say.
	for i, share := range []Share{{Amounts: list("cpu", "1", "memory", "1Gi"), PIDs: 1000}, {Amounts: list("cpu", "2", "memory", "512Mi"), PIDs: 500}} {
		if err := m.Enforce(t.Context(), share); err != nil {
			t.Fatal(err)
		}
		for _, h := range m.trees {
			for _, s := range h.settings(share.limits(), m.pageSizes, m.period) {
				if got, err := read(m.dir(h, m.names.chain()), s.file); err != nil || got != s.value {
					t.Errorf("share %d: %s: %s is %q (%v), want %q", i, h.dir, s.file, got, err, s.value)
				}
			}
		}
	}
	if uids, err := m.Pods(); err != nil || len(uids) != 1 || uids[0] != pod.UID {
		t.Errorf("pods %v %v", uids, err)
	}

	// A stray in a folder as runc makes them, in every tree.
	stray := exec.Command("sleep", "1000")
	if err := stray.Start(); err != nil {
		t.Fatal(err)
	}
	defer stray.Process.Kill() //nolint:errcheck // dead on success
	for _, h := range m.trees {
		dir := m.dir(h, append(chain, "container"))
		if h.passive {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		} else if _, err := m.mkdir(h, append(chain, "container")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(itoa(int64(stray.Process.Pid))), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 1)
	go func() { done <- stray.Wait() }()
	var log bytes.Buffer
	m.log = slog.New(slog.NewTextHandler(io.MultiWriter(&log, t.Output()), nil))
	if err := m.Remove(t.Context(), pod.UID); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(log.String(), "outlived its pod"); n > 1 {
		t.Errorf("one stray is told of %d times", n)
	}
	if err := <-done; err == nil || err.Error() != "signal: killed" {
		t.Errorf("the stray ended with %v", err)
	}
	if err := m.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, h := range m.trees {
		if dir := m.dir(h, m.names.root); exists(dir) {
			t.Errorf("%s is left", dir)
		}
	}
}

// BenchmarkEnsure is the start of a pod on the machine's kernel: the budget is 2 ms.
func BenchmarkEnsure(b *testing.B) {
	m := onKernel(b)
	if err := m.Ensure(b.Context(), newPod("first", burstable)); err != nil {
		b.Fatal(err)
	}
	for i := range b.N {
		uid := types.UID(fmt.Sprintf("pod-%d", i))
		if err := m.Ensure(b.Context(), newPod(string(uid), burstable)); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := m.Remove(b.Context(), uid); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
