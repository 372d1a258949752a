package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

const (
	yamlSecret    = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {password: hunter2}\n"
	yamlConfig    = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\nimmutable: true\ndata: {a: b}\n"
	yamlNamespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n"
	yamlVolume    = "apiVersion: v1\nkind: PersistentVolume\nmetadata: {name: v}\nspec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], hostPath: {path: /d}}\n"
)

func (h *host) known(kind, namespace, name string) (Resource, bool) {
	return h.Resource(kind, pod.Key{Namespace: namespace, Name: name})
}

// onDisk says whether a text stands in any file below the state folder.
func onDisk(t *testing.T, dir, text string) (found bool) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		found = found || bytes.Contains(data, []byte(text))
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return found
}

// TestSecretsAreNotOnTheDisk: what a Secret holds is kept in memory only, and
// outlives the agent there.
func TestSecretsAreNotOnTheDisk(t *testing.T) {
	h := newHost(t)
	h.apply(SourceFile, h.decode("a.yaml", yamlSecret, yamlConfig))
	state := filepath.Dir(h.o.Dir)
	if onDisk(t, state, "hunter2") || onDisk(t, state, "aHVudGVyMg") {
		t.Error("the secret is in the state folder")
	}
	if !onDisk(t, state, "immutable") {
		t.Error("the ConfigMap is not in the state folder")
	}
	h.open()
	if _, ok := h.known("Secret", "default", "s"); ok {
		t.Error("the secret was kept somewhere")
	}
	if _, ok := h.known("ConfigMap", "default", "c"); !ok {
		t.Error("the ConfigMap was not kept")
	}

	h.secrets = filepath.Join(t.TempDir(), "secrets")
	h.open()
	h.apply(SourceFile, h.decode("a.yaml", yamlSecret))
	h.open()
	r, ok := h.known("Secret", "default", "s")
	if !ok || string(r.Object.(*v1.Secret).Data["password"]) != "hunter2" {
		t.Fatalf("after a restart: %+v", r)
	}
	if st, err := os.Stat(h.resourcePath(h.others[objectKey{"Secret", r.Key()}])); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("its file: %v, %v", st, err)
	}
	h.apply(SourceFile)
	if onDisk(t, h.secrets, "hunter2") {
		t.Error("the secret is kept after its manifest has gone")
	}
}

// TestImmutable: what is immutable stays as it is, and the user is told where to
// look.
func TestImmutable(t *testing.T) {
	h := newHost(t)
	h.apply(SourceFile, h.decode("a.yaml", yamlConfig))
	for range 2 {
		h.apply(SourceFile, h.decode("a.yaml", strings.Replace(yamlConfig, "a: b", "a: other", 1)))
		r, _ := h.known("ConfigMap", "default", "c")
		if got := r.Object.(*v1.ConfigMap).Data["a"]; got != "b" {
			t.Errorf("it became %q", got)
		}
		h.wantProblem(SourceFile, "a.yaml:1: configmap default/c stays as it was: data: Forbidden")
		h.open()
	}
	h.apply(SourceFile, h.decode("a.yaml", strings.Replace(yamlConfig, "metadata: {", "metadata: {labels: {a: b}, ", 1)))
	if r, _ := h.known("ConfigMap", "default", "c"); r.Object.GetLabels()["a"] != "b" {
		t.Error("its labels cannot change")
	}
	h.apply(SourceFile)
	h.apply(SourceFile, h.decode("a.yaml", strings.Replace(yamlConfig, "a: b", "a: other", 1)))
	if r, _ := h.known("ConfigMap", "default", "c"); r.Object.(*v1.ConfigMap).Data["a"] != "other" {
		t.Error("a new one is not what its manifest says")
	}
}

// TestClusterScoped: what is in no namespace has a name alone, and its status is
// the agent's and outlives it.
func TestClusterScoped(t *testing.T) {
	h := newHost(t)
	h.apply(SourceFile, h.decode("a.yaml", yamlNamespace, yamlVolume))
	if _, ok := h.known("Namespace", "", "shop"); !ok {
		t.Error("the namespace is not known by its name")
	}
	r, _ := h.known("PersistentVolume", "", "v")
	v := r.Object.DeepCopyObject().(*v1.PersistentVolume)
	v.Status.Phase, v.Spec.ClaimRef = v1.VolumeBound, &v1.ObjectReference{Namespace: "default", Name: "c", UID: "u"}
	r.Object = v
	if err := h.SetResource(r); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(){
		"a restart": h.open,
		"a change of its labels": func() {
			h.apply(SourceFile, h.decode("a.yaml", yamlNamespace, strings.Replace(yamlVolume, "{name", "{labels: {a: b}, name", 1)))
		},
	} {
		change()
		r, _ := h.known("PersistentVolume", "", "v")
		if v := r.Object.(*v1.PersistentVolume); v.Status.Phase != v1.VolumeBound || v.Spec.ClaimRef == nil || v.Spec.ClaimRef.UID != "u" || r.Wanted.(*v1.PersistentVolume).Spec.ClaimRef != nil {
			t.Errorf("after %s: %+v", what, v)
		}
	}
}

// TestNotifyResources: who listens hears of every change, and may read.
func TestNotifyResources(t *testing.T) {
	h := newHost(t)
	var heard []string
	h.NotifyResources(func(kind string, key pod.Key) {
		_, there := h.Resource(kind, key)
		heard = append(heard, fmt.Sprint(kind, " ", key, " ", there))
	})
	h.apply(SourceFile, h.decode("a.yaml", yamlNamespace, yamlVolume))
	r, _ := h.known("PersistentVolume", "", "v")
	v := r.Object.DeepCopyObject().(*v1.PersistentVolume)
	v.Status.Phase = v1.VolumeAvailable
	r.Object = v
	if err := h.SetResource(r); err != nil {
		t.Fatal(err)
	}
	h.apply(SourceFile, h.decode("a.yaml", yamlVolume))
	if got, want := strings.Join(heard, ", "), "Namespace shop true, PersistentVolume v true, PersistentVolume v true, Namespace shop false"; got != want {
		t.Errorf("heard %s, want %s", got, want)
	}
}
