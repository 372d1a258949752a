package volumes

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

const uid = types.UID("0a1b-22")

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newManager(t *testing.T) *Manager {
	t.Helper()
	needRoot(t)
	return New(Options{PodsDir: filepath.Join(realTemp(t), "pods"), Log: slog.New(slog.NewTextHandler(t.Output(), nil))}).init(t)
}

func (m *Manager) init(t *testing.T) *Manager {
	must(t, os.MkdirAll(m.dir, 0o750))
	return m
}

func realTemp(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	return dir
}

// podWith mounts every volume into one container.
func podWith(volumes ...v1.Volume) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: uid}}
	c := v1.Container{Name: "main"}
	for _, v := range volumes {
		c.VolumeMounts = append(c.VolumeMounts, v1.VolumeMount{Name: v.Name, MountPath: "/" + v.Name})
	}
	p.Spec.Volumes, p.Spec.Containers = volumes, []v1.Container{c}
	return p
}

func empty(name string, medium v1.StorageMedium, limit string) v1.Volume {
	e := &v1.EmptyDirVolumeSource{Medium: medium}
	if limit != "" {
		q := resource.MustParse(limit)
		e.SizeLimit = &q
	}
	return v1.Volume{Name: name, VolumeSource: v1.VolumeSource{EmptyDir: e}}
}

func host(name, path string, kind v1.HostPathType) v1.Volume {
	return v1.Volume{Name: name, VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: path, Type: &kind}}}
}

func stat(t *testing.T, path string) *syscall.Stat_t {
	t.Helper()
	fi, err := os.Lstat(path)
	must(t, err)
	return fi.Sys().(*syscall.Stat_t)
}

func TestEmptyDirOnDisk(t *testing.T) {
	m := newManager(t)
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	pod := podWith(empty("data", "", "1Mi"))
	mounted, err := m.SetUp(t.Context(), pod)
	must(t, err)
	want := filepath.Join(m.dir, string(uid), "volumes/kubernetes.io~empty-dir/data")
	if got := mounted["data"]; got != (Mounted{Name: "data", Kind: "emptyDir", HostPath: want, Relabel: true}) {
		t.Fatalf("%+v", got)
	}
	if st := stat(t, want); st.Mode&0o7777 != 0o777 || st.Uid != 0 || st.Gid != 0 {
		t.Errorf("mode %o owner %d:%d", st.Mode&0o7777, st.Uid, st.Gid)
	}
	// The pod may change what it owns; the next sandbox finds it as it was.
	must(t, os.Chmod(want, 0o700))
	must(t, os.WriteFile(filepath.Join(want, "f"), make([]byte, 8192), 0o600))
	_, err = m.SetUp(t.Context(), pod)
	must(t, err)
	if st := stat(t, want); st.Mode&0o7777 != 0o700 {
		t.Errorf("a second SetUp changed the mode to %o", st.Mode&0o7777)
	}
	list, err := m.List()
	must(t, err)
	if len(list) != 1 || list[0].Used != 8192 || list[0].Limit != 1<<20 || list[0].Path != want || list[0].PodUID != uid || list[0].Mounted {
		t.Errorf("list %+v", list)
	}
	usage, err := m.Usage(t.Context(), uid)
	must(t, err)
	if usage["data"].Used != 8192 {
		t.Errorf("usage %+v", usage)
	}
}

func TestEmptyDirOfAGroup(t *testing.T) {
	m := newManager(t)
	pod := podWith(empty("data", "", ""), empty("mem", v1.StorageMediumMemory, "1Mi"))
	gid := int64(4242)
	pod.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: &gid}
	mounted, err := m.SetUp(t.Context(), pod)
	must(t, err)
	for name, v := range mounted {
		want := uint32(0o2777)
		if name == "mem" {
			want = 0o3777 // as kubelet's
		}
		if st := stat(t, v.HostPath); st.Gid != 4242 || st.Mode&0o7777 != want {
			t.Errorf("%s: group %d mode %o", name, st.Gid, st.Mode&0o7777)
		}
	}
	must(t, m.TearDown(t.Context(), uid))
}

func TestEmptyDirInMemory(t *testing.T) {
	limit := func(p *v1.Pod, memory string) *v1.Pod {
		p.Spec.Containers[0].Resources.Limits = v1.ResourceList{"memory": resource.MustParse(memory)}
		return p
	}
	for name, tc := range map[string]struct {
		pod  *v1.Pod
		size int64
	}{
		"its own limit":      {podWith(empty("m", "Memory", "2Mi")), 2 << 20},
		"the pod's limit":    {limit(podWith(empty("m", "Memory", "")), "4Mi"), 4 << 20},
		"the smaller of two": {limit(podWith(empty("m", "Memory", "16Mi")), "4Mi"), 4 << 20},
		"half the node":      {podWith(empty("m", "Memory", "")), halfOfMemory(t)},
	} {
		t.Run(name, func(t *testing.T) {
			m := newManager(t)
			mounted, err := m.SetUp(t.Context(), tc.pod)
			must(t, err)
			path := mounted["m"].HostPath
			must(t, os.WriteFile(filepath.Join(path, "f"), make([]byte, 4096), 0o600))
			again, err := m.SetUp(t.Context(), tc.pod)
			must(t, err)
			if !reflect.DeepEqual(again, mounted) {
				t.Errorf("changed: %+v", again)
			}
			if n := mountsAt(t, m, path); n != 1 {
				t.Errorf("%d mounts", n)
			}
			if st := stat(t, path); st.Mode&0o7777 != 0o1777 {
				t.Errorf("mode %o", st.Mode&0o7777)
			}
			list, err := m.List()
			must(t, err)
			if d := list[0].Limit - tc.size; len(list) != 1 || d > 1<<20 || d < -1<<20 || list[0].Used != 4096 || !list[0].Mounted {
				t.Errorf("list %+v, want size %d", list, tc.size)
			}
			must(t, m.TearDown(t.Context(), uid))
			if n := mountsAt(t, m, path); n != 0 {
				t.Errorf("%d mounts left", n)
			}
		})
	}
}

func halfOfMemory(t *testing.T) int64 {
	t.Helper()
	var si unix.Sysinfo_t
	must(t, unix.Sysinfo(&si))
	return int64(si.Totalram) * int64(si.Unit) / 2
}

func mountsAt(t *testing.T, m *Manager, path string) int {
	t.Helper()
	all, err := m.mounter.List()
	must(t, err)
	n := 0
	for _, p := range all {
		if p == path || strings.HasPrefix(p, path+"/") {
			n++
		}
	}
	return n
}

func TestEmptyDirInHugePages(t *testing.T) {
	m := newManager(t)
	if b, err := os.ReadFile("/proc/filesystems"); err != nil || !strings.Contains(string(b), "hugetlbfs") {
		t.Skip("the kernel has no hugetlbfs")
	}
	pod := podWith(empty("h", v1.StorageMediumHugePages, ""))
	if _, err := m.SetUp(t.Context(), pod); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("no page size requested: %v", err)
	}
	pod.Spec.Containers[0].Resources.Requests = v1.ResourceList{"hugepages-2Mi": resource.MustParse("2Mi")}
	mounted, err := m.SetUp(t.Context(), pod)
	must(t, err)
	var st unix.Statfs_t
	must(t, unix.Statfs(mounted["h"].HostPath, &st))
	if st.Type != unix.HUGETLBFS_MAGIC || st.Bsize != 2<<20 {
		t.Errorf("type %#x, page size %d", st.Type, st.Bsize)
	}
	must(t, m.TearDown(t.Context(), uid))
}

func TestHostPath(t *testing.T) {
	m := newManager(t)
	dir := realTemp(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.Mkdir(at("dir"), 0o700))
	must(t, os.WriteFile(at("file"), nil, 0o600))
	must(t, os.Symlink("dir", at("link")))
	must(t, os.Symlink("nowhere", at("dangling")))
	l, err := net.Listen("unix", at("sock"))
	must(t, err)
	defer l.Close()
	must(t, unix.Mknod(at("block"), unix.S_IFBLK|0o600, int(unix.Mkdev(7, 250))))

	for _, tc := range []struct {
		path string
		kind v1.HostPathType
		want string // HostPath, or the error's end after "!" and the path
		mode uint32 // of what was made
	}{
		{at("dir"), v1.HostPathUnset, at("dir"), 0},
		{at("missing"), v1.HostPathUnset, at("missing"), 0},
		{at("link"), v1.HostPathUnset, at("dir"), 0},
		{at("file/below"), v1.HostPathUnset, "!: not a directory", 0},
		{at("dir"), v1.HostPathDirectory, at("dir"), 0},
		{at("link/"), v1.HostPathDirectory, at("dir"), 0},
		{at("file"), v1.HostPathDirectory, "! is not a directory", 0},
		{at("missing"), v1.HostPathDirectory, "! is not a directory", 0},
		{at("file/below"), v1.HostPathDirectory, "! is not a directory", 0},
		{at("new/deep"), v1.HostPathDirectoryOrCreate, at("new/deep"), unix.S_IFDIR | 0o755},
		{at("dir"), v1.HostPathDirectoryOrCreate, at("dir"), 0},
		{at("file"), v1.HostPathDirectoryOrCreate, "! is not a directory", 0},
		{at("dangling"), v1.HostPathDirectoryOrCreate, "! is not a directory", 0},
		{at("file"), v1.HostPathFile, at("file"), 0},
		{at("dir"), v1.HostPathFile, "! is not a file", 0},
		{at("newfile"), v1.HostPathFileOrCreate, at("newfile"), unix.S_IFREG | 0o644},
		{at("none/newfile"), v1.HostPathFileOrCreate, "! is not a file", 0},
		{at("dangling"), v1.HostPathFileOrCreate, "! is not a file", 0},
		{at("sock"), v1.HostPathSocket, at("sock"), 0},
		{at("file"), v1.HostPathSocket, "! is not a socket file", 0},
		{"/dev/null", v1.HostPathCharDev, "/dev/null", 0},
		{at("file"), v1.HostPathCharDev, "! is not a character device", 0},
		{at("block"), v1.HostPathBlockDev, at("block"), 0},
		{"/dev/null", v1.HostPathBlockDev, "! is not a block device", 0},
	} {
		old := unix.Umask(0o077)
		mounted, err := m.SetUp(t.Context(), podWith(host("h", tc.path, tc.kind)))
		unix.Umask(old)
		if want, fails := strings.CutPrefix(tc.want, "!"); fails {
			full := "hostPath type check failed: " + filepath.Clean(tc.path) + want
			if tc.kind == v1.HostPathUnset {
				full = strings.Replace(full, " type check failed:", "", 1)
			}
			if err == nil || !strings.HasSuffix(err.Error(), full) || !errors.Is(err, errdefs.ErrTransient) ||
				!strings.HasPrefix(err.Error(), `MountVolume.SetUp failed for volume "h" : hostPath`) {
				t.Errorf("%s as %q: %v, want %q and the volume's name", tc.path, tc.kind, err, full)
			}
			continue
		}
		if err != nil || mounted["h"].HostPath != tc.want {
			t.Errorf("%s as %q: %+v, %v", tc.path, tc.kind, mounted["h"], err)
			continue
		}
		if tc.mode != 0 {
			if st := stat(t, tc.path); st.Mode != tc.mode {
				t.Errorf("%s: mode %o, want %o", tc.path, st.Mode, tc.mode)
			}
		}
	}
	for path, kind := range map[string]v1.HostPathType{"relative": "", "/a/../b": "", "/": "Folder"} {
		if _, err := m.SetUp(t.Context(), podWith(host("h", path, kind))); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("%s as %q: %v", path, kind, err)
		}
	}
	must(t, m.TearDown(t.Context(), uid))
	for _, name := range []string{"dir", "file", "new/deep", "newfile", "sock", "block"} {
		if _, err := os.Lstat(at(name)); err != nil {
			t.Errorf("TearDown removed a path of the host: %v", err)
		}
	}
}

func TestSetUpRefuses(t *testing.T) {
	m := newManager(t)
	disk := v1.Volume{Name: "s", VolumeSource: v1.VolumeSource{GCEPersistentDisk: &v1.GCEPersistentDiskVolumeSource{PDName: "x"}}}
	_, err := m.SetUp(t.Context(), podWith(disk))
	if !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), "gcePersistentDisk is not supported") {
		t.Errorf("a kind that is not there: %v", err)
	}
	pod := podWith(disk)
	pod.Spec.Containers[0].VolumeMounts = nil
	if mounted, err := m.SetUp(t.Context(), pod); err != nil || len(mounted) != 0 {
		t.Errorf("a volume that nobody mounts: %v %v", mounted, err)
	}
	for _, name := range []string{"../x", "..", "a/b"} {
		if _, err := m.SetUp(t.Context(), podWith(empty(name, "", ""))); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("name %q: %v", name, err)
		}
		if err := m.TearDown(t.Context(), types.UID(name)); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("uid %q: %v", name, err)
		}
	}
	if _, err := m.SetUp(t.Context(), podWith(empty("a", "Paper", ""))); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("medium: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.SetUp(ctx, podWith(empty("a", "", ""))); !errors.Is(err, context.Canceled) || !errors.Is(err, errdefs.ErrTransient) {
		t.Errorf("cancelled: %v", err)
	}
}

// A kill between any two steps of SetUp leaves one of these behind.
func TestHalfDone(t *testing.T) {
	m := newManager(t)
	plugin := filepath.Join(m.dir, string(uid), "volumes/kubernetes.io~empty-dir")
	for name, leave := range map[string]func(){
		"no record content":   func() { must(t, os.WriteFile(plugin+"/data.json", nil, 0o600)) },
		"record cut short":    func() { must(t, os.WriteFile(plugin+"/data.json", []byte(`{"na`), 0o600)) },
		"unfinished record":   func() { must(t, os.WriteFile(plugin+"/.data.json", []byte("{"), 0o600)) },
		"unfinished folder":   func() { must(t, os.Mkdir(plugin+"/.data", 0o700)) },
		"mount point, bare":   func() { must(t, os.Mkdir(plugin+"/mem", 0o700)) },
		"a folder, no record": func() { must(t, os.Mkdir(plugin+"/other", 0o700)) },
	} {
		must(t, os.MkdirAll(plugin, 0o750))
		leave()
		uids, err := m.Pods()
		if err != nil || !reflect.DeepEqual(uids, []types.UID{uid}) {
			t.Errorf("%s: pods %v %v", name, uids, err)
		}
		if _, err := m.List(); err != nil {
			t.Errorf("%s: list: %v", name, err)
		}
		mounted, err := m.SetUp(t.Context(), podWith(empty("data", "", ""), empty("mem", "Memory", "1Mi")))
		if err != nil || len(mounted) != 2 {
			t.Errorf("%s: %v %v", name, mounted, err)
		}
		for range 2 {
			must(t, m.TearDown(t.Context(), uid))
		}
		if _, err := os.Lstat(filepath.Dir(plugin)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: left: %v", name, err)
		}
		if n := mountsAt(t, m, m.dir); n != 0 {
			t.Errorf("%s: %d mounts left", name, n)
		}
	}
	if uids, err := m.Pods(); err != nil || len(uids) != 0 {
		t.Errorf("pods %v %v", uids, err)
	}
}

func TestTearDownUnmountsWhatContainersMounted(t *testing.T) {
	m := newManager(t)
	mounted, err := m.SetUp(t.Context(), podWith(empty("data", "", ""), empty("mem", "Memory", "1Mi")))
	must(t, err)
	precious := realTemp(t)
	must(t, os.WriteFile(filepath.Join(precious, "keep"), nil, 0o600))
	inner := filepath.Join(mounted["data"].HostPath, "with space/inner")
	must(t, os.MkdirAll(inner, 0o755))
	must(t, unix.Mount(precious, inner, "", unix.MS_BIND, "")) // the same file system: only its mount tells
	must(t, unix.Mount("tmpfs", inner, "tmpfs", 0, ""))        // stacked
	file := filepath.Join(mounted["data"].HostPath, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, unix.Mount(filepath.Join(precious, "keep"), file, "", unix.MS_BIND, ""))

	if uids, err := m.Pods(); err != nil || len(uids) != 1 {
		t.Errorf("pods %v %v", uids, err)
	}
	must(t, m.TearDown(t.Context(), uid))
	if _, err := os.Lstat(filepath.Join(precious, "keep")); err != nil {
		t.Errorf("content of a mount was removed: %v", err)
	}
	if n := mountsAt(t, m, m.dir); n != 0 {
		t.Errorf("%d mounts left", n)
	}
	if _, err := os.Lstat(filepath.Join(m.dir, string(uid))); err != nil {
		t.Errorf("the pod's own folder is not ours to remove: %v", err)
	}
}

func TestTearDownOfABusyMount(t *testing.T) {
	m := newManager(t)
	mounted, err := m.SetUp(t.Context(), podWith(empty("data", "", ""), empty("mem", "Memory", "1Mi")))
	must(t, err)
	// A tmpfs in use goes all the same, another file system waits.
	f, err := os.Create(filepath.Join(mounted["mem"].HostPath, "open"))
	must(t, err)
	defer f.Close()
	inner := filepath.Join(mounted["data"].HostPath, "inner")
	must(t, os.Mkdir(inner, 0o755))
	must(t, unix.Mount(realTemp(t), inner, "", unix.MS_BIND, ""))
	g, err := os.Create(filepath.Join(inner, "open"))
	must(t, err)
	err = m.TearDown(t.Context(), uid)
	if !errors.Is(err, errdefs.ErrTransient) || !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), inner) {
		t.Errorf("busy: %v", err)
	}
	must(t, g.Close())
	must(t, m.TearDown(t.Context(), uid))
}

func TestTearDownFollowsNothing(t *testing.T) {
	m := newManager(t)
	mounted, err := m.SetUp(t.Context(), podWith(empty("data", "", "")))
	must(t, err)
	precious := realTemp(t)
	must(t, os.WriteFile(filepath.Join(precious, "keep"), nil, 0o600))
	data := mounted["data"].HostPath
	must(t, os.Symlink(precious, filepath.Join(data, "link")))
	must(t, os.Symlink("/", filepath.Join(data, ".json")))
	must(t, os.Symlink(precious, filepath.Join(filepath.Dir(data), "evil")))
	// Deeper than descriptors could be held open.
	deep := data
	for range 5 {
		deep = filepath.Join(deep, strings.Repeat("d/", 40))
		must(t, os.MkdirAll(deep, 0o755))
	}
	must(t, os.WriteFile(filepath.Join(deep, "f"), nil, 0o600))
	must(t, m.TearDown(t.Context(), uid))
	if _, err := os.Lstat(filepath.Join(precious, "keep")); err != nil {
		t.Errorf("a link was followed: %v", err)
	}
}

// A container that survives swaps a folder for a link in a loop while its
// volume is removed (CVE-2021-25741's shape).
func TestTearDownRacesWithASwap(t *testing.T) {
	m := newManager(t)
	precious := realTemp(t)
	must(t, os.Mkdir(filepath.Join(precious, "sub"), 0o755))
	for i := range 20 {
		must(t, os.WriteFile(filepath.Join(precious, "sub", strings.Repeat("k", i+1)), nil, 0o600))
	}
	deadline := time.Now().Add(300 * time.Millisecond)
	for round := 0; round < 20 && time.Now().Before(deadline); round++ {
		mounted, err := m.SetUp(t.Context(), podWith(empty("data", "", "")))
		must(t, err)
		data := mounted["data"].HostPath
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			a, b := filepath.Join(data, "a"), filepath.Join(data, "b")
			for {
				select {
				case <-stop:
					return
				default:
				}
				// Failures are the point: the folder is going away.
				_ = os.MkdirAll(filepath.Join(a, "sub"), 0o755)
				_ = os.Symlink(precious, b)
				_ = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
			}
		}()
		err = m.TearDown(t.Context(), uid)
		close(stop)
		<-done
		if err != nil && !errors.Is(err, errdefs.ErrTransient) {
			t.Errorf("round %d: %v", round, err)
		}
		must(t, m.TearDown(t.Context(), uid))
	}
	entries, err := os.ReadDir(filepath.Join(precious, "sub"))
	if err != nil || len(entries) != 20 {
		t.Fatalf("files beyond the volume were removed: %d left, %v", len(entries), err)
	}
}

func TestPodsDirMissing(t *testing.T) {
	m := New(Options{PodsDir: filepath.Join(t.TempDir(), "none")})
	if uids, err := m.Pods(); err != nil || len(uids) != 0 {
		t.Errorf("%v %v", uids, err)
	}
	if list, err := m.List(); err != nil || len(list) != 0 {
		t.Errorf("%v %v", list, err)
	}
	must(t, m.TearDown(t.Context(), uid))
}
