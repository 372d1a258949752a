package manifest

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
)

// FuzzDecode looks for input that panics, and for accepted input that does not
// survive what the agent does with it: validate it, write its canonical form to
// the disk and read that back after a restart.
func FuzzDecode(f *testing.F) {
	for _, pattern := range []string{"testdata/scenarios/*.txtar", "../../test/deck/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			if filepath.Ext(file) != ".txtar" {
				f.Add(data)
				continue
			}
			for _, part := range txtar.Parse(data).Files {
				if filepath.Ext(part.Name) != "" {
					f.Add(part.Data)
				}
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		opts := Options{Origin: "f.yaml", NodeName: "node-a"}
		objects, errs := Decode(data, opts)
		lines := 1
		for _, end := range []string{"\n", "\r", "\u0085", "\u2028", "\u2029"} {
			lines += bytes.Count(data, []byte(end))
		}
		for _, e := range errs {
			if e.Msg == "" || e.Origin == "" || e.Line < 1 || e.Line > lines {
				t.Errorf("an error that names nothing: %#v", e)
			}
		}
		for _, o := range objects {
			if (o.Pod == nil) == (o.Other == nil) {
				t.Fatalf("%s %s is a Pod and something else, or neither", o.Kind(), o.Key())
			}
			if o.Pod != nil {
				if errs := Validate(o.Pod); len(errs) > 0 {
					t.Errorf("accepted and not valid: %v", errs)
				}
			} else {
				checkResource(t, o.Other)
			}
			again, errs := Decode(o.Canonical, opts)
			if len(errs) > 0 || len(again) != 1 {
				t.Fatalf("the canonical form %s gives %v", o.Canonical, errs)
			}
			a := again[0]
			if !bytes.Equal(a.Canonical, o.Canonical) || a.SpecHash != o.SpecHash ||
				!apiequality.Semantic.DeepEqual(a.Pod, o.Pod) || !apiequality.Semantic.DeepEqual(a.Other, o.Other) || !SemanticEqual(a, o) || !MetadataEqual(a, o) {
				t.Errorf("%s\nbecomes\n%s", o.Canonical, a.Canonical)
			}
			if h, err := specHash(o.Canonical); o.Pod != nil && (err != nil || h != o.SpecHash) {
				t.Errorf("SpecHash of %s is %s, %v; want %s", o.Canonical, h, err, o.SpecHash)
			}
		}
	})
}

// checkResource: what was accepted is valid, and may be replaced by itself, with
// or without what the server allocated for it.
func checkResource(t *testing.T, r Resource) {
	t.Helper()
	if errs := ValidateResource(r); len(errs) > 0 {
		t.Errorf("accepted and not valid: %v", errs)
	}
	same := r.DeepCopyObject().(Resource)
	CarryOver(same, r, r)
	if !apiequality.Semantic.DeepEqual(same, r) {
		t.Errorf("%s replaced by itself becomes %s", mustJSON(t, r), mustJSON(t, same))
	}
	if errs := ValidateResourceUpdate(same, r); len(errs) > 0 {
		t.Errorf("cannot be replaced by itself: %v", errs)
	}
}
