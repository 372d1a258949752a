package pod

import (
	"math"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

func TestReadsOnly(t *testing.T) {
	mount := func(name string, ro bool) v1.VolumeMount { return v1.VolumeMount{Name: name, ReadOnly: ro} }
	p := &v1.Pod{Spec: v1.PodSpec{
		InitContainers: []v1.Container{{VolumeMounts: []v1.VolumeMount{mount("both", false), mount("read", true)}}},
		Containers:     []v1.Container{{VolumeMounts: []v1.VolumeMount{mount("both", true), mount("read", true), mount("write", false), mount("keys", false)}}},
		Volumes:        []v1.Volume{{Name: "keys", VolumeSource: v1.VolumeSource{Secret: &v1.SecretVolumeSource{}}}},
	}}
	for volume, want := range map[string]bool{"keys": true, "read": true, "write": false, "both": false, "unused": false} {
		if got := ReadsOnly(p, volume); got != want {
			t.Errorf("%s: %t, want %t", volume, got, want)
		}
	}
}

func TestGracePeriod(t *testing.T) {
	for seconds, want := range map[int64]time.Duration{
		-1: 0, 0: 0, 7: 7 * time.Second, math.MaxInt64: maxGrace, math.MaxInt64/int64(time.Second) + 1: maxGrace,
	} {
		p := &v1.Pod{Spec: v1.PodSpec{TerminationGracePeriodSeconds: &seconds}}
		if got := GracePeriod(p); got != want {
			t.Errorf("%d s of the spec: %s, want %s", seconds, got, want)
		}
		p = &v1.Pod{}
		p.DeletionGracePeriodSeconds = &seconds
		if got := GracePeriod(p); got != want {
			t.Errorf("%d s of the deletion: %s, want %s", seconds, got, want)
		}
	}
	if got := GracePeriod(&v1.Pod{}); got != 30*time.Second {
		t.Errorf("no wish: %s", got)
	}
}
