package runtime

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
)

// fakeShim runs a shell under the name and arguments of a shim, in a folder of its own.
func fakeShim(t *testing.T, id, namespace, socket, script string, deleted bool) *exec.Cmd {
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

// fakeRecords is containerd's container service of a fake.
type fakeRecords struct {
	containersapi.UnimplementedContainersServer
	ids []string
}

func (s fakeRecords) List(context.Context, *containersapi.ListContainersRequest) (*containersapi.ListContainersResponse, error) {
	r := &containersapi.ListContainersResponse{}
	for _, id := range s.ids {
		r.Containers = append(r.Containers, &containersapi.Container{ID: id})
	}
	return r, nil
}

// TestCollectShims: of all shims only those that containerd gave up end.
func TestCollectShims(t *testing.T) {
	f := newFake(t, func(f *fakeRuntime) { f.name, f.records = containerdName, []string{"in-use", "in-use-waits", "astray"} })
	c := dialFake(t, f, nil)
	other := newFake(t, nil)
	const idle, busy = "echo up; read x", "exec 3<&0; cat <&3 & echo up; wait"
	// A shell that is called runc and does as if it were about to become a container.
	runc := filepath.Join(t.TempDir(), "runc")
	if err := os.Symlink("/bin/sh", runc); err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(t.TempDir(), "init")
	if err := os.WriteFile(script, []byte("echo up; read x"), 0o600); err != nil {
		t.Fatal(err)
	}
	// It stays when the runc is killed, as a shim does.
	waits := "exec 3<&0; (cd " + filepath.Dir(script) + " && exec " + runc + " init <&3) & wait; read x <&3"
	gone := []*exec.Cmd{fakeShim(t, "astray", criNamespace, f.path, idle, true), fakeShim(t, "no-record", criNamespace, f.path, idle, false),
		fakeShim(t, "no-record-waits", criNamespace, f.path, waits, false)}
	fakeShim(t, "in-use", criNamespace, f.path, idle, false)
	fakeShim(t, "in-use-waits", criNamespace, f.path, waits, false)
	fakeShim(t, "carries", criNamespace, f.path, busy, true)
	fakeShim(t, "namespace", "moby", f.path, idle, true)
	fakeShim(t, "other-runtime", criNamespace, other.path, idle, true)
	ended, err := c.CollectShims(t.Context())
	slices.Sort(ended)
	if err != nil || !slices.Equal(ended, []string{"astray", "no-record", "no-record-waits"}) {
		t.Errorf("ended %v, %v", ended, err)
	}
	for _, cmd := range gone {
		if err := cmd.Wait(); err == nil {
			t.Errorf("%v ended by itself", cmd.Args)
		}
	}
	if ended, err := c.CollectShims(t.Context()); err != nil || len(ended) > 0 {
		t.Errorf("the second time: %v, %v", ended, err)
	}
}
