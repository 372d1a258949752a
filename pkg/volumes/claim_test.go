package volumes

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

func claimVolume(name, claim string) v1.Volume {
	return v1.Volume{Name: name, VolumeSource: v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}}
}

// pair is a claim and the volume that it is bound to.
func pair(name string, src v1.PersistentVolumeSource) (*v1.PersistentVolumeClaim, *v1.PersistentVolume) {
	c := &v1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: "c-1"}}
	c.Spec.VolumeName, c.Status.Phase = "pv-"+name, v1.ClaimBound
	pv := &v1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-" + name}}
	pv.Spec.PersistentVolumeSource = src
	pv.Spec.ClaimRef = &v1.ObjectReference{Namespace: "default", Name: name, UID: "c-1"}
	return c, pv
}

func local(path string) v1.PersistentVolumeSource {
	return v1.PersistentVolumeSource{Local: &v1.LocalVolumeSource{Path: path}}
}

func onRack(value string) *v1.VolumeNodeAffinity {
	return &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{{
		MatchExpressions: []v1.NodeSelectorRequirement{{Key: "rack", Operator: v1.NodeSelectorOpIn, Values: []string{value}}}}}}}
}

type claimCase struct {
	src    v1.PersistentVolumeSource
	change func(*v1.PersistentVolumeClaim, *v1.PersistentVolume, *v1.Pod)
	err    string // empty: the folder is there
	kind   error
}

func claimCases(dir string) map[string]claimCase {
	hostPathSource := v1.PersistentVolumeSource{HostPath: &v1.HostPathVolumeSource{Path: dir}}
	return map[string]claimCase{
		"hostPath": {src: hostPathSource},
		"local":    {src: local(dir)},
		"local affinity": {src: local(dir), change: func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume, _ *v1.Pod) {
			pv.Spec.NodeAffinity = onRack("1")
		}},
		"another node": {src: local(dir), change: func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume, _ *v1.Pod) {
			pv.Spec.NodeAffinity = onRack("2")
		},
			err: "PersistentVolume pv-c: no matching NodeSelectorTerms: it is on another node", kind: errdefs.ErrTransient},
		"not bound": {src: local(dir), change: func(c *v1.PersistentVolumeClaim, _ *v1.PersistentVolume, _ *v1.Pod) { c.Status.Phase = v1.ClaimPending },
			err: "error processing PVC default/c: PVC is not bound", kind: errdefs.ErrTransient},
		"going": {src: local(dir), change: func(c *v1.PersistentVolumeClaim, _ *v1.PersistentVolume, _ *v1.Pod) {
			c.DeletionTimestamp = &metav1.Time{}
		},
			err: "error processing PVC default/c: PVC is being deleted", kind: errdefs.ErrTransient},
		"another's": {src: local(dir), change: func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume, _ *v1.Pod) { pv.Spec.ClaimRef.UID = "c-2" },
			err: "PersistentVolume pv-c is bound to another claim than default/c", kind: errdefs.ErrTransient},
		"no claim": {src: local(dir), change: func(_ *v1.PersistentVolumeClaim, _ *v1.PersistentVolume, p *v1.Pod) {
			p.Spec.Volumes[0].PersistentVolumeClaim.ClaimName = "none"
		}, err: `persistentvolumeclaim "none" not found`, kind: errdefs.ErrTransient},
		"no volume": {src: local(dir), change: func(c *v1.PersistentVolumeClaim, _ *v1.PersistentVolume, _ *v1.Pod) { c.Spec.VolumeName = "none" },
			err: `persistentvolume "none" not found`, kind: errdefs.ErrTransient},
		"another kind": {src: v1.PersistentVolumeSource{CSI: &v1.CSIPersistentVolumeSource{}},
			err: "this node provides hostPath, local and nfs volumes", kind: errdefs.ErrInvalid},
		"no folder":       {src: local(dir + "/none"), err: "no such file or directory", kind: errdefs.ErrTransient},
		"a file":          {src: local(dir + "/file"), err: "is not a directory", kind: errdefs.ErrTransient},
		"up":              {src: local(dir + "/../x"), err: "must be absolute", kind: errdefs.ErrInvalid},
		"a block device":  {src: local(dir + "/block"), err: "claim it with volumeMode Block", kind: errdefs.ErrInvalid},
		"a command":       {src: local(dir + "/$(touch " + dir + "/pwned)"), err: "no such file or directory", kind: errdefs.ErrTransient},
		"another command": {src: local("/x;touch " + dir + "/pwned&&"), err: "no such file or directory", kind: errdefs.ErrTransient},
		"mount options": {src: local(dir), change: func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume, _ *v1.Pod) {
			pv.Spec.MountOptions = []string{"noexec", "nodev"}
		}},
		"mount options it cannot": {src: local(dir), change: func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume, _ *v1.Pod) {
			pv.Spec.MountOptions = []string{"size=1"}
		},
			err: `mount option "size=1"`, kind: errdefs.ErrInvalid},
		"block, mounted": {src: local(dir + "/block"), change: func(_ *v1.PersistentVolumeClaim, pv *v1.PersistentVolume, _ *v1.Pod) {
			pv.Spec.VolumeMode = new(v1.PersistentVolumeBlock)
		}, err: "volume v has volumeMode Block, but is specified in volumeMounts", kind: errdefs.ErrInvalid},
	}
}

// TestGroupOfVolume: the group in a volume's annotation is one of the pod's.
func TestGroupOfVolume(t *testing.T) {
	dir := realTemp(t)
	for text, want := range map[string][]int64{"": nil, "1234": {1234}, "staff": nil} {
		m, o := withObjects(t)
		c, pv := pair("c", local(dir))
		pv.Annotations = map[string]string{"pv.beta.kubernetes.io/gid": text}
		o.put(c, pv)
		pod := podWith(claimVolume("v", "c"), claimVolume("w", "c"))
		mounted, err := m.SetUp(t.Context(), pod)
		must(t, err)
		if got := Groups(mounted); !reflect.DeepEqual(got, want) {
			t.Errorf("annotation %q: groups %v, want %v", text, got, want)
		}
		must(t, m.TearDown(t.Context(), uid))
	}
}

func TestClaims(t *testing.T) {
	dir := realTemp(t)
	must(t, os.WriteFile(dir+"/data", []byte("d"), 0o600))
	must(t, os.WriteFile(dir+"/file", nil, 0o600))
	must(t, unix.Mknod(dir+"/block", unix.S_IFBLK|0o600, int(unix.Mkdev(7, 250))))
	for name, tc := range claimCases(dir) {
		t.Run(name, func(t *testing.T) {
			m, o := withObjects(t)
			c, pv := pair("c", tc.src)
			pod := podWith(claimVolume("v", "c"))
			if tc.change != nil {
				tc.change(c, pv, pod)
			}
			o.put(c, pv)
			mounted, err := m.SetUp(t.Context(), pod)
			if tc.err != "" {
				if !errors.Is(err, tc.kind) || !strings.HasPrefix(err.Error(), `MountVolume.SetUp failed for volume "v" : `) || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("%v, want %s", err, tc.err)
				}
			} else {
				must(t, err)
				before := mountsAt(t, m, m.dir)
				if again, err := m.SetUp(t.Context(), pod); err != nil || !reflect.DeepEqual(again, mounted) || mountsAt(t, m, m.dir) != before {
					t.Errorf("again: %+v, %v, %d mounts", again, err, mountsAt(t, m, m.dir))
				}
				if got := read(t, mounted["v"].HostPath, "data"); got != "d" {
					t.Errorf("%q", got)
				}
				list, err := m.List()
				if err != nil || len(list) != 1 || list[0].Used != -1 || list[0].Kind != "persistentVolumeClaim" || list[0].Path != mounted["v"].HostPath {
					t.Errorf("list %+v, %v", list, err)
				}
				if usage, err := m.Usage(t.Context(), uid); err != nil || len(usage) != 0 {
					t.Errorf("the pod is charged for what is not its own: %+v, %v", usage, err)
				}
			}
			must(t, m.TearDown(t.Context(), uid))
			if n := mountsAt(t, m, m.dir); n != 0 {
				t.Errorf("%d mounts left", n)
			}
			if got := read(t, dir, "data"); got != "d" {
				t.Errorf("the volume's file: %q", got)
			}
			if _, err := os.Lstat(dir + "/pwned"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a path was run as a command: %v", err)
			}
		})
	}
}

func TestReadOnlyClaim(t *testing.T) {
	m, o := withObjects(t)
	c, pv := pair("c", local(realTemp(t)))
	o.put(c, pv)
	pod := podWith(claimVolume("v", "c"))
	pod.Spec.Volumes[0].PersistentVolumeClaim.ReadOnly = true
	mounted, err := m.SetUp(t.Context(), pod)
	must(t, err)
	if err := os.WriteFile(mounted["v"].HostPath+"/x", nil, 0o600); !errors.Is(err, unix.EROFS) || !mounted["v"].ReadOnly {
		t.Errorf("%+v: %v", mounted["v"], err)
	}
	must(t, m.TearDown(t.Context(), uid))
}

func TestBlockClaim(t *testing.T) {
	m, o := withObjects(t)
	dir := realTemp(t)
	must(t, unix.Mknod(dir+"/block", unix.S_IFBLK|0o600, int(unix.Mkdev(7, 250))))
	must(t, os.Symlink("block", dir+"/link"))
	c, pv := pair("c", local(dir+"/link"))
	pv.Spec.VolumeMode = new(v1.PersistentVolumeBlock)
	o.put(c, pv)
	pod := podWith(claimVolume("v", "c"))
	pod.Spec.Containers[0].VolumeMounts = nil
	pod.Spec.Containers[0].VolumeDevices = []v1.VolumeDevice{{Name: "v", DevicePath: "/dev/xvda"}}
	mounted, err := m.SetUp(t.Context(), pod)
	must(t, err)
	if got, err := Devices(pod, &pod.Spec.Containers[0], mounted); err != nil || !reflect.DeepEqual(got, []string{dir + "/block:/dev/xvda:rwm"}) {
		t.Errorf("%v %v", got, err)
	}
	pv.Spec.VolumeMode = nil
	if _, err := m.SetUp(t.Context(), pod); err == nil || !strings.Contains(err.Error(), "volume v has volumeMode Filesystem, but is specified in volumeDevices") {
		t.Errorf("%v", err)
	}
	must(t, m.TearDown(t.Context(), uid))
}

func TestEphemeralClaim(t *testing.T) {
	m, o := withObjects(t)
	dir := realTemp(t)
	c, pv := pair("web-scratch", local(dir))
	o.put(c, pv)
	pod := podWith(v1.Volume{Name: "scratch", VolumeSource: v1.VolumeSource{Ephemeral: &v1.EphemeralVolumeSource{VolumeClaimTemplate: &v1.PersistentVolumeClaimTemplate{}}}})
	if _, err := m.SetUp(t.Context(), pod); !errors.Is(err, errdefs.ErrTransient) || !strings.Contains(err.Error(), "PVC default/web-scratch was not created for pod default/web (pod is not owner)") {
		t.Errorf("somebody else's claim: %v", err)
	}
	c.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "web", UID: uid, Controller: new(true)}}
	mounted, err := m.SetUp(t.Context(), pod)
	must(t, err)
	must(t, os.WriteFile(mounted["scratch"].HostPath+"/x", nil, 0o600))
	must(t, m.TearDown(t.Context(), uid))
	if _, err := os.Lstat(dir + "/x"); err != nil {
		t.Error(err)
	}
}

func TestFSGroupOfALocalVolume(t *testing.T) {
	dir := realTemp(t)
	outside := realTemp(t)
	must(t, os.MkdirAll(dir+"/d/e", 0o700))
	must(t, os.WriteFile(dir+"/d/f", nil, 0o600))
	must(t, os.WriteFile(outside+"/f", nil, 0o600))
	must(t, os.Symlink(outside+"/f", dir+"/d/link"))
	must(t, os.Mkdir(dir+"/mount", 0o700))
	must(t, unix.Mount(outside, dir+"/mount", "", unix.MS_BIND, ""))
	defer func() { must(t, unix.Unmount(dir+"/mount", 0)) }()

	m, o := withObjects(t)
	c, pv := pair("c", local(dir))
	o.put(c, pv)
	pod := podWith(claimVolume("v", "c"))
	pod.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: new(int64(2000))}
	setUp := func(policy v1.PodFSGroupChangePolicy) {
		t.Helper()
		pod.Spec.SecurityContext.FSGroupChangePolicy = &policy
		_, err := m.SetUp(t.Context(), pod)
		must(t, err)
		must(t, m.TearDown(t.Context(), uid))
	}
	expect := func(path string, gid, mode uint32) {
		t.Helper()
		if st := stat(t, path); st.Gid != gid || st.Mode&0o7777 != mode {
			t.Errorf("%s: group %d mode %o, want %d %o", path, st.Gid, st.Mode&0o7777, gid, mode)
		}
	}
	setUp(v1.FSGroupChangeOnRootMismatch)
	expect(dir, 2000, 0o2775)
	expect(dir+"/d", 2000, 0o2770)
	expect(dir+"/d/e", 2000, 0o2770)
	expect(dir+"/d/f", 2000, 0o660)
	expect(dir+"/d/link", 2000, 0o777)
	expect(outside+"/f", 0, 0o600)
	expect(outside, 0, stat(t, outside).Mode&0o7777)

	must(t, os.Chown(dir+"/d/f", 0, 0))
	setUp(v1.FSGroupChangeOnRootMismatch)
	expect(dir+"/d/f", 0, 0o660) // the top folder is right, so nothing is looked at
	setUp(v1.FSGroupChangeAlways)
	expect(dir+"/d/f", 2000, 0o660)
	must(t, os.Chmod(dir, 0o700))
	must(t, os.Chown(dir+"/d/f", 0, 0))
	setUp(v1.FSGroupChangeOnRootMismatch)
	expect(dir+"/d/f", 2000, 0o660)

	// Another pod has it: its group stays.
	other := pod.DeepCopy()
	other.UID = "0a1b-33"
	_, err := m.SetUp(t.Context(), other)
	must(t, err)
	pod.Spec.SecurityContext.FSGroup = new(int64(3000))
	setUp(v1.FSGroupChangeAlways)
	expect(dir, 2000, 0o2770)
	must(t, m.TearDown(t.Context(), other.UID))
	setUp(v1.FSGroupChangeAlways)
	expect(dir, 3000, 0o2770)
}

// helper is a mount table that notes down what mount(8) would be told.
type helper struct {
	Mounter
	calls []string
}

func (h *helper) MountHelper(_ context.Context, source, target, fstype string, options []string) error {
	h.calls = append(h.calls, strings.Join([]string{fstype, source, strings.Join(options, ",")}, " "))
	return h.Mounter.Mount("tmpfs", target, "tmpfs", nil)
}

func TestNFS(t *testing.T) {
	_, o := withObjects(t)
	h := &helper{Mounter: kernelMounter{mountinfo: "/proc/self/mountinfo"}}
	m := New(Options{PodsDir: filepath.Join(realTemp(t), "pods"), Objects: o, Mounter: h}).init(t)
	c, pv := pair("c", v1.PersistentVolumeSource{NFS: &v1.NFSVolumeSource{Server: "fd00::1", Path: "/export/a b", ReadOnly: true}})
	pv.Spec.MountOptions = []string{"nfsvers=4.1", "hard"}
	o.put(c, pv)
	inline := v1.Volume{Name: "n", VolumeSource: v1.VolumeSource{NFS: &v1.NFSVolumeSource{Server: "nfs.example", Path: "/;touch /tmp/pwned"}}}
	pod := podWith(inline, claimVolume("v", "c"))
	for range 2 {
		mounted, err := m.SetUp(t.Context(), pod)
		must(t, err)
		if mounted["n"].ReadOnly || !mounted["v"].ReadOnly || mountsAt(t, m, mounted["n"].HostPath) != 1 {
			t.Errorf("%+v", mounted)
		}
	}
	if want := []string{"nfs nfs.example:/;touch /tmp/pwned ", "nfs [fd00::1]:/export/a b nfsvers=4.1,hard,ro"}; !reflect.DeepEqual(h.calls, want) {
		t.Errorf("%q", h.calls)
	}
	must(t, m.TearDown(t.Context(), uid))
	for _, bad := range []v1.NFSVolumeSource{{Path: "/x"}, {Server: "-osuid", Path: "/x"}, {Server: "a b", Path: "/x"}, {Server: "a,b", Path: "/x"},
		{Server: "a/b", Path: "/x"}, {Server: "a", Path: "x"}, {Server: "a", Path: "/x/../y"}, {Server: "a", Path: "/x\ny"}} {
		if _, _, err := nfsArguments(&bad, nil, false); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if _, _, err := nfsArguments(&v1.NFSVolumeSource{Server: "a", Path: "/x"}, []string{"rw suid"}, false); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("options: %v", err)
	}
}

// mount(8) is given arguments and no shell reads them.
func TestMountHelperRunsNoShell(t *testing.T) {
	needRoot(t)
	dir := realTemp(t)
	err := kernelMounter{}.MountHelper(t.Context(), "127.0.0.1:/$(touch "+dir+"/pwned);touch "+dir+"/pwned", dir, "nodeagent-test", []string{"ro"})
	if !errors.Is(err, errdefs.ErrTransient) || !strings.Contains(err.Error(), "nodeagent-test") {
		t.Errorf("%v", err)
	}
	if _, err := os.Lstat(dir + "/pwned"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
