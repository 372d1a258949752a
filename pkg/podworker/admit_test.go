package podworker

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
)

func TestAdmission(t *testing.T) {
	port := func(ip string, n int32, proto v1.Protocol) *v1.Pod {
		p := testPod("x", v1.RestartPolicyAlways, "c")
		p.Spec.Containers[0].Ports = []v1.ContainerPort{{HostPort: n, HostIP: ip, Protocol: proto}}
		return p
	}
	selects := func(k, v string) *v1.Pod {
		p := testPod("y", v1.RestartPolicyAlways, "c")
		p.Spec.NodeSelector = map[string]string{k: v}
		return p
	}
	secured := func(sc v1.PodSecurityContext, container *v1.SecurityContext) *v1.Pod {
		p := testPod("z", v1.RestartPolicyAlways, "c")
		p.Spec.SecurityContext, p.Spec.Containers[0].SecurityContext = &sc, container
		return p
	}
	strict, merge := v1.SupplementalGroupsPolicyStrict, v1.SupplementalGroupsPolicyMerge
	sysctl := func(name string, change func(*v1.PodSpec)) *v1.Pod {
		p := secured(v1.PodSecurityContext{Sysctls: []v1.Sysctl{{Name: name, Value: "1"}}}, nil)
		if change != nil {
			change(&p.Spec)
		}
		return p
	}
	profile := func(kind v1.AppArmorProfileType) *v1.AppArmorProfile { return &v1.AppArmorProfile{Type: kind} }
	for name, tc := range map[string]struct {
		pod, other *v1.Pod
		want       string
	}{
		"safe sysctl":                {pod: sysctl("net.ipv4.tcp_syncookies", nil)},
		"safe sysctl, with slashes":  {pod: sysctl("net/ipv4/tcp_syncookies", nil)},
		"safe sysctl of the host":    {pod: sysctl("net.ipv4.tcp_syncookies", func(s *v1.PodSpec) { s.HostNetwork = true }), want: ReasonSysctl},
		"unsafe sysctl":              {pod: sysctl("net.core.somaxconn", nil), want: ReasonSysctl},
		"allowed sysctl":             {pod: sysctl("kernel.msgmax", nil)},
		"allowed sysctl of the host": {pod: sysctl("kernel.msgmax", func(s *v1.PodSpec) { s.HostIPC = true }), want: ReasonSysctl},
		"sysctl of no namespace":     {pod: sysctl("vm.swappiness", nil), want: ReasonSysctl},
		"groups, strict":             {pod: secured(v1.PodSecurityContext{SupplementalGroupsPolicy: &strict}, nil), want: ReasonGroupsPolicy},
		"groups, merged":             {pod: secured(v1.PodSecurityContext{SupplementalGroupsPolicy: &merge}, nil)},
		"AppArmor":                   {pod: secured(v1.PodSecurityContext{AppArmorProfile: profile(v1.AppArmorProfileTypeRuntimeDefault)}, nil), want: ReasonAppArmor},
		"AppArmor, of one":           {pod: secured(v1.PodSecurityContext{}, &v1.SecurityContext{AppArmorProfile: profile(v1.AppArmorProfileTypeLocalhost)}), want: ReasonAppArmor},
		"AppArmor, of none": {pod: secured(v1.PodSecurityContext{AppArmorProfile: profile(v1.AppArmorProfileTypeLocalhost)},
			&v1.SecurityContext{AppArmorProfile: profile(v1.AppArmorProfileTypeUnconfined)})},
		"affinity matches":      {pod: requires("amd", "nvidia")},
		"affinity differs":      {pod: requires("amd"), want: ReasonNodeAffinity},
		"label matches":         {pod: selects("gpu", "nvidia")},
		"label differs":         {pod: selects("gpu", "amd"), want: ReasonNodeAffinity},
		"label missing":         {pod: selects("disk", "ssd"), want: ReasonNodeAffinity},
		"same port":             {port("", 80, "TCP"), port("", 80, "TCP"), ReasonNodePorts},
		"other protocol":        {port("", 80, "TCP"), port("", 80, "UDP"), ""},
		"other port":            {port("", 80, "TCP"), port("", 81, "TCP"), ""},
		"other address":         {port("10.0.0.1", 80, "TCP"), port("10.0.0.2", 80, "TCP"), ""},
		"any address":           {port("10.0.0.1", 80, "TCP"), port("0.0.0.0", 80, "TCP"), ReasonNodePorts},
		"any address, v6 style": {port("::", 80, "TCP"), port("10.0.0.2", 80, "TCP"), ReasonNodePorts},
	} {
		var others []*v1.Pod
		if tc.other != nil {
			others = append(others, tc.other)
		}
		got := ""
		labels := func() map[string]string { return map[string]string{"gpu": "nvidia"} }
		if r := Admission(labels, NodeSecurity{GroupsPolicy: func() bool { return false }, Sysctls: []string{"kernel.msg*"}})(tc.pod, others); r != nil {
			got = r.Reason
			if !IsRefusal(v1.PodStatus{Phase: v1.PodFailed, Reason: r.Reason}) {
				t.Errorf("%s: reason %s is for ever", name, r.Reason)
			}
		}
		able := NodeSecurity{AppArmor: true, Sysctls: []string{"net/core/*", "kernel.msgmax"}, GroupsPolicy: func() bool { return true }}
		if r := Admission(labels, able)(tc.pod, nil); r != nil && r.Reason != ReasonNodeAffinity && !strings.Contains(name, "of the host") && !strings.Contains(name, "of no") {
			t.Errorf("%s: a node that can refuses it: %v", name, r)
		}
		if got != tc.want {
			t.Errorf("%s: refused for %q, want %q", name, got, tc.want)
		}
	}
}

// requires is a pod for nodes with one of the GPUs.
func requires(gpus ...string) *v1.Pod {
	p := testPod("w", v1.RestartPolicyAlways, "c")
	p.Spec.Affinity = &v1.Affinity{NodeAffinity: &v1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &v1.NodeSelector{
		NodeSelectorTerms: []v1.NodeSelectorTerm{{MatchExpressions: []v1.NodeSelectorRequirement{{Key: "gpu", Operator: v1.NodeSelectorOpIn, Values: gpus}}}}}}}
	return p
}
