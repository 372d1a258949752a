package store

import (
	"errors"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

var webKey = pod.Key{Namespace: "default", Name: "web"}

// TestAmendment: what is changed beside the source stays over restarts, in the
// way of no status that is computed, and of no other form of the manifest.
func TestAmendment(t *testing.T) {
	h := newHost(t)
	doc := "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: i}]}\n"
	h.apply(SourceFile, h.decode("/m/a.yaml", doc))
	first := h.web()
	_, err := h.Amend(webKey, first.Pod.UID, first.Pod.ResourceVersion, func(a *Amendment) {
		a.Ephemeral = append(a.Ephemeral, v1.EphemeralContainer{EphemeralContainerCommon: v1.EphemeralContainerCommon{Name: "debug", Image: "i"}})
		a.Conditions = []v1.PodCondition{{Type: "example.com/open", Status: v1.ConditionTrue}}
	})
	if err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		p := h.web().Pod
		if len(p.Spec.EphemeralContainers) != 1 || p.UID != first.Pod.UID || p.DeletionTimestamp != nil || p.Generation != 2 ||
			len(p.Status.Conditions) == 0 || p.Status.Conditions[0].Type != "example.com/open" {
			t.Errorf("%s: generation %d, %+v, %+v", when, p.Generation, p.Spec.EphemeralContainers, p.Status.Conditions)
		}
	}
	check("at once")
	// A status that was computed from what was before.
	if err := h.SetStatus(first.Pod.UID, v1.PodStatus{Phase: v1.PodRunning, Conditions: []v1.PodCondition{{Type: v1.PodReady, Status: v1.ConditionTrue}}}); err != nil {
		t.Fatal(err)
	}
	if n := len(h.web().Pod.Status.Conditions); n != 2 {
		t.Errorf("%d conditions", n)
	}
	check("with a status")
	h.open()
	check("after a restart")
	h.apply(SourceFile, h.decode("/m/b.yaml", "# moved\n"+doc))
	check("in another file")
	if len(first.Pod.Spec.EphemeralContainers) != 0 {
		t.Error("an earlier record was changed")
	}
	for _, err := range []error{
		amend(h, webKey, "other", ""), amend(h, webKey, first.Pod.UID, first.Pod.ResourceVersion),
	} {
		if !errors.Is(err, errdefs.ErrConflict) {
			t.Errorf("%v", err)
		}
	}
	if err := amend(h, pod.Key{Namespace: "default", Name: "none"}, "", ""); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("%v", err)
	}
	h.fill(true)
	if err := amend(h, webKey, "", ""); !errors.Is(err, errdefs.ErrTransient) {
		t.Errorf("on a full disk: %v", err)
	}
	check("after all that")
}

func amend(h *host, key pod.Key, uid types.UID, rv string) error {
	_, err := h.Amend(key, uid, rv, func(a *Amendment) { *a = Amendment{} })
	return err
}
