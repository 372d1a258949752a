package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// tree shows a folder: what leads where, modes, groups and contents. A folder
// with a time in its name is shown as T.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		must(t, err)
		rel, err := filepath.Rel(dir, path)
		must(t, err)
		st := stat(t, path)
		line := fmt.Sprintf("%s %o", rel, st.Mode&0o7777)
		if st.Gid != 0 {
			line += fmt.Sprintf(" :%d", st.Gid)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			to, err := os.Readlink(path)
			must(t, err)
			line = fmt.Sprintf("%s -> %s", rel, to)
			if st.Gid != 0 {
				line += fmt.Sprintf(" :%d", st.Gid)
			}
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			must(t, err)
			line += " " + string(b)
		}
		out = append(out, line)
		return nil
	}))
	stamp, err := os.Readlink(filepath.Join(dir, dataLink))
	must(t, err)
	for i := range out {
		out[i] = strings.ReplaceAll(out[i], stamp, "T")
	}
	slices.Sort(out)
	return out
}

func compare(t *testing.T, got []string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func TestConfigMap(t *testing.T) {
	m, o := withObjects(t)
	defer unix.Umask(unix.Umask(0o077))
	cm := configMapOf("settings", map[string]string{"a": "1", "b": "two\n"})
	cm.BinaryData = map[string][]byte{"c.bin": {0xff}}
	o.put(cm)
	all, some := configVolume("all", "settings"), configVolume("some", "settings",
		v1.KeyToPath{Key: "a", Path: "deep/er/x"}, v1.KeyToPath{Key: "b", Path: "deep/y", Mode: new(int32(0o400))})
	some.ConfigMap.DefaultMode = new(int32(0o640))
	pod := podWith(all, some)
	mounted, err := m.SetUp(t.Context(), pod)
	must(t, err)
	dir := filepath.Join(m.dir, string(uid), "volumes/kubernetes.io~configmap/all")
	if mounted["all"] != (Mounted{Name: "all", Kind: "configMap", HostPath: dir, ReadOnly: true, Relabel: true}) {
		t.Errorf("%+v", mounted["all"])
	}
	first := []string{". 777", "..data -> T", "T 755", "a -> ..data/a", "b -> ..data/b", "c.bin -> ..data/c.bin", "T/a 644 1", "T/b 644 two\n", "T/c.bin 644 \xff"}
	compare(t, tree(t, dir), first...)
	compare(t, tree(t, mounted["some"].HostPath), ". 777", "..data -> T", "T 755", "deep -> ..data/deep", "T/deep 755", "T/deep/er 755", "T/deep/er/x 640 1", "T/deep/y 400 two\n")
	if name, _ := os.Readlink(filepath.Join(dir, dataLink)); !strings.HasPrefix(name, "..2026_02_01_15_04_05.") {
		t.Errorf("..data leads to %q", name)
	}

	// Nothing has changed: not even the folder.
	before, _ := os.Readlink(filepath.Join(dir, dataLink))
	must(t, m.Refresh(t.Context(), pod))
	if after, _ := os.Readlink(filepath.Join(dir, dataLink)); after != before {
		t.Errorf("rewritten without a change: %s, %s", before, after)
	}
	// A key changes, one goes, one comes.
	o.put(configMapOf("settings", map[string]string{"a": "1", "b": "three", "d": ""}))
	must(t, m.Refresh(t.Context(), pod))
	compare(t, tree(t, dir), ". 777", "..data -> T", "T 755", "a -> ..data/a", "b -> ..data/b", "d -> ..data/d", "T/a 644 1", "T/b 644 three", "T/d 644 ")

	// The object is gone: the files stay, and the user is told.
	o.objs = map[string]any{}
	err = m.Refresh(t.Context(), pod)
	if want := `MountVolume.SetUp failed for volume "all" : configmap "settings" not found; MountVolume.SetUp failed for volume "some" : configmap "settings" not found`; err == nil || err.Error() != want {
		t.Errorf("%v", err)
	}
	if _, err := os.ReadFile(filepath.Join(dir, "a")); err != nil {
		t.Error(err)
	}
	// A container may restart all the same.
	if again, err := m.SetUp(t.Context(), pod); err != nil || !reflect.DeepEqual(again, mounted) {
		t.Errorf("%+v, %v", again, err)
	}
	must(t, m.TearDown(t.Context(), uid))
}

func TestMissingObjects(t *testing.T) {
	m, o := withObjects(t)
	o.put(configMapOf("there", map[string]string{"k": "v"}), secretOf("there", map[string]string{"k": "v"}))
	optional := func(v v1.Volume) v1.Volume {
		if v.ConfigMap != nil {
			v.ConfigMap.Optional = new(true)
		} else {
			v.Secret.Optional = new(true)
		}
		return v
	}
	for _, tc := range []struct {
		volume v1.Volume
		err    string // empty: an empty volume
	}{
		{configVolume("v", "none"), `MountVolume.SetUp failed for volume "v" : configmap "none" not found`},
		{secretVolume("v", "none"), `MountVolume.SetUp failed for volume "v" : secret "none" not found`},
		{configVolume("v", "there", v1.KeyToPath{Key: "x", Path: "x"}), `MountVolume.SetUp failed for volume "v" : configmap references non-existent config key: x`},
		{secretVolume("v", "there", v1.KeyToPath{Key: "x", Path: "x"}), `MountVolume.SetUp failed for volume "v" : references non-existent secret key: x`},
		{optional(configVolume("v", "none")), ""},
		{optional(secretVolume("v", "none")), ""},
		{optional(configVolume("v", "there", v1.KeyToPath{Key: "x", Path: "x"})), ""},
		{optional(secretVolume("v", "there", v1.KeyToPath{Key: "x", Path: "x"})), ""},
	} {
		mounted, err := m.SetUp(t.Context(), podWith(tc.volume))
		if tc.err != "" {
			if err == nil || err.Error() != tc.err || !errors.Is(err, errdefs.ErrTransient) {
				t.Errorf("%v, want %s", err, tc.err)
			}
		} else if must(t, err); len(tree(t, mounted["v"].HostPath)) != 3 {
			t.Errorf("%s: %q", tc.volume.String(), tree(t, mounted["v"].HostPath))
		}
		must(t, m.TearDown(t.Context(), uid))
	}
}

// Secrets, what the pod says of itself, and what may hold a Secret are in memory.
func TestMemoryKinds(t *testing.T) {
	m, o := withObjects(t)
	o.put(secretOf("keys", map[string]string{"user": "u", "password": "p"}), configMapOf("settings", map[string]string{"user": "shadowed", "a": "1"}))
	down := v1.Volume{Name: "down", VolumeSource: v1.VolumeSource{DownwardAPI: &v1.DownwardAPIVolumeSource{Items: []v1.DownwardAPIVolumeFile{
		{Path: "labels", FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.labels"}},
		{Path: "who/uid", FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.uid"}, Mode: new(int32(0o444))},
		{Path: "cpu", ResourceFieldRef: &v1.ResourceFieldSelector{ContainerName: "main", Resource: "limits.cpu"}},
	}}}}
	all := v1.Volume{Name: "all", VolumeSource: v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{DefaultMode: new(int32(0o440)), Sources: []v1.VolumeProjection{
		{ConfigMap: &v1.ConfigMapProjection{LocalObjectReference: v1.LocalObjectReference{Name: "settings"}}},
		{Secret: &v1.SecretProjection{LocalObjectReference: v1.LocalObjectReference{Name: "keys"}, Items: []v1.KeyToPath{{Key: "user", Path: "user"}}}},
		{DownwardAPI: &v1.DownwardAPIProjection{Items: down.DownwardAPI.Items[1:2]}},
		{Secret: &v1.SecretProjection{LocalObjectReference: v1.LocalObjectReference{Name: "none"}, Optional: new(true)}},
	}}}}
	pod := podWith(secretVolume("keys", "keys"), down, all)
	pod.Labels = map[string]string{"app": "web"}
	mounted, err := m.SetUp(t.Context(), pod)
	must(t, err)
	for name, v := range mounted {
		var st unix.Statfs_t
		must(t, unix.Statfs(v.HostPath, &st))
		if st.Type != unix.TMPFS_MAGIC || !v.ReadOnly || mountsAt(t, m, v.HostPath) != 1 {
			t.Errorf("%s: type %#x, %+v", name, st.Type, v)
		}
	}
	compare(t, tree(t, mounted["keys"].HostPath), ". 1777", "..data -> T", "T 755", "user -> ..data/user", "password -> ..data/password", "T/user 644 u", "T/password 644 p")
	compare(t, tree(t, mounted["down"].HostPath), ". 1777", "..data -> T", "T 755", "labels -> ..data/labels", "who -> ..data/who", "cpu -> ..data/cpu",
		"T/labels 644 app=\"web\"", "T/who 755", "T/who/uid 444 "+string(uid), "T/cpu 644 2")
	compare(t, tree(t, mounted["all"].HostPath), ". 1777", "..data -> T", "T 755", "a -> ..data/a", "user -> ..data/user", "who -> ..data/who",
		"T/a 440 1", "T/user 440 u", "T/who 755", "T/who/uid 444 "+string(uid))

	// Labels change under a running pod.
	pod.Labels = map[string]string{"app": "web", "stage": "canary"}
	must(t, m.Refresh(t.Context(), pod))
	if b, _ := os.ReadFile(filepath.Join(mounted["down"].HostPath, "labels")); string(b) != "app=\"web\"\nstage=\"canary\"" {
		t.Errorf("labels %q", b)
	}
	// What is on the disk says nothing of what is in them.
	must(t, m.unmountForTest(t))
	must(t, filepath.WalkDir(m.dir, func(path string, d fs.DirEntry, err error) error {
		must(t, err)
		if d.Type().IsRegular() && !strings.HasSuffix(path, recordSuffix) {
			t.Errorf("on the disk: %s", path)
		}
		return nil
	}))
	// As after a reboot: everything is made again.
	_, err = m.SetUp(t.Context(), pod)
	must(t, err)
	if b, _ := os.ReadFile(filepath.Join(mounted["keys"].HostPath, "password")); string(b) != "p" {
		t.Errorf("password %q", b)
	}
	must(t, m.TearDown(t.Context(), uid))
	if n := mountsAt(t, m, m.dir); n != 0 {
		t.Errorf("%d mounts left", n)
	}
}

func (m *Manager) unmountForTest(t *testing.T) error {
	folder, err := m.podFolder(uid, false)
	must(t, err)
	defer folder.Close()
	return m.unmountAll(t.Context(), folder)
}

func TestTokensNeedAControlPlane(t *testing.T) {
	m, _ := withObjects(t)
	v := v1.Volume{Name: "v", VolumeSource: v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{Sources: []v1.VolumeProjection{
		{ServiceAccountToken: &v1.ServiceAccountTokenProjection{Path: "token"}}}}}}
	if _, err := m.SetUp(t.Context(), podWith(v)); !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), "control plane") {
		t.Errorf("%v", err)
	}
	must(t, m.TearDown(t.Context(), uid))
}

func TestContentOfAGroup(t *testing.T) {
	m, o := withObjects(t)
	o.put(configMapOf("settings", map[string]string{"a": "1"}), secretOf("keys", map[string]string{"k": "v"}))
	keys := secretVolume("keys", "keys")
	keys.Secret.DefaultMode = new(int32(0o400))
	pod := podWith(configVolume("settings", "settings", v1.KeyToPath{Key: "a", Path: "d/a"}), keys)
	pod.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: new(int64(2000))}
	mounted, err := m.SetUp(t.Context(), pod)
	must(t, err)
	compare(t, tree(t, mounted["settings"].HostPath), ". 2777 :2000", "..data -> T :2000", "T 2755 :2000", "T/d 2755 :2000", "T/d/a 644 :2000 1", "d -> ..data/d :2000")
	compare(t, tree(t, mounted["keys"].HostPath), ". 3777 :2000", "..data -> T :2000", "T 2755 :2000", "T/k 440 :2000 v", "k -> ..data/k :2000")
	must(t, m.TearDown(t.Context(), uid))
}

// Other volumes are mounted within one that is read-only.
func TestNestedMountPoints(t *testing.T) {
	m, o := withObjects(t)
	o.put(configMapOf("settings", map[string]string{"a": "1"}))
	pod := podWith(configVolume("settings", "settings"), empty("cache", "", ""), empty("other", "", ""))
	pod.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{
		{Name: "settings", MountPath: "/etc/app/"}, {Name: "cache", MountPath: "etc/app/var/cache"}, {Name: "other", MountPath: "/etc/apple"},
	}
	mounted, err := m.SetUp(t.Context(), pod)
	must(t, err)
	compare(t, tree(t, mounted["settings"].HostPath), ". 777", "..data -> T", "T 755", "T/a 644 1", "a -> ..data/a", "var 755", "var/cache 755")
	o.put(configMapOf("settings", map[string]string{"b": "1"}))
	must(t, m.Refresh(t.Context(), pod))
	compare(t, tree(t, mounted["settings"].HostPath), ". 777", "..data -> T", "T 755", "T/b 644 1", "b -> ..data/b", "var 755", "var/cache 755")
}

// A kill between any two steps of a change leaves one of these behind.
func TestHalfProjected(t *testing.T) {
	for name, leave := range map[string]func(dir string){
		"a new folder, half written": func(dir string) {
			must(t, os.MkdirAll(dir+"/..2026_01_01_00_00_00.x", 0o755))
			must(t, os.WriteFile(dir+"/..2026_01_01_00_00_00.x/a", nil, 0o600))
		},
		"the new link":          func(dir string) { must(t, os.Symlink("..2026_01_01_00_00_00.x", dir+"/..data_tmp")) },
		"no link of the user's": func(dir string) { must(t, os.Remove(dir+"/a")) },
		"a link too many":       func(dir string) { must(t, os.Symlink("..data/z", dir+"/z")) },
		"files without content": func(dir string) { must(t, os.Truncate(dir+"/..data/a", 0)) },
		"no folder": func(dir string) {
			to, err := os.Readlink(dir + "/..data")
			must(t, err)
			must(t, os.RemoveAll(filepath.Join(dir, to)))
		},
		"no data link": func(dir string) { must(t, os.Remove(dir+"/..data")) },
	} {
		t.Run(name, func(t *testing.T) {
			m, o := withObjects(t)
			o.put(configMapOf("settings", map[string]string{"a": "1"}))
			pod := podWith(configVolume("v", "settings"))
			mounted, err := m.SetUp(t.Context(), pod)
			must(t, err)
			leave(mounted["v"].HostPath)
			_, err = m.SetUp(t.Context(), pod)
			must(t, err)
			compare(t, tree(t, mounted["v"].HostPath), ". 777", "..data -> T", "T 755", "a -> ..data/a", "T/a 644 1")
			must(t, m.TearDown(t.Context(), uid))
		})
	}
}

// A privileged container put links where the agent writes and removes
// (CVE-2017-1002102): nothing of the host is written to or removed.
func TestHostileVolume(t *testing.T) {
	precious := realTemp(t)
	keep := filepath.Join(precious, "a")
	for name, do := range map[string]func(dir string){
		"data leads out": func(dir string) {
			must(t, os.Remove(dir+"/..data"))
			must(t, os.Symlink(precious, dir+"/..data"))
		},
		"data goes up": func(dir string) {
			must(t, os.Remove(dir+"/..data"))
			must(t, os.Symlink("..", dir+"/..data"))
		},
		"the folder is a link": func(dir string) {
			to, err := os.Readlink(dir + "/..data")
			must(t, err)
			must(t, os.RemoveAll(filepath.Join(dir, to)))
			must(t, os.Symlink(precious, filepath.Join(dir, to)))
		},
		"a name is a link": func(dir string) {
			must(t, os.Remove(dir+"/a"))
			must(t, os.Symlink(keep, dir+"/a"))
		},
		"a link of the agent's kind": func(dir string) { must(t, os.Symlink(precious, dir+"/..old")) },
		"a file is a link": func(dir string) {
			must(t, os.Remove(dir+"/..data/a"))
			must(t, os.Symlink(keep, dir+"/..data/a"))
		},
		"data is a folder": func(dir string) {
			must(t, os.Remove(dir+"/..data"))
			must(t, os.Mkdir(dir+"/..data", 0o755))
			must(t, os.Symlink(precious, dir+"/..data/x"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, o := withObjects(t)
			must(t, os.WriteFile(keep, []byte("precious"), 0o600))
			o.put(configMapOf("settings", map[string]string{"a": "1"}))
			pod := podWith(configVolume("v", "settings"))
			pod.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: new(int64(2000))}
			mounted, err := m.SetUp(t.Context(), pod)
			must(t, err)
			do(mounted["v"].HostPath)
			o.put(configMapOf("settings", map[string]string{"a": "22"}))
			// A volume that was broken on purpose may be refused, for good or not.
			err = m.Refresh(t.Context(), pod)
			t.Log("refresh:", err)
			must(t, m.TearDown(t.Context(), uid))
			if b, err := os.ReadFile(keep); err != nil || string(b) != "precious" || stat(t, keep).Gid != 0 || stat(t, precious).Gid != 0 {
				t.Errorf("the host's file: %q, %v", b, err)
			}
		})
	}
}

func TestPathsThatLeadOut(t *testing.T) {
	long := strings.Repeat("x", 256)
	for _, p := range []string{"", ".", "..", "../x", "a/../b", "/a", "a//b", "a/", "..x", "..data", "a\x00b", long, strings.Repeat("d/", 2100) + "f"} {
		if err := (payload{p: {}}).check(); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("%.20q: %v", p, err)
		}
	}
	for _, p := range []string{"a", ".a", "a/b.c", "a..b", "a/..b"} {
		if err := (payload{p: {}}).check(); err != nil {
			t.Errorf("%q: %v", p, err)
		}
	}
	if err := (payload{"a": {}, "a/b": {}}).check(); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("a file and a folder: %v", err)
	}
	// A key that came by other ways than a validated manifest.
	m, o := withObjects(t)
	o.put(configMapOf("evil", map[string]string{"../../escape": "x"}))
	if _, err := m.SetUp(t.Context(), podWith(configVolume("v", "evil"))); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("%v", err)
	}
	must(t, m.TearDown(t.Context(), uid))
}

// Whoever reads while the object changes over and over sees one version whole.
func TestReadersNeverSeeAHalf(t *testing.T) {
	m, o := withObjects(t)
	version := func(i int) *v1.ConfigMap {
		data := map[string]string{}
		for k := range 5 {
			data[fmt.Sprint("k", k)] = fmt.Sprint(i)
		}
		return configMapOf("settings", data)
	}
	o.put(version(0))
	pod := podWith(configVolume("v", "settings"))
	mounted, err := m.SetUp(t.Context(), pod)
	must(t, err)
	dir := mounted["v"].HostPath
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 1; i <= 300; i++ {
			o.put(version(i))
			if err := m.Refresh(t.Context(), pod); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	reads := 0
	for running := true; running || reads == 0; {
		select {
		case <-done:
			running = false
		default:
		}
		// A program that reads all files takes the folder once, as ..data is.
		root, err := os.OpenRoot(filepath.Join(dir, dataLink))
		if errors.Is(err, fs.ErrNotExist) {
			continue // between following the link and opening what it led to
		}
		must(t, err)
		seen := map[string]bool{}
		for k := range 5 {
			b, err := root.ReadFile(fmt.Sprint("k", k))
			if errors.Is(err, fs.ErrNotExist) {
				seen = nil // this version is gone meanwhile, as a whole
				break
			}
			must(t, err)
			seen[string(b)] = true
			if len(b) == 0 {
				t.Fatal("an empty file")
			}
		}
		must(t, root.Close())
		if len(seen) > 1 {
			t.Fatalf("a mixture: %v", slices.Collect(maps.Keys(seen)))
		}
		// And the names are there, always.
		if _, err := os.Lstat(filepath.Join(dir, "k0")); err != nil {
			t.Fatal(err)
		}
		reads++
	}
	if b, err := os.ReadFile(filepath.Join(dir, "k4")); err != nil || string(b) != "300" {
		t.Errorf("%q %v", b, err)
	}
}

func TestRefreshLeavesOthersAlone(t *testing.T) {
	m, o := withObjects(t)
	o.put(configMapOf("settings", map[string]string{"a": "1"}))
	pod := podWith(configVolume("v", "settings"), empty("data", "", ""))
	must(t, m.Refresh(t.Context(), pod))
	if _, err := os.Lstat(filepath.Join(m.dir, string(uid))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("made something for a pod that is not set up: %v", err)
	}
	mounted, err := m.SetUp(t.Context(), pod)
	must(t, err)
	must(t, os.Chmod(mounted["data"].HostPath, 0o700))
	must(t, m.Refresh(t.Context(), pod))
	if st := stat(t, mounted["data"].HostPath); st.Mode&0o777 != 0o700 {
		t.Errorf("mode %o", st.Mode)
	}
	var none *v1.Pod = &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "../x"}}
	must(t, m.Refresh(t.Context(), none))
	must(t, m.TearDown(t.Context(), uid))
}
