package runtime

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// shim runs a shell under the name and arguments of a shim, in a folder of its own.
func shim(t *testing.T, id, namespace, socket, script string, deleted bool) *exec.Cmd {
	t.Helper()
	dir := filepath.Join(t.TempDir(), id)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh")
	cmd.Args = []string{"/usr/bin/containerd-shim-runc-v2", "-c", script, "sh", "-namespace", namespace, "-id", id, "-address", socket}
	cmd.Dir = dir
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
	if _, err := out.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if deleted {
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
	return cmd
}

// TestCollectShims: of all shims only the one that containerd gave up ends.
func TestCollectShims(t *testing.T) {
	f := newFake(t, nil)
	c := dialFake(t, f, nil)
	other := newFake(t, nil)
	const idle, busy = "echo up; read x", "exec 3<&0; cat <&3 & echo up; wait"
	gone := shim(t, "abandoned", criNamespace, f.path, idle, true)
	shim(t, "in-use", criNamespace, f.path, idle, false)
	shim(t, "carries", criNamespace, f.path, busy, true)
	shim(t, "namespace", "moby", f.path, idle, true)
	shim(t, "other-runtime", criNamespace, other.path, idle, true)
	ended, err := c.CollectShims()
	if err != nil || !slices.Equal(ended, []string{"abandoned"}) {
		t.Errorf("ended %v, %v", ended, err)
	}
	if err := gone.Wait(); err == nil {
		t.Error("the abandoned shim ended by itself")
	}
	if ended, err := c.CollectShims(); err != nil || len(ended) > 0 {
		t.Errorf("the second time: %v, %v", ended, err)
	}
}
