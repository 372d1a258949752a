package volumes

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

func TestContainerMounts(t *testing.T) {
	pod := podWith(empty("a", "", ""), empty("b", "", ""), empty("i", "", ""), empty("d", "", ""))
	env := map[string]string{"UP": "..", "EMPTY": "", "DIR": "logs"}
	lookup := func(name string) (string, bool) { v, ok := env[name]; return v, ok }
	mounted := map[string]Mounted{
		"a": {Name: "a", HostPath: "/host/a", Relabel: true},
		"b": {Name: "b", HostPath: "/host/b", ReadOnly: true},
		"i": {Name: "i", Image: true, ReadOnly: true},
		"d": {Name: "d", HostPath: "/dev/loop9", Block: true},
	}
	ptr := func(p v1.MountPropagationMode) *v1.MountPropagationMode { return &p }
	yes := true
	enabled, maybe := v1.RecursiveReadOnlyEnabled, v1.RecursiveReadOnlyIfPossible
	m := New(Options{PodsDir: t.TempDir()})
	privileged := &v1.SecurityContext{Privileged: &yes}
	for name, tc := range map[string]struct {
		mounts   []v1.VolumeMount
		security *v1.SecurityContext
		able     bool
		want     []runtime.Mount
		err      error
	}{
		"none": {},
		"order and flags": {
			mounts: []v1.VolumeMount{{Name: "b", MountPath: "/x/"}, {Name: "a", MountPath: "rel//y"}, {Name: "a", MountPath: "/z", ReadOnly: true, MountPropagation: ptr("HostToContainer")}},
			want: []runtime.Mount{
				{Name: "b", HostPath: "/host/b", ContainerPath: "/x", ReadOnly: true, Propagation: "None"},
				{Name: "a", HostPath: "/host/a", ContainerPath: "/rel/y", Propagation: "None", SELinux: true},
				{Name: "a", HostPath: "/host/a", ContainerPath: "/z", ReadOnly: true, Propagation: "HostToContainer", SELinux: true},
			},
		},
		"bidirectional": {
			mounts: []v1.VolumeMount{{Name: "a", MountPath: "/x", MountPropagation: ptr("Bidirectional")}}, security: privileged,
			want: []runtime.Mount{{Name: "a", HostPath: "/host/a", ContainerPath: "/x", Propagation: "Bidirectional", SELinux: true}},
		},
		"bidirectional, not privileged": {mounts: []v1.VolumeMount{{Name: "a", MountPath: "/x", MountPropagation: ptr("Bidirectional")}}, err: errdefs.ErrInvalid},
		"propagation":                   {mounts: []v1.VolumeMount{{Name: "a", MountPath: "/x", MountPropagation: ptr("Up")}}, err: errdefs.ErrInvalid},
		"dots":                          {mounts: []v1.VolumeMount{{Name: "a", MountPath: "/x/../y"}}, err: errdefs.ErrInvalid},
		"colon":                         {mounts: []v1.VolumeMount{{Name: "a", MountPath: "/x:y"}}, err: errdefs.ErrInvalid},
		"no path":                       {mounts: []v1.VolumeMount{{Name: "a"}}, err: errdefs.ErrInvalid},
		"twice":                         {mounts: []v1.VolumeMount{{Name: "a", MountPath: "/x"}, {Name: "b", MountPath: "/x/"}}, err: errdefs.ErrInvalid},
		"recursive read-only, not able": {mounts: []v1.VolumeMount{{Name: "a", MountPath: "/x", ReadOnly: true, RecursiveReadOnly: &enabled}}, err: errdefs.ErrInvalid},
		"recursive read-only": {mounts: []v1.VolumeMount{{Name: "a", MountPath: "/x", ReadOnly: true, RecursiveReadOnly: &enabled}}, able: true,
			want: []runtime.Mount{{Name: "a", HostPath: "/host/a", ContainerPath: "/x", ReadOnly: true, RecursiveReadOnly: true, Propagation: "None", SELinux: true}}},
		"recursive read-only if possible": {mounts: []v1.VolumeMount{{Name: "a", MountPath: "/x", ReadOnly: true, RecursiveReadOnly: &maybe}},
			want: []runtime.Mount{{Name: "a", HostPath: "/host/a", ContainerPath: "/x", ReadOnly: true, Propagation: "None", SELinux: true}}},
		"recursive read-only, writable": {mounts: []v1.VolumeMount{{Name: "a", MountPath: "/x", RecursiveReadOnly: &enabled}}, able: true, err: errdefs.ErrInvalid},
		"recursive read-only, propagation": {
			mounts: []v1.VolumeMount{{Name: "a", MountPath: "/x", ReadOnly: true, RecursiveReadOnly: &enabled, MountPropagation: ptr("HostToContainer")}},
			able:   true, err: errdefs.ErrInvalid},
		"subPath up":               {mounts: []v1.VolumeMount{{Name: "a", MountPath: "/x", SubPath: "s/../.."}}, err: errdefs.ErrInvalid},
		"subPath absolute":         {mounts: []v1.VolumeMount{{Name: "a", MountPath: "/x", SubPath: "/s"}}, err: errdefs.ErrInvalid},
		"subPathExpr up":           {mounts: []v1.VolumeMount{{Name: "a", MountPath: "/x", SubPathExpr: "$(UP)/s"}}, err: errdefs.ErrInvalid},
		"subPathExpr without":      {mounts: []v1.VolumeMount{{Name: "a", MountPath: "/x", SubPathExpr: "$(NONE)/s"}}, err: errdefs.ErrInvalid},
		"subPathExpr with nothing": {mounts: []v1.VolumeMount{{Name: "a", MountPath: "/x", SubPathExpr: "$(EMPTY)"}}, err: errdefs.ErrInvalid},
		"image": {mounts: []v1.VolumeMount{{Name: "i", MountPath: "/x", SubPathExpr: "$(DIR)/$$(DIR)"}},
			want: []runtime.Mount{{Name: "i", ContainerPath: "/x", ReadOnly: true, Propagation: "None", Image: "sha256:1", ImageSubPath: "logs/$(DIR)"}}},
		"block":   {mounts: []v1.VolumeMount{{Name: "d", MountPath: "/x"}}, err: errdefs.ErrInvalid},
		"unknown": {mounts: []v1.VolumeMount{{Name: "c", MountPath: "/x"}}, err: errdefs.ErrInvalid},
	} {
		c := &v1.Container{Name: "main", VolumeMounts: tc.mounts, SecurityContext: tc.security}
		got, err := m.ContainerMounts(t.Context(), pod, c, mounted,
			MountOptions{Env: lookup, Images: map[string]string{"i": "sha256:1"}, RecursiveReadOnly: tc.able})
		if !errors.Is(err, tc.err) || (tc.err == nil) != (err == nil) || !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestContainerMountsOfWhatIsNotThere(t *testing.T) {
	pod := podWith(empty("a", "", ""), empty("i", "", ""), empty("d", "", ""))
	mounted := map[string]Mounted{"a": {Name: "a", HostPath: "/host/a"}, "i": {Name: "i", Image: true}, "d": {Name: "d", HostPath: "/dev/loop9", Block: true}}
	m := New(Options{PodsDir: t.TempDir()})
	c := &v1.Container{Name: "main", VolumeMounts: []v1.VolumeMount{{Name: "a", MountPath: "/x"}}}
	if _, err := m.ContainerMounts(t.Context(), pod, c, nil, MountOptions{}); !errors.Is(err, errdefs.ErrTransient) {
		t.Errorf("not set up yet: %v", err)
	}
	c.VolumeMounts[0].Name = "i"
	if _, err := m.ContainerMounts(t.Context(), pod, c, mounted, MountOptions{}); !errors.Is(err, errdefs.ErrTransient) {
		t.Errorf("the image is not there: %v", err)
	}
	c.VolumeDevices = []v1.VolumeDevice{{Name: "d", DevicePath: "/dev/xvda"}}
	if got, err := Devices(pod, c, mounted); err != nil || !reflect.DeepEqual(got, []string{"/dev/loop9:/dev/xvda:rwm"}) {
		t.Errorf("devices %v, %v", got, err)
	}
	c.VolumeDevices = []v1.VolumeDevice{{Name: "a", DevicePath: "/dev/xvda"}}
	if _, err := Devices(pod, c, mounted); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("a folder as a device: %v", err)
	}
}

// What stands in for openat2 on old kernels refuses the same ways.
func TestOpenWalk(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "a/b"), 0o755))
	must(t, os.Symlink("b", filepath.Join(dir, "a/link")))
	must(t, os.WriteFile(filepath.Join(dir, "a/file"), nil, 0o600))
	root, err := openRoot(dir)
	must(t, err)
	defer root.Close()
	const how = unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC
	for rel, want := range map[string]error{
		"a/b": nil, "a": nil, ".": nil, "a/link": unix.ENOTDIR, "a/link/x": unix.ENOTDIR, "a/file": unix.ENOTDIR, "a/none": unix.ENOENT, "../x": unix.EXDEV,
	} {
		for name, open := range map[string]func(int, string, int, uint64) (int, error){"walk": openWalk, "openat2": openat2} {
			fd, err := open(root.fd, rel, how|unix.O_NOFOLLOW, sameMount)
			if err == nil {
				must(t, unix.Close(fd))
			}
			if want == nil && err != nil || want != nil && err == nil {
				t.Errorf("%s %s: %v, want %v", name, rel, err, want)
			}
			if name == "walk" && !errors.Is(err, want) {
				t.Errorf("%s %s: %v, want %v", name, rel, err, want)
			}
		}
	}
}

func TestMountTable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mountinfo")
	must(t, os.WriteFile(file, []byte(`22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:25 / /a\040b\134c ro,nosuid - tmpfs tmpfs rw,size=4k
`), 0o600))
	got, err := kernelMounter{mountinfo: file}.List()
	must(t, err)
	want := []string{"/", `/a b\c`}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	must(t, os.WriteFile(file, []byte("garbage\n"), 0o600))
	if _, err := (kernelMounter{mountinfo: file}).List(); err == nil {
		t.Error("garbage is accepted")
	}
}
