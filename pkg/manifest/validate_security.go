package manifest

import (
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// maxProfileName is how many bytes the name of an AppArmor profile may have.
const maxProfileName = 4095

const prefixAppArmor = v1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix

// eachContainer visits every container of a pod, whatever its sort.
func eachContainer(spec *v1.PodSpec, p *field.Path, visit func(c *v1.Container, at *field.Path)) {
	for i := range spec.InitContainers {
		visit(&spec.InitContainers[i], p.Child("initContainers").Index(i))
	}
	for i := range spec.Containers {
		visit(&spec.Containers[i], p.Child("containers").Index(i))
	}
	for i := range spec.EphemeralContainers {
		visit((*v1.Container)(&spec.EphemeralContainers[i].EphemeralContainerCommon), p.Child("ephemeralContainers").Index(i))
	}
}

// validateSecurity checks the security contexts of a pod and of its containers.
func validateSecurity(spec *v1.PodSpec, p *field.Path) field.ErrorList {
	errs := validatePodSecurity(spec, p.Child("securityContext"))
	errs = append(errs, validateHostUsers(spec, p)...)
	errs = append(errs, validateClass(spec, p)...)
	eachContainer(spec, p, func(c *v1.Container, at *field.Path) {
		errs = append(errs, validateContainerSecurity(c.SecurityContext, hostUsers(spec), at.Child("securityContext"))...)
	})
	return errs
}

func validatePodSecurity(spec *v1.PodSpec, p *field.Path) (errs field.ErrorList) {
	sc := spec.SecurityContext
	if sc == nil {
		return nil
	}
	errs = append(errs, validateIDs(sc.RunAsUser, sc.RunAsGroup, p)...)
	for i, g := range sc.SupplementalGroups {
		errs = append(errs, invalid(p.Child("supplementalGroups").Index(i), g, validation.IsValidGroupID(g))...)
	}
	errs = append(errs, oneOfSet(sc.SupplementalGroupsPolicy, p.Child("supplementalGroupsPolicy"),
		v1.SupplementalGroupsPolicyMerge, v1.SupplementalGroupsPolicyStrict)...)
	errs = append(errs, oneOfSet(sc.SELinuxChangePolicy, p.Child("seLinuxChangePolicy"),
		v1.SELinuxChangePolicyMountOption, v1.SELinuxChangePolicyRecursive)...)
	errs = append(errs, validateSysctls(spec, p.Child("sysctls"))...)
	errs = append(errs, validateSeccomp(sc.SeccompProfile, p.Child("seccompProfile"))...)
	return append(errs, validateAppArmor(sc.AppArmorProfile, p.Child("appArmorProfile"))...)
}

// validateSysctls refuses those of a namespace that is the host's.
func validateSysctls(spec *v1.PodSpec, p *field.Path) (errs field.ErrorList) {
	seen := map[string]bool{}
	for i, s := range spec.SecurityContext.Sysctls {
		at := p.Index(i).Child("name")
		switch {
		case s.Name == "":
			errs = append(errs, field.Required(at, ""))
		case !pod.IsSysctl(s.Name):
			errs = append(errs, field.Invalid(at, s.Name, "must be a sysctl's name, such as net.ipv4.tcp_syncookies"))
		case seen[s.Name]:
			errs = append(errs, field.Duplicate(at, s.Name))
		}
		seen[s.Name] = true
		switch ns := pod.SysctlNamespace(s.Name); {
		case ns == pod.SysctlNet && spec.HostNetwork:
			errs = append(errs, field.Invalid(at, s.Name, "cannot be set with hostNetwork: it would be the host's"))
		case ns == pod.SysctlIPC && spec.HostIPC:
			errs = append(errs, field.Invalid(at, s.Name, "cannot be set with hostIPC: it would be the host's"))
		}
	}
	return errs
}

// validateHostUsers keeps users of a pod's own out of other namespaces of the
// host and from its devices. Two of the paths are misspelt by the API server.
func validateHostUsers(spec *v1.PodSpec, p *field.Path) (errs field.ErrorList) {
	if hostUsers(spec) {
		return nil
	}
	for _, f := range []struct {
		name string
		set  bool
	}{{"hostNetwork", spec.HostNetwork}, {"HostPID", spec.HostPID}, {"HostIPC", spec.HostIPC}} {
		if f.set {
			errs = append(errs, field.Forbidden(p.Child(f.name), "cannot be combined with hostUsers: false"))
		}
	}
	eachContainer(spec, p, func(c *v1.Container, at *field.Path) {
		if len(c.VolumeDevices) > 0 {
			errs = append(errs, field.Forbidden(at.Child("volumeDevices"), "cannot be combined with hostUsers: false"))
		}
	})
	return errs
}

func hostUsers(spec *v1.PodSpec) bool { return spec.HostUsers == nil || *spec.HostUsers }

// validateClass checks what a runtime class is named and adds.
func validateClass(spec *v1.PodSpec, p *field.Path) (errs field.ErrorList) {
	if c := spec.RuntimeClassName; c != nil {
		errs = append(errs, invalid(p.Child("runtimeClassName"), *c, apivalidation.NameIsDNSSubdomain(*c, false))...)
	}
	if spec.Overhead != nil {
		// What is used whatever the containers ask for is a limit.
		errs = append(errs, validateResources(&v1.ResourceRequirements{Limits: spec.Overhead}, p.Child("overhead"))...)
	}
	return errs
}

func validateContainerSecurity(sc *v1.SecurityContext, hostUsers bool, p *field.Path) (errs field.ErrorList) {
	if sc == nil {
		return nil
	}
	errs = append(errs, validateIDs(sc.RunAsUser, sc.RunAsGroup, p)...)
	if sc.ProcMount != nil {
		at := p.Child("procMount")
		if !slices.Contains([]v1.ProcMountType{v1.DefaultProcMount, v1.UnmaskedProcMount}, *sc.ProcMount) {
			errs = append(errs, field.NotSupported(at, *sc.ProcMount, []v1.ProcMountType{v1.DefaultProcMount, v1.UnmaskedProcMount}))
		}
		if hostUsers && *sc.ProcMount == v1.UnmaskedProcMount {
			errs = append(errs, field.Invalid(at, *sc.ProcMount, "needs hostUsers: false"))
		}
	}
	if sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation {
		if sc.Privileged != nil && *sc.Privileged {
			errs = append(errs, field.Invalid(p, "privileged", "a privileged container always may gain privileges: remove allowPrivilegeEscalation: false"))
		}
		if sc.Capabilities != nil && slices.Contains(sc.Capabilities.Add, "CAP_SYS_ADMIN") {
			errs = append(errs, field.Invalid(p, "CAP_SYS_ADMIN", "who has it may gain every privilege: remove allowPrivilegeEscalation: false"))
		}
	}
	errs = append(errs, validateSeccomp(sc.SeccompProfile, p.Child("seccompProfile"))...)
	return append(errs, validateAppArmor(sc.AppArmorProfile, p.Child("appArmorProfile"))...)
}

func validateIDs(user, group *int64, p *field.Path) (errs field.ErrorList) {
	if user != nil {
		errs = append(errs, invalid(p.Child("runAsUser"), *user, validation.IsValidUserID(*user))...)
	}
	if group != nil {
		errs = append(errs, invalid(p.Child("runAsGroup"), *group, validation.IsValidGroupID(*group))...)
	}
	return errs
}

// oneOfSet refuses a value that is set, be it empty, and not in the list.
func oneOfSet[T ~string](value *T, p *field.Path, allowed ...T) field.ErrorList {
	if value == nil || slices.Contains(allowed, *value) {
		return nil
	}
	return field.ErrorList{field.NotSupported(p, *value, allowed)}
}

// validateSeccomp keeps the name of a profile below the profile folder. An
// empty one is the node's to refuse, as kubelet does.
func validateSeccomp(s *v1.SeccompProfile, p *field.Path) field.ErrorList {
	if s == nil {
		return nil
	}
	errs := oneOf(s.Type, p.Child("type"),
		v1.SeccompProfileTypeLocalhost, v1.SeccompProfileTypeRuntimeDefault, v1.SeccompProfileTypeUnconfined)
	at := p.Child("localhostProfile")
	switch {
	case s.Type != v1.SeccompProfileTypeLocalhost:
		if s.LocalhostProfile != nil {
			errs = append(errs, field.Invalid(at, *s.LocalhostProfile, "is for the type Localhost only"))
		}
		return errs
	case s.LocalhostProfile == nil:
		return append(errs, field.Required(at, "the type is Localhost"))
	}
	if strings.HasPrefix(*s.LocalhostProfile, "/") {
		errs = append(errs, field.Invalid(at, *s.LocalhostProfile, "must be relative to the profile folder"))
	}
	if slices.Contains(strings.Split(*s.LocalhostProfile, "/"), "..") {
		errs = append(errs, field.Invalid(at, *s.LocalhostProfile, "must not contain '..'"))
	}
	return errs
}

func appArmorTypes() []v1.AppArmorProfileType {
	return []v1.AppArmorProfileType{v1.AppArmorProfileTypeLocalhost, v1.AppArmorProfileTypeRuntimeDefault, v1.AppArmorProfileTypeUnconfined}
}

func validateAppArmor(a *v1.AppArmorProfile, p *field.Path) field.ErrorList {
	if a == nil {
		return nil
	}
	errs := oneOf(a.Type, p.Child("type"), appArmorTypes()...)
	at := p.Child("localhostProfile")
	name := a.LocalhostProfile
	switch {
	case a.Type != v1.AppArmorProfileTypeLocalhost:
		if name != nil && len(errs) == 0 {
			errs = append(errs, field.Invalid(at, *name, "is for the type Localhost only"))
		}
		return errs
	case name == nil || *name == "":
		return append(errs, field.Required(at, "the type is Localhost"))
	case strings.TrimSpace(*name) != *name:
		errs = append(errs, field.Invalid(at, *name, "must not have leading or trailing white space"))
	}
	if len(*name) > maxProfileName {
		errs = append(errs, field.TooLong(at, "", maxProfileName))
	}
	return errs
}

// defaultAppArmor gives containers the profiles that the pod's annotations
// name, which were the field before there was one.
func defaultAppArmor(p *v1.Pod) {
	var ofPod *v1.AppArmorProfile
	if sc := p.Spec.SecurityContext; sc != nil {
		ofPod = sc.AppArmorProfile
	}
	eachContainer(&p.Spec, nil, func(c *v1.Container, _ *field.Path) {
		said, ok := p.Annotations[prefixAppArmor+c.Name]
		if !ok || c.SecurityContext != nil && c.SecurityContext.AppArmorProfile != nil {
			return
		}
		profile := pod.AppArmorFromAnnotation(said)
		if profile == nil || len(validateAppArmor(profile, nil)) > 0 || ofPod != nil && pod.AppArmorAnnotation(ofPod) == said {
			return
		}
		if c.SecurityContext == nil {
			c.SecurityContext = &v1.SecurityContext{}
		}
		c.SecurityContext.AppArmorProfile = profile
	})
}

// validateAppArmorAnnotations checks that each names a container and agrees with
// its field.
func validateAppArmorAnnotations(p *v1.Pod, at *field.Path) (errs field.ErrorList) {
	names := map[string]bool{}
	eachContainer(&p.Spec, field.NewPath("spec"), func(c *v1.Container, cp *field.Path) {
		names[c.Name] = true
		said, ok := p.Annotations[prefixAppArmor+c.Name]
		profile := pod.AppArmor(p, c)
		if !ok || profile == nil {
			return
		}
		where := cp.Child("securityContext", "appArmorProfile")
		name, local := strings.CutPrefix(said, v1.DeprecatedAppArmorBetaProfileNamePrefix)
		var differs *field.Path
		switch profile.Type {
		case v1.AppArmorProfileTypeLocalhost:
			if !local {
				differs = where.Child("type")
			} else if profile.LocalhostProfile == nil || *profile.LocalhostProfile != name {
				differs = where.Child("localhostProfile")
			}
		case v1.AppArmorProfileTypeRuntimeDefault, v1.AppArmorProfileTypeUnconfined:
			if pod.AppArmorAnnotation(profile) != said {
				differs = where.Child("type")
			}
		}
		if differs != nil {
			errs = append(errs, field.Forbidden(differs, "must be what the annotation says"))
		}
	})
	for _, k := range slices.Sorted(maps.Keys(p.Annotations)) {
		v := p.Annotations[k]
		name, ok := strings.CutPrefix(k, prefixAppArmor)
		if !ok {
			continue
		}
		if !names[name] {
			errs = append(errs, field.Invalid(at.Key(k), name, "the pod has no such container"))
		}
		if v != "" && v != v1.DeprecatedAppArmorBetaProfileRuntimeDefault && v != v1.DeprecatedAppArmorBetaProfileNameUnconfined &&
			!strings.HasPrefix(v, v1.DeprecatedAppArmorBetaProfileNamePrefix) {
			errs = append(errs, field.Invalid(at.Key(k), v, "must be runtime/default, unconfined or localhost/PROFILE"))
		}
	}
	return errs
}

// validateAppArmorUpdate keeps the annotations that name profiles as they are.
func validateAppArmorUpdate(now, was map[string]string, at *field.Path) (errs field.ErrorList) {
	keys := maps.Clone(was)
	if keys == nil {
		keys = map[string]string{}
	}
	maps.Copy(keys, now)
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		is, has := now[k]
		old, had := was[k]
		if strings.HasPrefix(k, prefixAppArmor) && (has != had || is != old) {
			errs = append(errs, field.Forbidden(at.Key(k), "cannot be added, changed or removed"))
		}
	}
	return errs
}
