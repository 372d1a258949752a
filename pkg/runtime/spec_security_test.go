package runtime

import (
	"errors"
	"reflect"
	"slices"
	"testing"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestSecurityConfig: what stands in a pod's and a container's security context
// is what the runtime is asked for, the container's word before the pod's.
func TestSecurityConfig(t *testing.T) {
	tr := translator{seccompRoot: "/var/lib/nodeagent/seccomp"}
	p := onePod("u")
	c := &p.Spec.Containers[0]
	p.Spec.SecurityContext = &v1.PodSecurityContext{
		RunAsUser: new(int64(1000)), RunAsGroup: new(int64(3000)), SupplementalGroups: []int64{4000},
		SupplementalGroupsPolicy: new(v1.SupplementalGroupsPolicyStrict),
		SELinuxOptions:           &v1.SELinuxOptions{Level: "s0:c1"},
		SeccompProfile:           &v1.SeccompProfile{Type: v1.SeccompProfileTypeRuntimeDefault},
		AppArmorProfile:          &v1.AppArmorProfile{Type: v1.AppArmorProfileTypeRuntimeDefault},
	}
	check := func(what string, want *cri.LinuxContainerSecurityContext) {
		t.Helper()
		got, err := tr.containerSecurity(p, c, 0)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		want.NamespaceOptions = namespaces(p, 0)
		want.SupplementalGroups, want.SupplementalGroupsPolicy = []int64{4000}, cri.SupplementalGroupsPolicy_Strict
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n%v\nwant\n%v", what, got, want)
		}
	}
	id := func(n int64) *cri.Int64Value { return &cri.Int64Value{Value: n} }
	check("the pod's", &cri.LinuxContainerSecurityContext{
		RunAsUser: id(1000), RunAsGroup: id(3000), SelinuxOptions: &cri.SELinuxOption{Level: "s0:c1"},
		Seccomp:  &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
		Apparmor: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
		//lint:ignore SA1019 containerd 1.6 reads the old field
		ApparmorProfile: "runtime/default",
		MaskedPaths:     maskedPaths(), ReadonlyPaths: readonlyPaths(),
	})
	c.SecurityContext = &v1.SecurityContext{
		RunAsUser: new(int64(2000)), RunAsGroup: new(int64(2)), Privileged: new(false), ReadOnlyRootFilesystem: new(true), AllowPrivilegeEscalation: new(false),
		Capabilities:    &v1.Capabilities{Add: []v1.Capability{"NET_ADMIN"}, Drop: []v1.Capability{"ALL"}},
		SELinuxOptions:  &v1.SELinuxOptions{User: "u", Role: "r", Type: "t", Level: "s0:c123,c456"},
		SeccompProfile:  &v1.SeccompProfile{Type: v1.SeccompProfileTypeLocalhost, LocalhostProfile: new("profiles/audit.json")},
		AppArmorProfile: &v1.AppArmorProfile{Type: v1.AppArmorProfileTypeLocalhost, LocalhostProfile: new("deny-write")},
	}
	own := &cri.LinuxContainerSecurityContext{
		RunAsUser: id(2000), RunAsGroup: id(2), ReadonlyRootfs: true, NoNewPrivs: true,
		Capabilities:   &cri.Capability{AddCapabilities: []string{"NET_ADMIN"}, DropCapabilities: []string{"ALL"}},
		SelinuxOptions: &cri.SELinuxOption{User: "u", Role: "r", Type: "t", Level: "s0:c123,c456"},
		Seccomp:        &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/var/lib/nodeagent/seccomp/profiles/audit.json"},
		Apparmor:       &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "deny-write"},
		//lint:ignore SA1019 containerd 1.6 reads the old field
		ApparmorProfile: "localhost/deny-write",
		MaskedPaths:     maskedPaths(), ReadonlyPaths: readonlyPaths(),
	}
	check("the container's", own)
	c.SecurityContext.ProcMount = new(v1.UnmaskedProcMount)
	own.MaskedPaths, own.ReadonlyPaths = nil, nil
	check("procMount Unmasked", own)
	c.SecurityContext.Privileged, own.Privileged = new(true), true
	c.SecurityContext.AllowPrivilegeEscalation, own.NoNewPrivs = nil, false
	check("privileged", own)
	if box, err := tr.sandboxSecurity(p, 0); err != nil || !box.Privileged || box.RunAsUser.GetValue() != 1000 || box.SelinuxOptions.GetLevel() != "s0:c1" {
		t.Errorf("the sandbox of a privileged pod: %v, %v", box, err)
	}
}

// TestLocalhostSeccomp: a profile without a name is no profile, and must not
// become none at all (CVE-2023-2431); one outside of the folder is not ours.
func TestLocalhostSeccomp(t *testing.T) {
	tr := translator{seccompRoot: "/seccomp"}
	p := onePod("u")
	c := &p.Spec.Containers[0]
	for _, name := range []*string{nil, new(""), new("../x"), new("/etc/x"), new("a/../../x"), new("..")} {
		c.SecurityContext = &v1.SecurityContext{SeccompProfile: &v1.SeccompProfile{Type: v1.SeccompProfileTypeLocalhost, LocalhostProfile: name}}
		if s, err := tr.containerSecurity(p, c, 0); !errors.Is(err, ErrConfig) {
			t.Errorf("%v gives %v, %v", name, s.GetSeccomp(), err)
		}
	}
	for kind, want := range map[v1.SeccompProfileType]cri.SecurityProfile_ProfileType{
		v1.SeccompProfileTypeRuntimeDefault: cri.SecurityProfile_RuntimeDefault,
		v1.SeccompProfileTypeUnconfined:     cri.SecurityProfile_Unconfined,
	} {
		c.SecurityContext.SeccompProfile = &v1.SeccompProfile{Type: kind}
		if s, err := tr.containerSecurity(p, c, 0); err != nil || s.GetSeccomp().GetProfileType() != want {
			t.Errorf("%s gives %v, %v", kind, s.GetSeccomp(), err)
		}
	}
	c.SecurityContext = nil
	if s, err := tr.containerSecurity(p, c, 0); err != nil || s.GetSeccomp().GetProfileType() != cri.SecurityProfile_Unconfined || s.NoNewPrivs || !slices.Equal(s.ReadonlyPaths, readonlyPaths()) {
		t.Errorf("no context gives %v, %v", s, err)
	}
	c.SecurityContext = &v1.SecurityContext{AppArmorProfile: &v1.AppArmorProfile{Type: v1.AppArmorProfileTypeLocalhost, LocalhostProfile: new("")}}
	if s, err := tr.containerSecurity(p, c, 0); !errors.Is(err, ErrConfig) {
		t.Errorf("an AppArmor profile without a name gives %v, %v", s.GetApparmor(), err)
	}
}
