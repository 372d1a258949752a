package runtime

import (
	"path/filepath"
	"slices"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// maskedPaths and readonlyPaths are what kubelet 1.37 hides of /proc and /sys
// unless procMount is Unmasked.
func maskedPaths() []string {
	return []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys",
		"/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug",
		"/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
}

func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// namespaces says which namespaces the pod shares with the node and which its
// containers share with each other.
func namespaces(p *v1.Pod, firstUser uint32) *cri.NamespaceOption {
	n := &cri.NamespaceOption{
		Network: cri.NamespaceMode_POD, Ipc: cri.NamespaceMode_POD, Pid: cri.NamespaceMode_CONTAINER,
	}
	if p.Spec.HostNetwork {
		n.Network = cri.NamespaceMode_NODE
	}
	if p.Spec.HostIPC {
		n.Ipc = cri.NamespaceMode_NODE
	}
	switch {
	case p.Spec.HostPID:
		n.Pid = cri.NamespaceMode_NODE
	case p.Spec.ShareProcessNamespace != nil && *p.Spec.ShareProcessNamespace:
		n.Pid = cri.NamespaceMode_POD
	}
	if firstUser != 0 {
		ids := []*cri.IDMapping{{HostId: firstUser, ContainerId: 0, Length: UserRange}}
		n.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids}
	}
	return n
}

// groups are the supplemental groups of every process of the pod: fsGroup
// first, as kubelet has it.
func groups(sc *v1.PodSecurityContext) ([]int64, cri.SupplementalGroupsPolicy, error) {
	if sc == nil {
		return nil, 0, nil
	}
	var out []int64
	if sc.FSGroup != nil {
		out = append(out, *sc.FSGroup)
	}
	out = append(out, sc.SupplementalGroups...)
	if sc.SupplementalGroupsPolicy == nil {
		return out, 0, nil
	}
	n, ok := cri.SupplementalGroupsPolicy_value[string(*sc.SupplementalGroupsPolicy)]
	if !ok {
		return nil, 0, errdefs.Errorf(ErrConfig, "unsupported supplementalGroupsPolicy: %s", *sc.SupplementalGroupsPolicy)
	}
	return out, cri.SupplementalGroupsPolicy(n), nil
}

func (t *translator) sandboxSecurity(p *v1.Pod, firstUser uint32) (*cri.LinuxSandboxSecurityContext, error) {
	s := &cri.LinuxSandboxSecurityContext{
		NamespaceOptions: namespaces(p, firstUser),
		Privileged:       anyPrivileged(p),
		// The pause process needs nothing: the runtime's own profile, whatever
		// the containers have (kubernetes/kubernetes issue 84623).
		Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
	}
	sc := p.Spec.SecurityContext
	if sc == nil {
		return s, nil
	}
	// CRI refuses a group without a user; the pause process does without both.
	if s.RunAsUser = int64Value(sc.RunAsUser); s.RunAsUser != nil {
		s.RunAsGroup = int64Value(sc.RunAsGroup)
	}
	s.SelinuxOptions = selinux(sc.SELinuxOptions)
	var err error
	s.SupplementalGroups, s.SupplementalGroupsPolicy, err = groups(sc)
	return s, err
}

func anyPrivileged(p *v1.Pod) bool {
	is := func(c v1.Container) bool {
		return c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
	}
	return slices.ContainsFunc(p.Spec.InitContainers, is) || slices.ContainsFunc(p.Spec.Containers, is)
}

// effectiveSecurity lays the container's settings over those of its pod. The
// result shares pointers with both.
func effectiveSecurity(p *v1.Pod, c *v1.Container) v1.SecurityContext {
	var e v1.SecurityContext
	if s := p.Spec.SecurityContext; s != nil {
		e.SELinuxOptions, e.RunAsUser, e.RunAsGroup = s.SELinuxOptions, s.RunAsUser, s.RunAsGroup
		e.RunAsNonRoot, e.SeccompProfile, e.AppArmorProfile = s.RunAsNonRoot, s.SeccompProfile, s.AppArmorProfile
	}
	s := c.SecurityContext
	if s == nil {
		return e
	}
	e.Capabilities, e.Privileged, e.ReadOnlyRootFilesystem = s.Capabilities, s.Privileged, s.ReadOnlyRootFilesystem
	e.AllowPrivilegeEscalation, e.ProcMount = s.AllowPrivilegeEscalation, s.ProcMount
	over(&e.SELinuxOptions, s.SELinuxOptions)
	over(&e.RunAsUser, s.RunAsUser)
	over(&e.RunAsGroup, s.RunAsGroup)
	over(&e.RunAsNonRoot, s.RunAsNonRoot)
	over(&e.SeccompProfile, s.SeccompProfile)
	over(&e.AppArmorProfile, s.AppArmorProfile)
	return e
}

func over[T any](dst **T, v *T) {
	if v != nil {
		*dst = v
	}
}

func (t *translator) containerSecurity(p *v1.Pod, c *v1.Container, firstUser uint32) (*cri.LinuxContainerSecurityContext, error) {
	e := effectiveSecurity(p, c)
	s := &cri.LinuxContainerSecurityContext{
		NamespaceOptions: namespaces(p, firstUser),
		SelinuxOptions:   selinux(e.SELinuxOptions),
		RunAsUser:        int64Value(e.RunAsUser),
		RunAsGroup:       int64Value(e.RunAsGroup),
		Privileged:       e.Privileged != nil && *e.Privileged,
		ReadonlyRootfs:   e.ReadOnlyRootFilesystem != nil && *e.ReadOnlyRootFilesystem,
		NoNewPrivs:       e.AllowPrivilegeEscalation != nil && !*e.AllowPrivilegeEscalation,
	}
	if e.ProcMount == nil || *e.ProcMount != v1.UnmaskedProcMount {
		s.MaskedPaths = append(maskedPaths(), t.host.throttle...)
		s.ReadonlyPaths = readonlyPaths()
	}
	if e.Capabilities != nil {
		s.Capabilities = &cri.Capability{}
		for _, a := range e.Capabilities.Add {
			s.Capabilities.AddCapabilities = append(s.Capabilities.AddCapabilities, string(a))
		}
		for _, d := range e.Capabilities.Drop {
			s.Capabilities.DropCapabilities = append(s.Capabilities.DropCapabilities, string(d))
		}
	}
	var err error
	if s.SupplementalGroups, s.SupplementalGroupsPolicy, err = groups(p.Spec.SecurityContext); err != nil {
		return nil, err
	}
	if s.Seccomp, err = t.seccomp(e.SeccompProfile); err != nil {
		return nil, err
	}
	//lint:ignore SA1019 containerd 1.6 reads the old field
	s.Apparmor, s.ApparmorProfile, err = apparmor(e.AppArmorProfile)
	return s, err
}

// seccomp is unconfined when nothing is said, which is kubelet's default
// without SeccompDefault.
func (t *translator) seccomp(p *v1.SeccompProfile) (*cri.SecurityProfile, error) {
	if p == nil {
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, nil
	}
	switch p.Type {
	case v1.SeccompProfileTypeRuntimeDefault:
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}, nil
	case v1.SeccompProfileTypeLocalhost:
		switch {
		case p.LocalhostProfile == nil || *p.LocalhostProfile == "": // CVE-2023-2431: not the same as none
			return nil, errdefs.Errorf(ErrConfig, "localhostProfile must be set if seccompProfile type is Localhost.")
		case !filepath.IsLocal(*p.LocalhostProfile):
			return nil, errdefs.Errorf(ErrConfig, "localhostProfile %q leads out of the profile folder", *p.LocalhostProfile)
		case t.seccompRoot == "":
			return nil, errdefs.Errorf(ErrConfig, "seccompProfile type Localhost: this agent has no profile folder")
		}
		return &cri.SecurityProfile{
			ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: filepath.Join(t.seccompRoot, *p.LocalhostProfile),
		}, nil
	default:
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, nil
	}
}

// apparmor also returns the annotation-style name that runtimes before CRI
// 1.24 read.
func apparmor(p *v1.AppArmorProfile) (*cri.SecurityProfile, string, error) {
	if p == nil {
		return nil, "", nil
	}
	old := pod.AppArmorAnnotation(p)
	if old == "" {
		return nil, "", errdefs.Errorf(ErrConfig, "invalid empty AppArmor profile name, or unknown type: %q", p.Type)
	}
	switch p.Type {
	case v1.AppArmorProfileTypeRuntimeDefault:
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}, old, nil
	case v1.AppArmorProfileTypeUnconfined:
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, old, nil
	default:
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: *p.LocalhostProfile}, old, nil
	}
}

func selinux(o *v1.SELinuxOptions) *cri.SELinuxOption {
	if o == nil {
		return nil
	}
	return &cri.SELinuxOption{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
}

func int64Value(p *int64) *cri.Int64Value {
	if p == nil {
		return nil
	}
	return &cri.Int64Value{Value: *p}
}
