package manifest

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// volumeFields are the rows of the support table below spec.volumes, but for
// those that objects of other kinds have as well. Left out are alpha fields,
// which v1.37 drops, and what only a control plane can provide.
var volumeFields = []typeFields{
	{of: v1.Volume{}, supported: "name"},
	{of: v1.VolumeSource{},
		supported: "hostPath emptyDir configMap secret downwardAPI projected persistentVolumeClaim ephemeral nfs image",
		refused: "gcePersistentDisk awsElasticBlockStore gitRepo iscsi glusterfs rbd flexVolume cinder cephfs flocker fc " +
			"azureFile vsphereVolume quobyte azureDisk photonPersistentDisk portworxVolume scaleIO storageos csi"},
	{of: v1.HostPathVolumeSource{}, supported: "path type"},
	{of: v1.EmptyDirVolumeSource{}, supported: "medium sizeLimit", refused: "mode"},
	{of: v1.ConfigMapVolumeSource{}, supported: "items defaultMode optional", refused: "defaultUser"},
	{of: v1.SecretVolumeSource{}, supported: "secretName items defaultMode optional", refused: "defaultUser"},
	{of: v1.KeyToPath{}, supported: "key path mode", refused: "user"},
	{of: v1.DownwardAPIVolumeSource{}, supported: "items defaultMode", refused: "defaultUser"},
	{of: v1.DownwardAPIVolumeFile{}, supported: "path fieldRef resourceFieldRef mode", refused: "user"},
	{of: v1.ProjectedVolumeSource{}, supported: "sources defaultMode", refused: "defaultUser"},
	{of: v1.VolumeProjection{}, supported: "configMap secret downwardAPI", refused: "serviceAccountToken clusterTrustBundle podCertificate"},
	{of: v1.ConfigMapProjection{}, supported: "items optional"},
	{of: v1.SecretProjection{}, supported: "items optional"},
	{of: v1.DownwardAPIProjection{}, supported: "items"},
	{of: v1.PersistentVolumeClaimVolumeSource{}, supported: "claimName readOnly"},
	{of: v1.EphemeralVolumeSource{}, supported: "volumeClaimTemplate"},
	{of: v1.PersistentVolumeClaimTemplate{}, supported: "metadata spec"},
	{of: v1.ImageVolumeSource{}, supported: "reference pullPolicy"},
}

func defaultVolume(v *v1.Volume) {
	if v.VolumeSource == (v1.VolumeSource{}) {
		v.EmptyDir = &v1.EmptyDirVolumeSource{}
	}
	if v.HostPath != nil && v.HostPath.Type == nil {
		v.HostPath.Type = new(v1.HostPathUnset)
	}
	if s := v.ConfigMap; s != nil {
		defaultFileMode(&s.DefaultMode)
	}
	if s := v.Secret; s != nil {
		defaultFileMode(&s.DefaultMode)
	}
	if s := v.DownwardAPI; s != nil {
		defaultFileMode(&s.DefaultMode)
		defaultDownward(s.Items)
	}
	if s := v.Projected; s != nil {
		defaultFileMode(&s.DefaultMode)
		for i := range s.Sources {
			if d := s.Sources[i].DownwardAPI; d != nil {
				defaultDownward(d.Items)
			}
		}
	}
	if s := v.Ephemeral; s != nil && s.VolumeClaimTemplate != nil {
		defaultClaimSpec(&s.VolumeClaimTemplate.Spec)
	}
	if s := v.Image; s != nil {
		orDefault(&s.PullPolicy, defaultPullPolicy(s.Reference))
	}
}

func defaultFileMode(mode **int32) {
	if *mode == nil {
		*mode = new(int32(0o644))
	}
}

func defaultDownward(items []v1.DownwardAPIVolumeFile) {
	for i := range items {
		if ref := items[i].FieldRef; ref != nil {
			orDefault(&ref.APIVersion, "v1")
		}
	}
}

// validateVolumes returns the volumes that a mount may name as well, by name: a
// volume that is wrong itself is not there for its mounts.
func validateVolumes(volumes []v1.Volume, meta *metav1.ObjectMeta, p *field.Path) (known map[string]*v1.Volume, errs field.ErrorList) {
	known = map[string]*v1.Volume{}
	own := map[string]bool{} // claims that are made for the pod
	for i := range volumes {
		if meta.Name != "" && volumes[i].Ephemeral != nil {
			own[meta.Name+"-"+volumes[i].Name] = true
		}
	}
	for i := range volumes {
		v, ip := &volumes[i], p.Index(i)
		found := validateVolumeSource(v, meta, ip)
		found = append(found, dnsLabel(v.Name, ip.Child("name"))...)
		if known[v.Name] != nil {
			found = append(found, field.Duplicate(ip.Child("name"), v.Name))
		}
		if len(found) == 0 {
			known[v.Name] = v
		}
		errs = append(errs, found...)
		if c := v.PersistentVolumeClaim; c != nil && own[c.ClaimName] {
			errs = append(errs, field.Invalid(ip.Child("persistentVolumeClaim", "claimName"), c.ClaimName, "is the claim of one of the pod's ephemeral volumes"))
		}
	}
	return known, errs
}

// validateVolumeSource names the sources in the API server's order: of several,
// the first is the volume's, and the others are too many.
func validateVolumeSource(v *v1.Volume, meta *metav1.ObjectMeta, p *field.Path) (errs field.ErrorList) {
	found := 0
	source := func(is bool, name string, check func(*field.Path) field.ErrorList) {
		if !is {
			return
		}
		if found++; found > 1 {
			errs = append(errs, field.Forbidden(p.Child(name), "the volume has a source already; a volume has one"))
			return
		}
		errs = append(errs, check(p.Child(sourceAt[name]))...)
	}
	source(v.EmptyDir != nil, "emptyDir", func(p *field.Path) field.ErrorList {
		if limit := v.EmptyDir.SizeLimit; limit != nil && limit.Sign() < 0 {
			return field.ErrorList{field.Forbidden(p.Child("sizeLimit"), "must not be negative")}
		}
		return nil
	})
	source(v.HostPath != nil, "hostPath", func(p *field.Path) field.ErrorList { return validateHostPath(v.HostPath, p) })
	source(v.Secret != nil, "secret", func(p *field.Path) field.ErrorList {
		errs := required(v.Secret.SecretName, p.Child("secretName"))
		return append(errs, validateFiles(v.Secret.DefaultMode, v.Secret.Items, p)...)
	})
	source(v.NFS != nil, "nfs", func(p *field.Path) field.ErrorList { return validateNFS(v.NFS, p) })
	source(v.PersistentVolumeClaim != nil, "persistentVolumeClaim", func(p *field.Path) field.ErrorList {
		return required(v.PersistentVolumeClaim.ClaimName, p.Child("claimName"))
	})
	source(v.DownwardAPI != nil, "downwarAPI", func(p *field.Path) field.ErrorList {
		errs := validateFileMode(v.DownwardAPI.DefaultMode, p.Child("defaultMode"))
		for i := range v.DownwardAPI.Items {
			errs = append(errs, validateDownwardFile(&v.DownwardAPI.Items[i], p)...)
		}
		return errs
	})
	source(v.ConfigMap != nil, "configMap", func(p *field.Path) field.ErrorList {
		errs := required(v.ConfigMap.Name, p.Child("name"))
		return append(errs, validateFiles(v.ConfigMap.DefaultMode, v.ConfigMap.Items, p)...)
	})
	source(v.Projected != nil, "projected", func(p *field.Path) field.ErrorList { return validateProjected(v.Projected, p) })
	source(v.Ephemeral != nil, "ephemeral", func(at *field.Path) field.ErrorList {
		return append(validateEphemeralVolume(v.Ephemeral, at), validateClaimName(v, meta, p)...)
	})
	source(v.Image != nil, "image", func(p *field.Path) field.ErrorList {
		errs := required(v.Image.Reference, p.Child("reference"))
		return append(errs, oneOf(v.Image.PullPolicy, p.Child("pullPolicy"), v1.PullAlways, v1.PullIfNotPresent, v1.PullNever)...)
	})
	if found == 0 {
		errs = append(errs, field.Required(p, "must say where the volume comes from"))
	}
	return errs
}

// sourceAt is where a source's own errors are: the API server misspells one of
// them when it is too many, and only then.
var sourceAt = map[string]string{
	"emptyDir": "emptyDir", "hostPath": "hostPath", "secret": "secret", "nfs": "nfs", "persistentVolumeClaim": "persistentVolumeClaim",
	"downwarAPI": "downwardAPI", "configMap": "configMap", "projected": "projected", "ephemeral": "ephemeral", "image": "image",
}

func required(value string, p *field.Path) field.ErrorList {
	if value == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	return nil
}

func validateFileMode(mode *int32, p *field.Path) field.ErrorList {
	if mode != nil && (*mode < 0 || *mode > 0o777) {
		return field.ErrorList{field.Invalid(p, *mode, "must be between 0 and 0777 (octal), 511 in JSON")}
	}
	return nil
}

func validateFiles(mode *int32, items []v1.KeyToPath, p *field.Path) field.ErrorList {
	errs := validateFileMode(mode, p.Child("defaultMode"))
	for i := range items {
		errs = append(errs, validateItem(&items[i], p.Child("items").Index(i))...)
	}
	return errs
}

func validateItem(item *v1.KeyToPath, p *field.Path) field.ErrorList {
	errs := required(item.Key, p.Child("key"))
	errs = append(errs, required(item.Path, p.Child("path"))...)
	errs = append(errs, validateFilePath(item.Path, p.Child("path"))...)
	return append(errs, validateFileMode(item.Mode, p.Child("mode"))...)
}

// validateFilePath keeps a file below its volume, and out of the names by which
// the volume is changed in one step.
func validateFilePath(name string, p *field.Path) field.ErrorList {
	errs := validateDescending(name, p)
	if strings.HasPrefix(name, "..") && !strings.HasPrefix(name, "../") {
		errs = append(errs, field.Invalid(p, name, "must not start with '..'"))
	}
	return errs
}

// validateDescending refuses paths that lead out of a volume.
func validateDescending(name string, p *field.Path) (errs field.ErrorList) {
	if strings.HasPrefix(name, "/") {
		errs = append(errs, field.Invalid(p, name, "must be a relative path"))
	}
	if hasBacksteps(name) {
		errs = append(errs, field.Invalid(p, name, "must not contain '..'"))
	}
	return errs
}

func validateDownwardFile(f *v1.DownwardAPIVolumeFile, p *field.Path) field.ErrorList {
	errs := required(f.Path, p.Child("path"))
	errs = append(errs, validateFilePath(f.Path, p.Child("path"))...)
	switch {
	case f.FieldRef != nil:
		errs = append(errs, validateFieldRef(f.FieldRef, volumeFieldPaths, p.Child("fieldRef"))...)
		if f.ResourceFieldRef != nil {
			errs = append(errs, field.Invalid(p, "resource", "fieldRef and resourceFieldRef exclude each other"))
		}
	case f.ResourceFieldRef != nil:
		errs = append(errs, validateResourceFieldRef(f.ResourceFieldRef, true, p.Child("resourceFieldRef"))...)
	default:
		errs = append(errs, field.Required(p, "must have fieldRef or resourceFieldRef"))
	}
	return append(errs, validateFileMode(f.Mode, p.Child("mode"))...)
}

// validateProjected counts paths over all sources: two that name one file are
// an error of the volume.
func validateProjected(s *v1.ProjectedVolumeSource, p *field.Path) field.ErrorList {
	errs := validateFileMode(s.DefaultMode, p.Child("defaultMode"))
	paths := map[string]bool{}
	claim := func(name, source string) {
		if name != "" && paths[name] {
			errs = append(errs, field.Invalid(p, source, "two sources have a file of the same path"))
		}
		paths[name] = true
	}
	items := func(list []v1.KeyToPath, source string, p *field.Path) {
		for i := range list {
			errs = append(errs, validateItem(&list[i], p.Child("items").Index(i))...)
			claim(list[i].Path, source)
		}
	}
	for i := range s.Sources {
		src, at, found := &s.Sources[i], p.Child("sources").Index(i), 0
		if o := src.Secret; o != nil {
			found++
			errs = append(errs, required(o.Name, at.Child("secret", "name"))...)
			items(o.Items, o.Name, at.Child("secret"))
		}
		if o := src.ConfigMap; o != nil {
			found++
			errs = append(errs, required(o.Name, at.Child("configMap", "name"))...)
			items(o.Items, o.Name, at.Child("configMap"))
		}
		if o := src.DownwardAPI; o != nil {
			found++
			for j := range o.Items {
				errs = append(errs, validateDownwardFile(&o.Items[j], at.Child("downwardAPI"))...)
				claim(o.Items[j].Path, o.Items[j].Path)
			}
		}
		if found > 1 {
			errs = append(errs, field.Forbidden(at, "a source is one of configMap, secret and downwardAPI"))
		}
	}
	return errs
}

func validateEphemeralVolume(s *v1.EphemeralVolumeSource, p *field.Path) field.ErrorList {
	at := p.Child("volumeClaimTemplate")
	if s.VolumeClaimTemplate == nil {
		return field.ErrorList{field.Required(at, "")}
	}
	meta, mp := &s.VolumeClaimTemplate.ObjectMeta, at.Child("metadata")
	errs := apivalidation.ValidateAnnotations(meta.Annotations, mp.Child("annotations"))
	errs = append(errs, metavalidation.ValidateLabels(meta.Labels, mp.Child("labels"))...)
	for name, set := range map[string]bool{
		"Name": meta.Name != "", "GenerateName": meta.GenerateName != "", "Namespace": meta.Namespace != "", "UID": meta.UID != "",
	} {
		if set {
			errs = append(errs, field.Forbidden(mp.Key(name), "cannot be set: the claim's name is the pod's and the volume's"))
		}
	}
	return append(errs, validatePersistentVolumeClaim(&s.VolumeClaimTemplate.Spec, at.Child("spec"))...)
}

// validateClaimName checks the name of the claim that is made for a volume.
func validateClaimName(v *v1.Volume, meta *metav1.ObjectMeta, p *field.Path) (errs field.ErrorList) {
	if meta.Name == "" || v.Name == "" {
		return nil
	}
	name := meta.Name + "-" + v.Name
	for _, msg := range apivalidation.NameIsDNSSubdomain(name, false) {
		errs = append(errs, field.Invalid(p.Child("name"), v.Name, fmt.Sprintf("the claim %q: %s", name, msg)))
	}
	return errs
}

func validateMounts(c *v1.Container, volumes map[string]*v1.Volume, p *field.Path) (errs field.ErrorList) {
	paths, deviceNames, devicePaths := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, d := range c.VolumeDevices {
		deviceNames[d.Name], devicePaths[d.DevicePath] = true, true
	}
	for i := range c.VolumeMounts {
		m, at := &c.VolumeMounts[i], p.Index(i)
		errs = append(errs, required(m.Name, at.Child("name"))...)
		if volumes[m.Name] == nil {
			errs = append(errs, field.NotFound(at.Child("name"), m.Name))
		}
		errs = append(errs, required(m.MountPath, at.Child("mountPath"))...)
		if paths[m.MountPath] {
			errs = append(errs, field.Invalid(at.Child("mountPath"), m.MountPath, "another volume is mounted there"))
		}
		paths[m.MountPath] = true
		if deviceNames[m.Name] {
			errs = append(errs, field.Invalid(at.Child("name"), m.Name, "is one of volumeDevices already"))
		}
		if devicePaths[m.MountPath] {
			errs = append(errs, field.Invalid(at.Child("mountPath"), m.MountPath, "is the path of one of volumeDevices already"))
		}
		errs = append(errs, validateMountOptions(c, m, p, at)...)
	}
	return errs
}

// validateMountOptions reports, as the API server does, most of what is wrong
// with one mount under a path that names no mount.
func validateMountOptions(c *v1.Container, m *v1.VolumeMount, p, at *field.Path) (errs field.ErrorList) {
	if m.SubPath != "" {
		errs = append(errs, validateDescending(m.SubPath, p.Child("subPath"))...)
	}
	if m.SubPathExpr != "" {
		if m.SubPath != "" {
			errs = append(errs, field.Invalid(at.Child("subPathExpr"), m.SubPathExpr, "subPathExpr and subPath exclude each other"))
		}
		errs = append(errs, validateDescending(m.SubPathExpr, p.Child("subPathExpr"))...)
	}
	if m.MountPropagation != nil {
		mode, mp := *m.MountPropagation, p.Child("mountPropagation")
		modes := []v1.MountPropagationMode{v1.MountPropagationBidirectional, v1.MountPropagationHostToContainer, v1.MountPropagationNone}
		if !slices.Contains(modes, mode) {
			errs = append(errs, field.NotSupported(mp, mode, modes))
		}
		if mode == v1.MountPropagationBidirectional && !isPrivileged(c) {
			errs = append(errs, field.Forbidden(mp, "Bidirectional is for privileged containers only"))
		}
	}
	if m.RecursiveReadOnly == nil {
		return errs
	}
	rp := p.Child("recursiveReadOnly")
	switch how := *m.RecursiveReadOnly; how {
	case v1.RecursiveReadOnlyDisabled:
	case v1.RecursiveReadOnlyEnabled, v1.RecursiveReadOnlyIfPossible:
		if !m.ReadOnly {
			errs = append(errs, field.Forbidden(rp, "needs readOnly: true"))
		}
		if m.MountPropagation != nil && *m.MountPropagation != v1.MountPropagationNone {
			errs = append(errs, field.Forbidden(rp, "needs mountPropagation None, or no mountPropagation"))
		}
	default:
		errs = append(errs, field.NotSupported(rp, how, []v1.RecursiveReadOnlyMode{
			v1.RecursiveReadOnlyDisabled, v1.RecursiveReadOnlyEnabled, v1.RecursiveReadOnlyIfPossible}))
	}
	return errs
}

func validateDevices(c *v1.Container, volumes map[string]*v1.Volume, p *field.Path) (errs field.ErrorList) {
	names, paths, mountNames, mountPaths := map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, m := range c.VolumeMounts {
		mountNames[m.Name], mountPaths[m.MountPath] = true, true
	}
	for i, d := range c.VolumeDevices {
		np, dp := p.Index(i).Child("name"), p.Index(i).Child("devicePath")
		errs = append(errs, required(d.Name, np)...)
		if d.Name != "" && names[d.Name] {
			errs = append(errs, field.Invalid(np, d.Name, "must be unique"))
		}
		names[d.Name] = true
		switch v := volumes[d.Name]; {
		case v == nil:
			errs = append(errs, field.NotFound(np, d.Name))
		case v.PersistentVolumeClaim == nil && v.Ephemeral == nil:
			errs = append(errs, field.Invalid(np, d.Name, "only a persistentVolumeClaim or an ephemeral volume can be a block device"))
		}
		errs = append(errs, required(d.DevicePath, dp)...)
		if paths[d.DevicePath] {
			errs = append(errs, field.Invalid(dp, d.DevicePath, "must be unique"))
		}
		if d.DevicePath != "" && hasBacksteps(d.DevicePath) {
			errs = append(errs, field.Invalid(dp, d.DevicePath, "must not contain '..'"))
		} else {
			paths[d.DevicePath] = true
		}
		if mountNames[d.Name] {
			errs = append(errs, field.Invalid(np, d.Name, "is one of volumeMounts already"))
		}
		if mountPaths[d.DevicePath] {
			errs = append(errs, field.Invalid(dp, d.DevicePath, "is the path of one of volumeMounts already"))
		}
	}
	return errs
}

// validateFSGroup checks the group of a pod's volumes.
func validateFSGroup(s *v1.PodSecurityContext, p *field.Path) (errs field.ErrorList) {
	if s == nil {
		return nil
	}
	if s.FSGroup != nil {
		errs = append(errs, invalid(p.Child("fsGroup"), *s.FSGroup, validation.IsValidGroupID(*s.FSGroup))...)
	}
	if how := s.FSGroupChangePolicy; how != nil && *how != v1.FSGroupChangeOnRootMismatch && *how != v1.FSGroupChangeAlways {
		errs = append(errs, field.NotSupported(p.Child("fsGroupChangePolicy"), *how,
			[]v1.PodFSGroupChangePolicy{v1.FSGroupChangeOnRootMismatch, v1.FSGroupChangeAlways}))
	}
	return errs
}
