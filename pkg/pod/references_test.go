package pod

import (
	"fmt"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestReferences(t *testing.T) {
	object := func(name string) v1.LocalObjectReference { return v1.LocalObjectReference{Name: name} }
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}, Spec: v1.PodSpec{
		RuntimeClassName: new("kata"), PriorityClassName: "high", ImagePullSecrets: []v1.LocalObjectReference{object("pull")},
		InitContainers: []v1.Container{{EnvFrom: []v1.EnvFromSource{{SecretRef: &v1.SecretEnvSource{LocalObjectReference: object("both"), Optional: new(true)}}}}},
		Containers: []v1.Container{{
			EnvFrom: []v1.EnvFromSource{{ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: object("all"), Optional: new(true)}}},
			Env: []v1.EnvVar{{Name: "A", Value: "x"},
				{Name: "B", ValueFrom: &v1.EnvVarSource{ConfigMapKeyRef: &v1.ConfigMapKeySelector{LocalObjectReference: object("key")}}},
				{Name: "C", ValueFrom: &v1.EnvVarSource{SecretKeyRef: &v1.SecretKeySelector{LocalObjectReference: object("both")}}}},
		}},
		Volumes: []v1.Volume{
			{Name: "a", VolumeSource: v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "file", Optional: new(true)}}},
			{Name: "b", VolumeSource: v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: "disk"}}},
			{Name: "c", VolumeSource: v1.VolumeSource{Ephemeral: &v1.EphemeralVolumeSource{}}},
			{Name: "d", VolumeSource: v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{Sources: []v1.VolumeProjection{
				{ConfigMap: &v1.ConfigMapProjection{LocalObjectReference: object("part")}}, {Secret: &v1.SecretProjection{LocalObjectReference: object("part")}}}}}},
			{Name: "e", VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: object("all")}}},
			{Name: "f", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}},
		}}}
	var got []string
	for _, r := range References(p) {
		got = append(got, fmt.Sprintf("%s %s %t", r.Kind, r.Key, r.Optional))
		if !Names(p, r.Kind, r.Key) {
			t.Errorf("the pod does not name %v", r)
		}
	}
	want := `ConfigMap shop/all false
ConfigMap shop/key false
ConfigMap shop/part false
PersistentVolumeClaim shop/disk false
PersistentVolumeClaim shop/web-c false
PriorityClass high false
RuntimeClass kata false
Secret shop/both false
Secret shop/file true
Secret shop/part false
Secret shop/pull true
ServiceAccount shop/default true`
	if s := strings.Join(got, "\n"); s != want {
		t.Errorf("got\n%s\nwant\n%s", s, want)
	}
	if Names(p, "ConfigMap", Key{"default", "all"}) || Names(p, "Secret", Key{"shop", "all"}) {
		t.Error("the pod names what it does not")
	}
}
