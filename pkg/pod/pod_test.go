package pod

import (
	"testing"

	v1 "k8s.io/api/core/v1"
)

func TestReadsOnly(t *testing.T) {
	mount := func(name string, ro bool) v1.VolumeMount { return v1.VolumeMount{Name: name, ReadOnly: ro} }
	p := &v1.Pod{Spec: v1.PodSpec{
		InitContainers: []v1.Container{{VolumeMounts: []v1.VolumeMount{mount("both", false), mount("read", true)}}},
		Containers:     []v1.Container{{VolumeMounts: []v1.VolumeMount{mount("both", true), mount("read", true), mount("write", false)}}},
	}}
	for volume, want := range map[string]bool{"read": true, "write": false, "both": false, "unused": false} {
		if got := ReadsOnly(p, volume); got != want {
			t.Errorf("%s: %t, want %t", volume, got, want)
		}
	}
}
