package manifest

import (
	"path/filepath"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func persistentVolumeKind() kind {
	return kind{
		apiVersion: "v1", name: "PersistentVolume", resource: "persistentvolumes", short: "pv", empty: &v1.PersistentVolume{},
		cluster: true, fields: persistentVolumeFields, nameRule: apivalidation.NameIsDNSSubdomain,
		complete: func(r Resource) { defaultPersistentVolume(r.(*v1.PersistentVolume)) }, recheckMeta: true, strictUpdate: true,
		carryOver: func(now, before, wanted Resource) {
			v, was := now.(*v1.PersistentVolume), before.(*v1.PersistentVolume)
			v.Status = was.Status
			// A reference that the manifest had and has no more is taken back.
			if v.Spec.ClaimRef == nil && wanted.(*v1.PersistentVolume).Spec.ClaimRef == nil {
				v.Spec.ClaimRef = was.Spec.ClaimRef
			}
			if is, had := v.Spec.ClaimRef, was.Spec.ClaimRef; is != nil && had != nil && is.UID == "" && is.Namespace == had.Namespace && is.Name == had.Name {
				is.UID = had.UID
			}
		},
		validate: func(now, old Resource) field.ErrorList {
			v := now.(*v1.PersistentVolume)
			errs := validatePersistentVolume(v)
			if old == nil {
				return errs
			}
			is, was := &v.Spec, &old.(*v1.PersistentVolume).Spec
			if !apiequality.Semantic.DeepEqual(is.PersistentVolumeSource, was.PersistentVolumeSource) {
				errs = append(errs, field.Forbidden(field.NewPath("spec", "persistentvolumesource"), "where a volume comes from cannot be changed; "+
					"delete the PersistentVolume and create it again"))
			}
			errs = append(errs, apivalidation.ValidateImmutableField(is.VolumeMode, was.VolumeMode, field.NewPath("volumeMode"))...)
			if was.NodeAffinity != nil {
				errs = append(errs, apivalidation.ValidateImmutableField(is.NodeAffinity, was.NodeAffinity, field.NewPath("nodeAffinity"))...)
			}
			return errs
		},
	}
}

// The status is the agent's: which claim has the volume.
var persistentVolumeFields = []typeFields{
	{of: v1.PersistentVolume{}, supported: "apiVersion kind metadata spec", serverSide: "status"},
	{of: v1.PersistentVolumeSpec{},
		supported: "capacity accessModes claimRef persistentVolumeReclaimPolicy storageClassName mountOptions volumeMode nodeAffinity",
		refused:   "volumeAttributesClassName"},
	{of: v1.PersistentVolumeSource{},
		supported: "hostPath local nfs",
		refused: "gcePersistentDisk awsElasticBlockStore glusterfs rbd iscsi cinder cephfs fc flocker flexVolume azureFile " +
			"vsphereVolume quobyte azureDisk photonPersistentDisk portworxVolume scaleIO storageos csi"},
	{of: v1.LocalVolumeSource{}, supported: "path fsType"},
	{of: v1.NFSVolumeSource{}, supported: "server path readOnly"},
	{of: v1.VolumeNodeAffinity{}, supported: "required"},
}

func defaultPersistentVolume(v *v1.PersistentVolume) {
	orDefault(&v.Status.Phase, v1.VolumePending)
	orDefault(&v.Spec.PersistentVolumeReclaimPolicy, v1.PersistentVolumeReclaimRetain)
	if v.Spec.VolumeMode == nil {
		v.Spec.VolumeMode = new(v1.PersistentVolumeFilesystem)
	}
	if h := v.Spec.HostPath; h != nil && h.Type == nil {
		h.Type = new(v1.HostPathUnset)
	}
	roundUp(v.Spec.Capacity)
}

func validatePersistentVolume(v *v1.PersistentVolume) field.ErrorList {
	spec, p := &v.Spec, field.NewPath("spec")
	errs := validateAccessModes(spec.AccessModes, p.Child("accessModes"))
	at := p.Child("capacity")
	if len(spec.Capacity) == 0 {
		errs = append(errs, field.Required(at, ""))
	}
	if _, ok := spec.Capacity[v1.ResourceStorage]; !ok || len(spec.Capacity) > 1 {
		errs = append(errs, field.NotSupported(at, spec.Capacity, []v1.ResourceName{v1.ResourceStorage}))
	}
	for name, q := range spec.Capacity {
		errs = append(errs, validatePositive(q, at.Key(string(name)))...)
		if q.Value() < 0 && q.Sign() > 0 {
			errs = append(errs, field.Invalid(at.Key(string(name)), q.String(), "is more bytes than can be counted"))
		}
	}
	if spec.PersistentVolumeReclaimPolicy != "" {
		errs = append(errs, oneOf(spec.PersistentVolumeReclaimPolicy, p.Child("persistentVolumeReclaimPolicy"),
			v1.PersistentVolumeReclaimDelete, v1.PersistentVolumeReclaimRecycle, v1.PersistentVolumeReclaimRetain)...)
	}
	if a := spec.NodeAffinity; a != nil && a.Required == nil {
		errs = append(errs, field.Required(p.Child("nodeAffinity", "required"), "must say on which nodes the volume is"))
	} else if a != nil {
		errs = append(errs, validateNodeSelector(a.Required, p.Child("nodeAffinity", "required"))...)
	}
	errs = append(errs, validatePersistentVolumeSource(spec, p)...)
	if spec.StorageClassName != "" {
		errs = append(errs, invalid(p.Child("storageClassName"), spec.StorageClassName, apivalidation.NameIsDNSSubdomain(spec.StorageClassName, false))...)
	}
	errs = append(errs, validateVolumeMode(spec.VolumeMode, p.Child("volumeMode"))...)
	if _, ok := v.Annotations[v1.MountOptionAnnotation]; ok && spec.NFS == nil {
		errs = append(errs, field.Forbidden(field.NewPath("metadata", "annotations", v1.MountOptionAnnotation), "only a nfs volume has mount options"))
	}
	return errs
}

func validatePersistentVolumeSource(spec *v1.PersistentVolumeSpec, p *field.Path) (errs field.ErrorList) {
	found := 0
	// The first one counts; the others are refused, whatever is in them.
	source := func(name string, set bool, check func(*field.Path) field.ErrorList) {
		if !set {
			return
		}
		if found++; found > 1 {
			errs = append(errs, field.Forbidden(p.Child(name), "the volume has a source already; it can have one"))
			return
		}
		errs = append(errs, check(p.Child(name))...)
	}
	source("hostPath", spec.HostPath != nil, func(at *field.Path) field.ErrorList { return validateHostPath(spec.HostPath, at) })
	source("nfs", spec.NFS != nil, func(at *field.Path) field.ErrorList { return validateNFS(spec.NFS, at) })
	source("local", spec.Local != nil, func(at *field.Path) (errs field.ErrorList) {
		switch {
		case spec.Local.Path == "":
			errs = append(errs, field.Required(at.Child("path"), ""))
		case hasBacksteps(spec.Local.Path):
			errs = append(errs, field.Invalid(at.Child("path"), spec.Local.Path, "must not contain '..'"))
		}
		if spec.NodeAffinity == nil {
			errs = append(errs, field.Required(p.Child("nodeAffinity"), "a local volume must say on which nodes it is"))
		}
		return errs
	})
	if found == 0 {
		errs = append(errs, field.Required(p, "must say where the volume comes from: hostPath, local or nfs"))
	}
	if h := spec.HostPath; h != nil && filepath.Clean(h.Path) == "/" && spec.PersistentVolumeReclaimPolicy == v1.PersistentVolumeReclaimRecycle {
		errs = append(errs, field.Forbidden(p.Child("persistentVolumeReclaimPolicy"), "must not be Recycle for the whole file system"))
	}
	return errs
}

func validateHostPath(h *v1.HostPathVolumeSource, p *field.Path) (errs field.ErrorList) {
	if h.Path == "" {
		return field.ErrorList{field.Required(p.Child("path"), "")}
	}
	if hasBacksteps(h.Path) {
		errs = append(errs, field.Invalid(p.Child("path"), h.Path, "must not contain '..'"))
	}
	if h.Type != nil && *h.Type != v1.HostPathUnset {
		errs = append(errs, oneOf(*h.Type, p.Child("type"), v1.HostPathDirectoryOrCreate, v1.HostPathDirectory,
			v1.HostPathFileOrCreate, v1.HostPathFile, v1.HostPathSocket, v1.HostPathCharDev, v1.HostPathBlockDev)...)
	}
	return errs
}

func hasBacksteps(p string) bool { return slices.Contains(strings.Split(p, "/"), "..") }

func validateNFS(n *v1.NFSVolumeSource, p *field.Path) (errs field.ErrorList) {
	if n.Server == "" {
		errs = append(errs, field.Required(p.Child("server"), ""))
	}
	if n.Path == "" {
		errs = append(errs, field.Required(p.Child("path"), ""))
	}
	if !filepath.IsAbs(n.Path) {
		errs = append(errs, field.Invalid(p.Child("path"), n.Path, "must be an absolute path"))
	}
	return errs
}

// validateAccessModes names the list, not the item, as the API server does.
func validateAccessModes(modes []v1.PersistentVolumeAccessMode, p *field.Path) (errs field.ErrorList) {
	if len(modes) == 0 {
		errs = append(errs, field.Required(p, "a volume has at least one access mode"))
	}
	allowed := []v1.PersistentVolumeAccessMode{v1.ReadOnlyMany, v1.ReadWriteMany, v1.ReadWriteOnce, v1.ReadWriteOncePod}
	alone, others := false, false
	for _, m := range modes {
		if !slices.Contains(allowed, m) {
			errs = append(errs, field.NotSupported(p, m, allowed))
			continue
		}
		alone, others = alone || m == v1.ReadWriteOncePod, others || m != v1.ReadWriteOncePod
	}
	if alone && others {
		errs = append(errs, field.Forbidden(p, "ReadWriteOncePod goes with no other access mode"))
	}
	return errs
}

func validateVolumeMode(m *v1.PersistentVolumeMode, p *field.Path) field.ErrorList {
	allowed := []v1.PersistentVolumeMode{v1.PersistentVolumeBlock, v1.PersistentVolumeFilesystem}
	if m == nil || slices.Contains(allowed, *m) {
		return nil
	}
	return field.ErrorList{field.NotSupported(p, *m, allowed)}
}

func validatePositive(q resource.Quantity, p *field.Path) field.ErrorList {
	if q.Sign() <= 0 {
		return field.ErrorList{field.Invalid(p, q.String(), "must be greater than zero")}
	}
	return nil
}

func persistentVolumeClaimKind() kind {
	return kind{
		apiVersion: "v1", name: "PersistentVolumeClaim", resource: "persistentvolumeclaims", short: "pvc", empty: &v1.PersistentVolumeClaim{},
		fields: persistentVolumeClaimFields, nameRule: apivalidation.NameIsDNSSubdomain,
		complete: func(r Resource) { defaultPersistentVolumeClaim(r.(*v1.PersistentVolumeClaim)) }, recheckMeta: true, strictUpdate: true,
		carryOver: func(now, before, wanted Resource) {
			c, was := now.(*v1.PersistentVolumeClaim), before.(*v1.PersistentVolumeClaim)
			c.Status = was.Status
			// A name that the manifest had and has no more is taken back.
			if wanted.(*v1.PersistentVolumeClaim).Spec.VolumeName == "" {
				orDefault(&c.Spec.VolumeName, was.Spec.VolumeName)
			}
		},
		validate: func(now, old Resource) field.ErrorList {
			c := now.(*v1.PersistentVolumeClaim)
			errs := validatePersistentVolumeClaim(&c.Spec, field.NewPath("spec"))
			if old != nil {
				errs = append(errs, validateClaimUpdate(c, old.(*v1.PersistentVolumeClaim))...)
			}
			return errs
		},
	}
}

// The status is the agent's: which volume the claim has.
var persistentVolumeClaimFields = []typeFields{
	{of: v1.PersistentVolumeClaim{}, supported: "apiVersion kind metadata spec", serverSide: "status"},
	{of: v1.PersistentVolumeClaimSpec{},
		supported: "accessModes selector resources volumeName storageClassName volumeMode",
		refused:   "dataSource dataSourceRef volumeAttributesClassName"},
	{of: v1.VolumeResourceRequirements{}, supported: "limits requests"},
	{of: metav1.LabelSelector{}, supported: "matchLabels matchExpressions"},
	{of: metav1.LabelSelectorRequirement{}, supported: "key operator values"},
}

func defaultPersistentVolumeClaim(c *v1.PersistentVolumeClaim) {
	orDefault(&c.Status.Phase, v1.ClaimPending)
	defaultClaimSpec(&c.Spec)
}

func defaultClaimSpec(spec *v1.PersistentVolumeClaimSpec) {
	if spec.VolumeMode == nil {
		spec.VolumeMode = new(v1.PersistentVolumeFilesystem)
	}
	roundUp(spec.Resources.Limits)
	roundUp(spec.Resources.Requests)
}

// validatePersistentVolumeClaim is for the claims of ephemeral volumes, too.
func validatePersistentVolumeClaim(spec *v1.PersistentVolumeClaimSpec, p *field.Path) field.ErrorList {
	errs := validateAccessModes(spec.AccessModes, p.Child("accessModes"))
	errs = append(errs, metavalidation.ValidateLabelSelector(spec.Selector, metavalidation.LabelSelectorValidationOptions{}, p.Child("selector"))...)
	at := p.Child("resources").Key(string(v1.ResourceStorage))
	if q, ok := spec.Resources.Requests[v1.ResourceStorage]; !ok {
		errs = append(errs, field.Required(at, ""))
	} else {
		errs = append(errs, validatePositive(q, at)...)
	}
	if name := spec.StorageClassName; name != nil && *name != "" {
		errs = append(errs, invalid(p.Child("storageClassName"), *name, apivalidation.NameIsDNSSubdomain(*name, false))...)
	}
	return append(errs, validateVolumeMode(spec.VolumeMode, p.Child("volumeMode"))...)
}

// validateClaimUpdate: a claim stays what it is, but for its size once it is
// bound, a volume name that it did not have, and a class that it did not have.
func validateClaimUpdate(now, old *v1.PersistentVolumeClaim) (errs field.ErrorList) {
	is, was := now.Spec.DeepCopy(), old.Spec.DeepCopy()
	if was.VolumeName == "" {
		was.VolumeName = is.VolumeName
	}
	classNow, classThen := now.Annotations[v1.BetaStorageClassAnnotation], old.Annotations[v1.BetaStorageClassAnnotation]
	_, annotated := old.Annotations[v1.BetaStorageClassAnnotation]
	_, annotatedNow := now.Annotations[v1.BetaStorageClassAnnotation]
	named := was.StorageClassName == nil && is.StorageClassName != nil
	moved := named && annotated && *is.StorageClassName == classThen && (!annotatedNow || classNow == classThen)
	if !moved {
		errs = append(errs, apivalidation.ValidateImmutableField(classNow, classThen, field.NewPath("metadata", "annotations", v1.BetaStorageClassAnnotation))...)
	}
	if moved || named && (!annotated || *is.StorageClassName == classThen) {
		is.StorageClassName = nil
	}
	oldSize, newSize, has := was.Resources.Requests[v1.ResourceStorage], is.Resources.Requests[v1.ResourceStorage], old.Status.Capacity[v1.ResourceStorage]
	if old.Status.Phase == v1.ClaimBound && is.Resources.Requests != nil {
		is.Resources.Requests[v1.ResourceStorage] = oldSize
	}
	if !apiequality.Semantic.DeepEqual(is, was) {
		errs = append(errs, field.Forbidden(field.NewPath("spec"), "cannot be changed, but for resources.requests of a bound claim; delete the claim and create it again"))
	}
	if newSize.Cmp(oldSize) < 0 && newSize.Cmp(has) <= 0 {
		errs = append(errs, field.Forbidden(field.NewPath("spec", "resources", "requests", "storage"), "must not be less than status.capacity"))
	}
	return append(errs, apivalidation.ValidateImmutableField(now.Spec.VolumeMode, old.Spec.VolumeMode, field.NewPath("volumeMode"))...)
}
