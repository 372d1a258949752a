package pod

import "testing"

func TestExpand(t *testing.T) {
	vars := map[string]string{"A": "1", "B": "$(A)", "EMPTY": ""}
	lookup := func(n string) (string, bool) { v, ok := vars[n]; return v, ok }
	for in, want := range map[string]string{
		"plain":          "plain",
		"$(A)":           "1",
		"x$(A)y$(A)":     "x1y1",
		"$$(A)":          "$(A)",
		"$$$(A)":         "$1",
		"$(MISSING)":     "$(MISSING)",
		"$(EMPTY)":       "",
		"$(B)":           "$(A)", // one level only
		"$(A":            "$(A",
		"$":              "$",
		"cost $5 ${A} $": "cost $5 ${A} $",
		"$()":            "$()",
		"$($(A))":        "$($(A))",
	} {
		if got := Expand(in, lookup); got != want {
			t.Errorf("Expand(%q) = %q, want %q", in, got, want)
		}
	}
}
