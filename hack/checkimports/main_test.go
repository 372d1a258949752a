package main

import (
	"slices"
	"strings"
	"testing"
)

func TestImports(t *testing.T) {
	for _, c := range []struct {
		from, to, want string
	}{
		{"pkg/store", "pkg/manifest", ""},
		{"pkg/store", "pkg/runtime", "other way"},
		{"pkg/podworker", "pkg/podworker/lifecycle", ""},
		{"pkg/podworker/lifecycle", "pkg/podworker", "other way"},
		{"pkg/podworker", "pkg/status", ""}, // the exception
		{"pkg/podworker", "pkg/server", "other way"},
		{"pkg/source/file", "pkg/source/http", "sibling"},
		{"pkg/source/file", "pkg/store", ""},
		{"pkg/agent", "pkg/server/api", ""},
		{"pkg/pod", "internal/testbed", "no part of the product"},
		{"internal/testbed", "pkg/config", ""},
		{"pkg/unheard-of", "pkg/pod", "in no layer"},
	} {
		got := imports(pkg{ImportPath: module + c.from, Imports: []string{module + c.to}})
		if c.want == "" && len(got) > 0 {
			t.Errorf("%s → %s: %q", c.from, c.to, got)
		}
		if c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)) {
			t.Errorf("%s → %s: %q, want one with %q", c.from, c.to, got, c.want)
		}
	}
	if got := imports(pkg{ImportPath: module + "pkg/agent", Imports: []string{"k8s.io/client-go/kubernetes/scheme"}}); len(got) != 1 {
		t.Errorf("a banned import was not found: %q", got)
	}
}

func TestDependencies(t *testing.T) {
	const page = "# D\n## `go.mod`\n| `a` | why |\n| `gone` | why |\n## `x/go.mod`\n| `b` | why |\n## `old/go.mod`\n"
	got := compareDependencies(page, map[string][]string{"go.mod": {"a", "new"}, "x/go.mod": {"b"}, "y/go.mod": {"c"}})
	want := []string{"for new", "gone is listed", "no old/go.mod", "`y/go.mod` for c"}
	if len(got) != len(want) {
		t.Errorf("%q", got)
	}
	for _, w := range want {
		if !slices.ContainsFunc(got, func(g string) bool { return strings.Contains(g, w) }) {
			t.Errorf("nothing says %q: %q", w, got)
		}
	}
}
