package runtime

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestCutShortStart: the agent or containerd was killed in the midst of a start.
// Whatever the runtime then makes of a container that never ran, it has not
// crashed; one that ran, or that cannot be started, has.
func TestCutShortStart(t *testing.T) {
	f := newFake(t, nil)
	dir := filepath.Join(t.TempDir(), "starts")
	connect := func() *Client { return dialFake(t, f, func(o *Options) { o.StartsDir = dir }) }
	c := connect()
	p := onePod("u1")
	box, err := c.RunSandbox(t.Context(), p, SandboxOptions{})
	if err != nil {
		t.Fatal(err)
	}
	id, err := c.CreateContainer(t.Context(), p, &p.Spec.Containers[0], ctrOptions(box, 2))
	if err != nil {
		t.Fatal(err)
	}
	becomes := func(state cri.ContainerState, started int64, reason string) Container {
		f.mu.Lock()
		st := f.ctrs[id].st
		st.State, st.StartedAt, st.FinishedAt, st.ExitCode, st.Reason = state, started, 2, 128, reason
		f.mu.Unlock()
		return mustPod(t, c, "u1").Containers[0]
	}
	f.cutShort = true
	if err := c.StartContainer(t.Context(), id); err == nil {
		t.Fatal("the start succeeds")
	}
	c = connect() // the next agent
	for _, reason := range []string{"StartError", "Unknown"} {
		for range 2 {
			m := becomes(cri.ContainerState_CONTAINER_EXITED, 0, reason)
			if m.State != StateCreated || !m.Interrupted || m.Attempt != 2 || m.ExitCode != 0 || !m.FinishedAt.IsZero() {
				t.Errorf("%s: %+v", reason, m)
			}
		}
	}
	f.cutShort = false
	// What is left of the first start is in the second one's way.
	if err := c.StartContainer(t.Context(), id); err == nil {
		t.Fatal("an exited container was started")
	}
	if m := becomes(cri.ContainerState_CONTAINER_EXITED, 0, "StartError"); !m.Interrupted {
		t.Errorf("after the second start: %+v", m)
	}
	if m := becomes(cri.ContainerState_CONTAINER_EXITED, 1, "Error"); m.State != StateExited || m.Interrupted || m.ExitCode != 128 {
		t.Errorf("what has run has ended: %+v", m)
	}
	if err := c.RemoveContainer(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	left(t, dir)
}

// TestHalfMadeContainer: containerd was killed before it had noted that the
// container is made; it shows it in an unknown state, without any time.
func TestHalfMadeContainer(t *testing.T) {
	f := newFake(t, nil)
	c := dialFake(t, f, nil)
	_, id := startPod(t, c, onePod("u1"))
	becomes := func(created, started int64) Container {
		f.mu.Lock()
		st := f.ctrs[id].st
		st.State, st.CreatedAt, st.StartedAt, st.ExitCode, st.Reason = cri.ContainerState_CONTAINER_UNKNOWN, created, started, 255, "Unknown"
		f.mu.Unlock()
		return mustPod(t, c, "u1").Containers[0]
	}
	if m := becomes(0, 0); m.State != StateCreated || !m.Interrupted || m.ExitCode != 0 {
		t.Errorf("half made: %+v", m)
	}
	for _, m := range []Container{becomes(1, 0), becomes(0, 1)} {
		if m.State != StateUnknown || m.Interrupted {
			t.Errorf("what may run is taken for half made: %+v", m)
		}
	}
}

func left(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != len(want) {
		t.Errorf("noted starts %v, %v; want %v", entries, err, want)
		return
	}
	for i := range want {
		if entries[i].Name() != want[i] {
			t.Errorf("noted starts %v, want %v", entries, want)
		}
	}
}

// TestStartNotes: a start that was answered leaves no note, an old note of a
// container that is gone goes, and a folder that cannot be written costs no start.
func TestStartNotes(t *testing.T) {
	f := newFake(t, nil)
	dir := filepath.Join(t.TempDir(), "starts")
	c := dialFake(t, f, func(o *Options) { o.StartsDir = dir })
	p := onePod("u1")
	box, err := c.RunSandbox(t.Context(), p, SandboxOptions{})
	if err != nil {
		t.Fatal(err)
	}
	start := func(attempt uint32, command string) error {
		o := ctrOptions(box, attempt)
		o.Command = []string{command}
		id, err := c.CreateContainer(t.Context(), p, &p.Spec.Containers[0], o)
		if err != nil {
			t.Fatal(err)
		}
		return c.StartContainer(t.Context(), id)
	}
	if err := start(0, "/bin/true"); err != nil {
		t.Error(err)
	}
	left(t, dir)
	if err := start(1, "/no/such"); err == nil {
		t.Error("what cannot be started was started")
	}
	left(t, dir)
	if m := mustPod(t, c, "u1").Containers[0]; m.State != StateExited || m.Interrupted {
		t.Errorf("a container that cannot be started: %+v", m)
	}
	for name, age := range map[string]time.Duration{"old": 2 * staleStart, "young": 0} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Time{}, time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Pods(t.Context()); err != nil {
		t.Fatal(err)
	}
	left(t, dir, "young")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // no folder can be made
		t.Fatal(err)
	}
	if err := start(2, "/bin/true"); err != nil {
		t.Error(err)
	}
}
