// Package openapi keeps the schemas that the agent publishes those of Kubernetes.
package openapi

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"flag"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the agent's schemas anew")

// kinds are what each group has of Kubernetes' own. That every kind which the
// agent serves is among them is checked by the agent's own tests.
var kinds = map[string][]string{
	"v1": {
		"ConfigMap", "DeleteOptions", "Endpoints", "Event", "Namespace", "Node", "PersistentVolume", "PersistentVolumeClaim", "Pod", "Secret",
		"Service", "ServiceAccount", "Status",
	},
	"discovery.k8s.io/v1":  {"EndpointSlice"},
	"node.k8s.io/v1":       {"RuntimeClass"},
	"scheduling.k8s.io/v1": {"PriorityClass"},
}

const out = "../../../pkg/server/openapi/schemas"

func TestSchemas(t *testing.T) {
	module := source(t)
	for gv, names := range kinds {
		file := "apis__" + strings.ReplaceAll(gv, "/", "__")
		if gv == "v1" {
			file = "api__v1"
		}
		b, err := os.ReadFile(filepath.Join(module, "api/openapi-spec/v3", file+"_openapi.json"))
		if err != nil {
			t.Fatal(err)
		}
		want := pruned(t, b, names)
		path := filepath.Join(out, strings.ReplaceAll(gv, "/", "_")+".json.gz")
		if *update {
			write(t, path, want)
			continue
		}
		if have := unpacked(t, path); !bytes.Equal(have, want) {
			t.Errorf("the schemas of %s are not those of Kubernetes: run go test -C test/kubernetes ./openapi -update", gv)
		}
	}
}

// source is the folder of the pinned Kubernetes.
func source(t *testing.T) string {
	t.Helper()
	b, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// pruned are the schemas of the kinds, of lists of them, and of all that those
// refer to.
func pruned(t *testing.T, doc []byte, names []string) []byte {
	t.Helper()
	var d struct {
		Components struct {
			Schemas map[string]json.RawMessage `json:"schemas"`
		} `json:"components"`
	}
	if err := json.Unmarshal(doc, &d); err != nil {
		t.Fatal(err)
	}
	all, keep := d.Components.Schemas, map[string]json.RawMessage{}
	var add func(name string)
	add = func(name string) {
		if keep[name] != nil {
			return
		}
		s := all[name]
		if s == nil {
			t.Fatalf("no schema %s", name)
		}
		keep[name] = s
		for _, ref := range strings.Split(string(s), `"#/components/schemas/`)[1:] {
			ref, _, _ = strings.Cut(ref, `"`)
			add(ref)
		}
	}
	found := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		var s struct {
			GVK []struct{ Group, Version, Kind string } `json:"x-kubernetes-group-version-kind"`
		}
		if err := json.Unmarshal(all[name], &s); err != nil {
			t.Fatal(err)
		}
		last := name[strings.LastIndexByte(name, '.')+1:]
		if len(s.GVK) > 0 && (slices.Contains(names, last) || slices.Contains(names, strings.TrimSuffix(last, "List"))) {
			add(name)
			found[strings.TrimSuffix(last, "List")] = true
		}
	}
	for _, n := range names {
		if !found[n] {
			t.Fatalf("no kind %s", n)
		}
	}
	b, err := json.Marshal(keep)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unpacked(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	have, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return have
}

func write(t *testing.T, path string, text []byte) {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}
