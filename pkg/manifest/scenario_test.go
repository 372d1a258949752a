package manifest

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite the expectations of testdata/scenarios")

// TestScenarios decodes the files of each archive in order, as node "node-a",
// and compares what is accepted and what is refused with the archive's "want".
// A "canonical" or "defaulted" section holds those forms of the accepted pods.
func TestScenarios(t *testing.T) {
	archives, err := filepath.Glob("testdata/scenarios/*.txtar")
	if err != nil || len(archives) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var want, canonical, defaulted bytes.Buffer
			for _, f := range a.Files {
				if filepath.Ext(f.Name) == "" {
					continue
				}
				objects, errs := Decode(f.Data, Options{Origin: f.Name, NodeName: "node-a"})
				for _, o := range objects {
					fmt.Fprintf(&want, "%s:%d: %s %s\n", o.Origin, o.Line, o.Kind(), o.Key())
					fmt.Fprintf(&canonical, "%s\n", o.Canonical)
					var shown any = o.Other
					if o.Pod != nil {
						shown = o.Pod.Spec
					}
					b, err := yaml.Marshal(shown)
					if err != nil {
						t.Fatal(err)
					}
					fmt.Fprintf(&defaulted, "%s", b)
				}
				for _, e := range errs {
					mark := "refused"
					if e.Unsupported {
						mark = "unsupported"
					}
					fmt.Fprintf(&want, "%s: %v\n", mark, e)
				}
			}
			compareSections(t, file, a, map[string][]byte{
				"want": want.Bytes(), "canonical": canonical.Bytes(), "defaulted": defaulted.Bytes()})
		})
	}
}

func compareSections(t *testing.T, file string, a *txtar.Archive, got map[string][]byte) {
	t.Helper()
	found := false
	for i, f := range a.Files {
		g, ok := got[f.Name]
		if !ok {
			continue
		}
		found = found || f.Name == "want"
		if *update {
			a.Files[i].Data = g
		} else if !bytes.Equal(g, f.Data) {
			t.Errorf("%s of %s is\n%s\nwant\n%s", f.Name, file, g, f.Data)
		}
	}
	if !found {
		t.Errorf("%s has no section \"want\"", file)
	}
	if *update {
		if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDeck holds the manifests of the deck to what this version promises: the
// plain pods, Services, configuration and volumes are taken, everything else is
// refused by its name.
func TestDeck(t *testing.T) {
	want := map[string]int{
		"pod-example.yaml": 1, "multi-container-example.yaml": 1, "container-attributes.yaml": 1,
		"pod-label-example.yaml": 1, "volume-example.yaml": 1, "hello-apparmor.yaml": 1, "security-context-demo.yaml": 1,
		"service-clusterip.yaml": 1, "service-externalname.yaml": 1, "service-headless.yaml": 1, "service-internal.yaml": 1,
		"service-loadbalancer.yaml": 1, "service-public.yaml": 1,
		"configmap.yaml": 1, "secret.yaml": 1, "pv-pvc-selector.yaml": 2,
	}
	files, err := filepath.Glob("../../test/deck/*.yaml")
	if err != nil || len(files) < 20 {
		t.Fatalf("the deck is not where it was: %d files, %v", len(files), err)
	}
	for _, file := range files {
		name := filepath.Base(file)
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		objects, errs := Decode(data, Options{Origin: name, NodeName: "node-a"})
		if len(objects) != want[name] {
			t.Errorf("%s gives %d objects, want %d", name, len(objects), want[name])
		}
		if want[name] > 0 && len(errs) > 0 || want[name] == 0 && len(errs) == 0 {
			t.Errorf("%s gives %d errors: %v", name, len(errs), errs)
		}
		for _, e := range errs {
			if !e.Unsupported || e.Line == 0 || e.Field == "" || e.Origin != name {
				t.Errorf("%s is not refused by name: %#v", name, e)
			}
		}
	}
}

// TestDefaultedPodsDecode holds that what the API shows of a pod is a manifest
// again, with the same meaning: kubectl edit and kubectl replace rest on it.
func TestDefaultedPodsDecode(t *testing.T) {
	for _, o := range corpus(t) {
		if o.Pod == nil {
			continue
		}
		shown := o.Pod.DeepCopy()
		shown.ResourceVersion, shown.Generation = "17", 1
		shown.Status.Phase = "Running"
		b, err := json.Marshal(shown)
		if err != nil {
			t.Fatal(err)
		}
		again, errs := Decode(b, Options{NodeName: "node-a"})
		if len(errs) > 0 || len(again) != 1 {
			t.Errorf("%s: %v", b, errs)
			continue
		}
		if again[0].Pod.UID != o.Pod.UID || again[0].Pod.ResourceVersion != "" || again[0].Pod.Status.Phase != "" {
			t.Errorf("%s: UID %s became %s, resourceVersion %q, phase %q", shown.Name, o.Pod.UID, again[0].Pod.UID,
				again[0].Pod.ResourceVersion, again[0].Pod.Status.Phase)
		}
		again[0].Canonical = o.Canonical
		assertSameMeaning(t, o, again[0], true)
		twice := o.Pod.DeepCopy()
		Default(twice)
		if a, b := mustJSON(t, o.Pod), mustJSON(t, twice); a != b {
			t.Errorf("defaulting twice changes %s\ninto %s", a, b)
		}
	}
}

// TestDefaultedResourcesDecode is the same for other kinds.
func TestDefaultedResourcesDecode(t *testing.T) {
	seen := map[string]bool{}
	for _, o := range corpus(t) {
		if o.Other == nil {
			continue
		}
		seen[o.Kind()] = true
		shown := o.Other.DeepCopyObject().(Resource)
		shown.SetResourceVersion("17")
		shown.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "v1", Kind: "Service", Name: "s", UID: "u"}})
		shown.SetFinalizers([]string{"service.kubernetes.io/load-balancer-cleanup"})
		again, errs := Decode([]byte(mustJSON(t, shown)), Options{NodeName: "node-a"})
		if len(errs) > 0 || len(again) != 1 {
			t.Errorf("%s: %v", mustJSON(t, shown), errs)
			continue
		}
		if a := again[0].Other; a.GetResourceVersion() != "" || a.GetOwnerReferences() != nil || a.GetFinalizers() != nil || a.GetUID() != o.Other.GetUID() {
			t.Errorf("metadata of %s became %s", mustJSON(t, shown), mustJSON(t, a))
		}
		if again[0].Canonical = o.Canonical; !SemanticEqual(o, again[0]) || !MetadataEqual(o, again[0]) {
			t.Errorf("%s became %s", mustJSON(t, o.Other), mustJSON(t, again[0].Other))
		}
		twice := o.Other.DeepCopyObject().(Resource)
		DefaultResource(twice)
		if a, b := mustJSON(t, o.Other), mustJSON(t, twice); a != b {
			t.Errorf("defaulting twice changes %s\ninto %s", a, b)
		}
	}
	if len(seen) != len(kinds()) {
		t.Errorf("only %v were tried", seen)
	}
}

// corpus is every object that the scenarios and the deck accept.
func corpus(t *testing.T) (out []Object) {
	t.Helper()
	add := func(data []byte) {
		objects, _ := Decode(data, Options{NodeName: "node-a"})
		out = append(out, objects...)
	}
	for _, pattern := range []string{"testdata/scenarios/*.txtar", "../../test/deck/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if filepath.Ext(file) == ".txtar" {
				a, err := txtar.ParseFile(file)
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range a.Files {
					if filepath.Ext(f.Name) != "" {
						add(f.Data)
					}
				}
				continue
			}
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			add(data)
		}
	}
	if len(out) < 15 {
		t.Fatalf("the corpus has only %d pods", len(out))
	}
	return out
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
