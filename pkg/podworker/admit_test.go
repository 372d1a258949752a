package podworker

import (
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
	for name, tc := range map[string]struct {
		pod, other *v1.Pod
		want       string
	}{
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
		if r := Admission(map[string]string{"gpu": "nvidia"})(tc.pod, others); r != nil {
			got = r.Reason
		}
		if got != tc.want {
			t.Errorf("%s: refused for %q, want %q", name, got, tc.want)
		}
	}
}
