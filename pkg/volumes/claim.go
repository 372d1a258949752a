package volumes

import (
	"context"
	"path/filepath"
	"slices"
	"strconv"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// claims are volumes that a PersistentVolume provides, which is bound to a claim
// of the pod's namespace. Binding is the business of others.
type claims struct {
	mounter Mounter
	objects Objects
	matches func(*v1.NodeSelector) bool
	podsDir string
}

func (claims) TearDown(context.Context, Record) error { return nil }
func (claims) Record(*v1.Volume) Record               { return Record{Foreign: true} }

// persistentVolumeClaim names its claim.
type persistentVolumeClaim struct{ claims }

func (persistentVolumeClaim) Name() string              { return "persistentVolumeClaim" }
func (persistentVolumeClaim) Plugin() string            { return "kubernetes.io~persistent-volume-claim" }
func (persistentVolumeClaim) Handles(v *v1.Volume) bool { return v.PersistentVolumeClaim != nil }

func (k persistentVolumeClaim) SetUp(ctx context.Context, r Request) (Mounted, error) {
	s := r.Volume.PersistentVolumeClaim
	claim, err := k.objects.PersistentVolumeClaim(r.Pod.Namespace, s.ClaimName)
	if err != nil {
		return Mounted{}, notFound("persistentvolumeclaim", s.ClaimName, err)
	}
	return k.provide(ctx, r, k.Name(), claim, s.ReadOnly)
}

// ephemeral has a claim of its own, which is made for the pod and goes with it.
type ephemeral struct{ claims }

func (ephemeral) Name() string              { return "ephemeral" }
func (ephemeral) Plugin() string            { return "kubernetes.io~ephemeral" }
func (ephemeral) Handles(v *v1.Volume) bool { return v.Ephemeral != nil }

func (k ephemeral) SetUp(ctx context.Context, r Request) (Mounted, error) {
	name := r.Pod.Name + "-" + r.Volume.Name
	claim, err := k.objects.PersistentVolumeClaim(r.Pod.Namespace, name)
	if err != nil {
		return Mounted{}, notFound("persistentvolumeclaim", name, err)
	}
	// Somebody else's claim of that name is not the pod's to use.
	if !metav1.IsControlledBy(claim, r.Pod) {
		return Mounted{}, errdefs.Errorf(errdefs.ErrTransient, "PVC %s/%s was not created for pod %s/%s (pod is not owner)",
			claim.Namespace, claim.Name, r.Pod.Namespace, r.Pod.Name)
	}
	return k.provide(ctx, r, k.Name(), claim, false)
}

// provide sets up the volume that a claim is bound to.
func (k claims) provide(ctx context.Context, r Request, kind string, claim *v1.PersistentVolumeClaim, readOnly bool) (Mounted, error) {
	pv, err := k.bound(claim)
	if err != nil {
		return Mounted{}, err
	}
	block := pv.Spec.VolumeMode != nil && *pv.Spec.VolumeMode == v1.PersistentVolumeBlock
	mounted, mapped := uses(r.Pod, r.Volume.Name)
	switch affinity := pv.Spec.NodeAffinity; {
	case block && mounted:
		return Mounted{}, errdefs.Errorf(errdefs.ErrInvalid, "volume %s has volumeMode Block, but is specified in volumeMounts", r.Volume.Name)
	case !block && mapped:
		return Mounted{}, errdefs.Errorf(errdefs.ErrInvalid, "volume %s has volumeMode Filesystem, but is specified in volumeDevices", r.Volume.Name)
	case affinity != nil && affinity.Required != nil && !k.matches(affinity.Required):
		return Mounted{}, errdefs.Errorf(errdefs.ErrTransient, "PersistentVolume %s: no matching NodeSelectorTerms: it is on another node", pv.Name)
	}
	out := Mounted{Name: r.Volume.Name, Kind: kind, ReadOnly: readOnly, HostPath: filepath.Join(r.Folder.path, r.Volume.Name), Group: volumeGroup(pv)}
	switch src := &pv.Spec.PersistentVolumeSource; {
	case src.HostPath != nil && !block:
		out.HostPath, err = hostPathOf(src.HostPath)
	case src.Local != nil && block:
		out.Block = true
		out.HostPath, err = check(filepath.Clean(src.Local.Path), v1.HostPathBlockDev)
	case src.Local != nil:
		out.Relabel = true
		err = k.local(r, src.Local, pv.Spec.MountOptions, readOnly)
	case src.NFS != nil && !block:
		out.ReadOnly = readOnly || src.NFS.ReadOnly
		err = mountNFS(ctx, k.mounter, r, src.NFS, pv.Spec.MountOptions, out.ReadOnly)
	default:
		err = errdefs.Errorf(errdefs.ErrInvalid, "PersistentVolume %s: this node provides hostPath, local and nfs volumes, and block devices of local ones", pv.Name)
	}
	return out, err
}

// annotationGroup names the group that may use a PersistentVolume. What is no
// number is ignored, as by kubelet.
const annotationGroup = "pv.beta.kubernetes.io/gid"

func volumeGroup(pv *v1.PersistentVolume) *int64 {
	gid, err := strconv.ParseInt(pv.Annotations[annotationGroup], 10, 64)
	if err != nil {
		return nil
	}
	return &gid
}

// Groups are those that a pod's processes need for its volumes, sorted.
func Groups(mounted map[string]Mounted) []int64 {
	var out []int64
	for _, m := range mounted {
		if m.Group != nil {
			out = append(out, *m.Group)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// bound is the volume that a claim is bound to, by the word of both.
func (k claims) bound(claim *v1.PersistentVolumeClaim) (*v1.PersistentVolume, error) {
	name := claim.Spec.VolumeName
	if claim.DeletionTimestamp != nil {
		return nil, errdefs.Errorf(errdefs.ErrTransient, "error processing PVC %s/%s: PVC is being deleted", claim.Namespace, claim.Name)
	}
	if claim.Status.Phase != v1.ClaimBound || name == "" {
		return nil, errdefs.Errorf(errdefs.ErrTransient, "error processing PVC %s/%s: PVC is not bound", claim.Namespace, claim.Name)
	}
	pv, err := k.objects.PersistentVolume(name)
	if err != nil {
		return nil, notFound("persistentvolume", name, err)
	}
	if ref := pv.Spec.ClaimRef; ref == nil || ref.Namespace != claim.Namespace || ref.Name != claim.Name || ref.UID != "" && ref.UID != claim.UID {
		return nil, errdefs.Errorf(errdefs.ErrTransient, "PersistentVolume %s is bound to another claim than %s/%s", name, claim.Namespace, claim.Name)
	}
	return pv, nil
}

// uses says how containers use a volume.
func uses(p *v1.Pod, volume string) (mounted, mapped bool) {
	for c := range containers(p) {
		for _, m := range c.VolumeMounts {
			mounted = mounted || m.Name == volume
		}
		for _, d := range c.VolumeDevices {
			mapped = mapped || d.Name == volume
		}
	}
	return mounted, mapped
}
