package manifest

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// TestAppArmorAnnotationIsSpec: the annotation of AppArmor is a part of what a
// pod is, so that another profile is another pod, and an update cannot slip one
// under a pod that runs.
func TestAppArmorAnnotationIsSpec(t *testing.T) {
	with := func(value string) Object {
		return one(t, strings.Replace(plainPod, "  labels:", "  annotations: {container.apparmor.security.beta.kubernetes.io/web: "+value+"}\n  labels:", 1))
	}
	none, a, b := one(t, plainPod), with("localhost/a"), with("localhost/b")
	assertSameMeaning(t, a, b, false)
	assertSameMeaning(t, none, a, false)
	assertSameMeaning(t, a, with("localhost/a"), true)
	if a.Pod.UID == b.Pod.UID || a.Pod.UID == none.Pod.UID {
		t.Errorf("UIDs %s, %s, %s", none.Pod.UID, a.Pod.UID, b.Pod.UID)
	}
	for _, o := range []Object{none, b} {
		for _, errs := range []field.ErrorList{ValidateUpdate(o.Pod, a.Pod), ValidateUpdate(a.Pod, o.Pod)} {
			if len(errs.Filter(func(err error) bool { return !strings.Contains(err.Error(), "metadata.annotations[container.apparmor") })) == 0 {
				t.Errorf("an update may change the annotation: %v", errs)
			}
		}
	}
}

// TestGitRepoIsRefused: whoever could have a repository fetched had its hooks
// run by root (CVE-2024-10220), and others of the host read (CVE-2025-1767).
func TestGitRepoIsRefused(t *testing.T) {
	objects, errs := Decode([]byte(plainPod+"  volumes:\n  - name: code\n    gitRepo: {repository: 'ext::sh -c id', directory: x/.git}\n"), Options{Origin: "t.yaml"})
	if len(objects) != 0 || len(errs) != 1 || !errs[0].Unsupported || errs[0].Field != "spec.volumes[0].gitRepo" {
		t.Errorf("%d objects, errors %v", len(objects), errs)
	}
}
