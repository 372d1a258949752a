package push

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/store"
)

func (h *host) service(name, uid, port string) manifest.Object {
	h.Helper()
	doc := "apiVersion: v1\nkind: Service\nmetadata: {name: " + name + "}\nspec: {ports: [{port: " + port + "}]}\n"
	o, errs := manifest.Decode([]byte(doc), manifest.Options{Origin: store.SourcePush, NodeName: node, UID: types.UID(uid)})
	if len(errs) > 0 {
		h.Fatal(errs)
	}
	return o[0]
}

func (h *host) port(name string) int32 {
	if r, ok := h.store.Resource("Service", key(name)); ok {
		return r.Object.(*v1.Service).Spec.Ports[0].Port
	}
	return 0
}

// TestResourcesOutliveTheAgent: a Service that was accepted is there again, as it
// was changed last, until it is deleted; a pod of its name is another matter.
func TestResourcesOutliveTheAgent(t *testing.T) {
	h := newHost(t)
	h.create("web", "u-1")
	made, err := h.push.CreateResource(t.Context(), h.service("web", "u-1", "80"))
	h.must(err)
	if _, err := h.push.CreateResource(t.Context(), h.service("web", "u-2", "80")); !errors.Is(err, errdefs.ErrExists) {
		t.Errorf("made twice: %v", err)
	}
	if _, err := h.push.CreateResource(t.Context(), h.service("other", "u-1", "80")); !errors.Is(err, errdefs.ErrInvalid) {
		t.Errorf("a UID that is taken: %v", err)
	}
	h.restart()
	if h.port("web") != 80 || h.get("web") == nil {
		t.Error("it is not there again")
	}
	if _, err := h.push.UpdateResource(t.Context(), h.service("web", "u-1", "81"), made.Object.GetResourceVersion()); !errors.Is(err, errdefs.ErrConflict) {
		t.Errorf("an old version: %v", err)
	}
	_, err = h.push.UpdateResource(t.Context(), h.service("web", "u-1", "81"), "")
	h.must(err)
	h.restart()
	if h.port("web") != 81 {
		t.Errorf("port %d", h.port("web"))
	}
	if _, err := h.push.DeleteResource(t.Context(), "Service", key("web"), "u-9", ""); !errors.Is(err, errdefs.ErrConflict) {
		t.Errorf("another UID: %v", err)
	}
	_, err = h.push.DeleteResource(t.Context(), "Service", key("web"), "u-1", "")
	h.must(err)
	if _, err := h.push.DeleteResource(t.Context(), "Service", key("web"), "", ""); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("deleted twice: %v", err)
	}
	if h.restart(); h.port("web") != 0 || h.get("web") == nil {
		t.Error("the service is back, or the pod is gone")
	}
}

// TestDamagedResourceFile is written anew from the checkpoint.
func TestDamagedResourceFile(t *testing.T) {
	h := newHost(t)
	o := h.service("web", "u-1", "80")
	_, err := h.push.CreateResource(t.Context(), o)
	h.must(err)
	file := filepath.Join(filepath.Dir(h.objects), "services", "u-1.json")
	h.must(os.WriteFile(file, []byte("garbage"), 0o600))
	h.restart()
	if data, err := os.ReadFile(file); err != nil || string(data) != string(readable(o)) || !strings.Contains(string(data), "\n  \"kind\": \"Service\"") || h.port("web") != 80 {
		t.Errorf("%s, %v", data, err)
	}
}

// TestDisplacedResourceWaits for the source that has its name.
func TestDisplacedResourceWaits(t *testing.T) {
	h := newHost(t)
	_, err := h.push.CreateResource(t.Context(), h.service("web", "u-1", "80"))
	h.must(err)
	o := h.service("web", "", "90")
	o.Origin = "a.yaml"
	h.store.Apply(store.SourceFile, store.Snapshot{Objects: []manifest.Object{o}})
	if _, err := h.push.UpdateResource(t.Context(), h.service("web", "u-1", "81"), ""); !errors.Is(err, errdefs.ErrConflict) || h.port("web") != 90 {
		t.Errorf("port %d, %v", h.port("web"), err)
	}
	h.store.Apply(store.SourceFile, store.Snapshot{})
	if h.port("web") != 80 {
		t.Errorf("port %d", h.port("web"))
	}
}
