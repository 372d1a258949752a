package agent

import (
	"log/slog"
	"slices"
	"testing"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// TestNamespaces: what is in use is there, and goes when nothing is in it.
func TestNamespaces(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)
	a := &agent{log: quiet}
	var err error
	if a.store, err = store.Open(store.Options{
		Dir: t.TempDir(), ResourceDir: t.TempDir(), NodeName: "n", Decode: manifest.Decode, Equal: manifest.SemanticEqual, Log: quiet,
		Sources: []store.SourceDecl{{Name: store.SourceFile}},
	}); err != nil {
		t.Fatal(err)
	}
	has := func(want ...string) {
		t.Helper()
		a.deriveNamespaces()
		var have []string
		all, _ := a.store.Resources(namespaceKind)
		for _, r := range all {
			have = append(have, r.Object.GetName()+" "+r.Source)
		}
		if !slices.Equal(have, want) {
			t.Errorf("namespaces %q, want %q", have, want)
		}
	}
	has("default agent", "kube-node-lease agent", "kube-public agent", "kube-system agent")
	objects, errs := manifest.Decode([]byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: shop}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n"), manifest.Options{})
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	a.store.Apply(store.SourceFile, store.Snapshot{Objects: objects})
	has("default file", "kube-node-lease agent", "kube-public agent", "kube-system agent", "shop agent")
	a.store.Apply(store.SourceFile, store.Snapshot{})
	has("default agent", "kube-node-lease agent", "kube-public agent", "kube-system agent")
}
