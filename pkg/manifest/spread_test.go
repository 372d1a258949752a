package manifest

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestSpread: what places pods beside others is checked and kept as written.
func TestSpread(t *testing.T) {
	decode := func(spec string) ([]Object, []*Error) {
		return Decode([]byte("apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {app: web}}\nspec:\n  containers: [{name: c, image: i}]\n"+spec), Options{})
	}
	found, errs := decode(`
  affinity:
    podAntiAffinity:
      requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {tier: front}}, matchLabelKeys: [app]}]
  topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule, labelSelector: {}, matchLabelKeys: [app]}]
`)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	spec := found[0].Pod.Spec
	for _, s := range []*metav1.LabelSelector{spec.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution[0].LabelSelector, spec.TopologySpreadConstraints[0].LabelSelector} {
		if s == nil || len(s.MatchExpressions) > 0 {
			t.Errorf("a selector became %v", s)
		}
	}
	if spec.TopologySpreadConstraints[0].WhenUnsatisfiable != v1.DoNotSchedule {
		t.Errorf("kept: %+v", spec.TopologySpreadConstraints)
	}
	for text, at := range map[string]string{
		"  affinity: {podAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{labelSelector: {}}]}}\n":                                                               "spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey",
		"  affinity: {podAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: z, labelSelector: {matchLabels: {app: web}}, matchLabelKeys: [app]}]}}\n": "spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0][0]",
		"  topologySpreadConstraints: [{topologyKey: zone, whenUnsatisfiable: DoNotSchedule}]\n":                                                                             "spec.topologySpreadConstraints[0].maxSkew",
		"  topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: ScheduleAnyway, minDomains: 2}]\n":                                                 "spec.topologySpreadConstraints[0].minDomains",
	} {
		if _, errs := decode(text); len(errs) == 0 || errs[0].Field != at {
			t.Errorf("%s: %v, want an error at %s", text, errs, at)
		}
	}
}
