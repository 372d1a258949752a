package volumes

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// subPathPod mounts parts of one volume.
func subPathPod(v v1.Volume, paths ...string) *v1.Pod {
	pod := podWith(v)
	c := &pod.Spec.Containers[0]
	c.VolumeMounts = nil
	for i, p := range paths {
		c.VolumeMounts = append(c.VolumeMounts, v1.VolumeMount{Name: v.Name, MountPath: "/" + string(rune('a'+i)), SubPath: p})
	}
	return pod
}

// bound sets a pod's volumes up and returns where its container's mounts are
// bound from.
func bound(t *testing.T, m *Manager, pod *v1.Pod) ([]string, error) {
	t.Helper()
	mounted, err := m.SetUp(t.Context(), pod)
	must(t, err)
	mounts, err := m.ContainerMounts(t.Context(), pod, &pod.Spec.Containers[0], mounted, MountOptions{})
	var out []string
	for _, b := range mounts {
		out = append(out, b.HostPath)
	}
	return out, err
}

func read(t *testing.T, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	must(t, err)
	return string(b)
}

func TestSubPath(t *testing.T) {
	m, o := withObjects(t)
	defer unix.Umask(unix.Umask(0o077))
	o.put(configMapOf("settings", map[string]string{"a": "1"}))
	dir := realTemp(t)
	must(t, os.MkdirAll(dir+"/v1/logs", 0o755))
	must(t, os.WriteFile(dir+"/v1/logs/file", []byte("log"), 0o644))
	must(t, os.Symlink("v1", dir+"/current"))
	must(t, os.Symlink(dir+"/v1/logs", dir+"/absolute"))
	must(t, os.Chown(dir, 0, 2000))
	must(t, unix.Chmod(dir, 0o2775))

	pod := subPathPod(host("h", dir, v1.HostPathUnset), "v1", "v1/logs/file", "current/logs", "absolute", "new/deep", "current/new", ".", "v1//logs/")
	paths, err := bound(t, m, pod)
	must(t, err)
	if want := filepath.Join(m.dir, string(uid), "volume-subpaths/h/main/1"); paths[1] != want {
		t.Errorf("bound at %s, want %s", paths[1], want)
	}
	for i, want := range map[int]string{0: "logs/file", 1: "", 2: "file", 3: "file", 6: "v1/logs/file", 7: "file"} {
		if got := read(t, paths[i], want); got != "log" {
			t.Errorf("%d: %q", i, got)
		}
	}
	for _, p := range []string{dir + "/new", dir + "/new/deep", dir + "/v1/new"} {
		if st := stat(t, p); st.Mode&0o7777 != 0o2775 || st.Uid != 0 || strings.Contains(p, "/new") && p != dir+"/v1/new" && st.Gid != 2000 {
			t.Errorf("%s: mode %o, group %d", p, st.Mode&0o7777, st.Gid)
		}
	}
	// A restarted agent and a restarted container find what is there.
	before := mountsAt(t, m, m.dir)
	again, err := bound(t, New(Options{PodsDir: m.dir, Objects: o}), pod)
	must(t, err)
	if strings.Join(again, " ") != strings.Join(paths, " ") || mountsAt(t, m, m.dir) != before {
		t.Errorf("bound again: %v, %d mounts, before %d", again, mountsAt(t, m, m.dir), before)
	}
	must(t, m.TearDown(t.Context(), uid))
	if n := mountsAt(t, m, m.dir); n != 0 {
		t.Errorf("%d mounts left", n)
	}
	if _, err := os.Lstat(filepath.Join(m.dir, string(uid), "volume-subpaths")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
	if got := read(t, dir, "v1/logs/file"); got != "log" {
		t.Errorf("the volume's file: %q", got)
	}
}

// A file of a ConfigMap is a link in a link; a container that is restarted gets
// the new one.
func TestSubPathOfAConfigMap(t *testing.T) {
	m, o := withObjects(t)
	o.put(configMapOf("settings", map[string]string{"a": "1"}))
	pod := subPathPod(configVolume("v", "settings"), "a")
	paths, err := bound(t, m, pod)
	must(t, err)
	o.put(configMapOf("settings", map[string]string{"a": "2"}))
	must(t, m.Refresh(t.Context(), pod))
	if got := read(t, paths[0]); got != "1" {
		t.Errorf("a subPath is as it was when the container started; got %q", got)
	}
	again, err := bound(t, m, pod)
	must(t, err)
	if got := read(t, again[0]); got != "2" || again[0] != paths[0] || mountsAt(t, m, paths[0]) != 1 {
		t.Errorf("%q at %v, %d mounts", got, again, mountsAt(t, m, paths[0]))
	}
	// The part becomes a folder.
	pod.Spec.Volumes[0].ConfigMap.Items = []v1.KeyToPath{{Key: "a", Path: "a/b"}}
	again, err = bound(t, m, pod)
	must(t, err)
	if got := read(t, again[0], "b"); got != "2" {
		t.Errorf("%q", got)
	}
	must(t, m.TearDown(t.Context(), uid))
}

func TestSubPathThatLeadsOut(t *testing.T) {
	m, _ := withObjects(t)
	dir, precious := realTemp(t), realTemp(t)
	for name, to := range map[string]string{"abs": precious, "root": "/", "up": "..", "proc": "/proc/self/root", "dangling": precious + "/none", "beside": dir + "x"} {
		must(t, os.Symlink(to, filepath.Join(dir, name)))
	}
	must(t, os.Mkdir(dir+"x", 0o755))
	must(t, os.WriteFile(dir+"/file", nil, 0o600))
	for _, p := range []string{"abs", "abs/new", "root", "root/etc", "up", "up/x", "proc/etc", "dangling", "dangling/new", "beside", "file/x"} {
		_, err := bound(t, m, subPathPod(host("h", dir, v1.HostPathUnset), p))
		if !errors.Is(err, errdefs.ErrTransient) || !strings.Contains(err.Error(), `subPath`) || strings.Contains(err.Error(), precious) {
			t.Errorf("%s: %v", p, err)
		}
	}
	if names, err := os.ReadDir(precious); err != nil || len(names) != 0 {
		t.Errorf("made beyond the volume: %v %v", names, err)
	}
	must(t, m.TearDown(t.Context(), uid))
}

// A container swaps a folder for a link in a loop while the part is made and
// bound (CVE-2017-1002101, CVE-2021-25741).
func TestSubPathRacesWithASwap(t *testing.T) {
	m, _ := withObjects(t)
	precious := realTemp(t)
	must(t, os.MkdirAll(precious+"/sub", 0o755))
	must(t, os.WriteFile(precious+"/sub/secret", nil, 0o600))
	pod := subPathPod(empty("data", "", ""), "a/sub", "a/sub/new")
	mounted, err := m.SetUp(t.Context(), pod)
	must(t, err)
	data := mounted["data"].HostPath
	must(t, os.MkdirAll(data+"/a/sub", 0o777))
	must(t, os.Symlink(precious, data+"/b"))
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, data+"/a", unix.AT_FDCWD, data+"/b", unix.RENAME_EXCHANGE)
			}
		}
	}()
	good, bad := 0, 0
	for deadline := time.Now().Add(time.Minute); (good < 50 || bad < 50) && time.Now().Before(deadline); {
		mounts, err := m.ContainerMounts(t.Context(), pod, &pod.Spec.Containers[0], mounted, MountOptions{})
		if err != nil {
			bad++
			continue
		}
		good++
		for _, b := range mounts {
			if _, err := os.Lstat(filepath.Join(b.HostPath, "secret")); err == nil {
				t.Fatalf("%s shows what is beyond the volume", b.HostPath)
			}
		}
	}
	close(stop)
	<-done
	if good == 0 || bad == 0 {
		t.Errorf("bound %d times, refused %d times: nothing raced", good, bad)
	}
	must(t, m.TearDown(t.Context(), uid))
	if names, err := os.ReadDir(precious + "/sub"); err != nil || len(names) != 1 {
		t.Errorf("beyond the volume: %v %v", names, err)
	}
}
