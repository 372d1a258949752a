package pod

import (
	"strings"

	v1 "k8s.io/api/core/v1"
)

// AppArmorFromAnnotation is the profile that a value of AppArmor's old
// annotation means; nil for one that means none.
func AppArmorFromAnnotation(value string) *v1.AppArmorProfile {
	switch value {
	case v1.DeprecatedAppArmorBetaProfileNameUnconfined:
		return &v1.AppArmorProfile{Type: v1.AppArmorProfileTypeUnconfined}
	case v1.DeprecatedAppArmorBetaProfileRuntimeDefault:
		return &v1.AppArmorProfile{Type: v1.AppArmorProfileTypeRuntimeDefault}
	}
	if name, ok := strings.CutPrefix(value, v1.DeprecatedAppArmorBetaProfileNamePrefix); ok && name != "" {
		return &v1.AppArmorProfile{Type: v1.AppArmorProfileTypeLocalhost, LocalhostProfile: &name}
	}
	return nil
}

// AppArmorAnnotation is the reverse, and what runtimes before CRI 1.24 read;
// empty for no profile and for one without a name.
func AppArmorAnnotation(a *v1.AppArmorProfile) string {
	switch {
	case a == nil:
		return ""
	case a.Type == v1.AppArmorProfileTypeUnconfined:
		return v1.DeprecatedAppArmorBetaProfileNameUnconfined
	case a.Type == v1.AppArmorProfileTypeRuntimeDefault:
		return v1.DeprecatedAppArmorBetaProfileRuntimeDefault
	case a.Type == v1.AppArmorProfileTypeLocalhost && a.LocalhostProfile != nil && *a.LocalhostProfile != "":
		return v1.DeprecatedAppArmorBetaProfileNamePrefix + *a.LocalhostProfile
	}
	return ""
}

// AppArmor is a container's own profile, else its pod's.
func AppArmor(p *v1.Pod, c *v1.Container) *v1.AppArmorProfile {
	if c.SecurityContext != nil && c.SecurityContext.AppArmorProfile != nil {
		return c.SecurityContext.AppArmorProfile
	}
	if p.Spec.SecurityContext != nil {
		return p.Spec.SecurityContext.AppArmorProfile
	}
	return nil
}
