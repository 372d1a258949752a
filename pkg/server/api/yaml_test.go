package api

import (
	"encoding/json"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestYAML: whatever text is in an object can be shown and read back.
func TestYAML(t *testing.T) {
	for r := rune(0); r <= 0x10ffff; r++ {
		if r >= 0x3000 && r < 0xd800 || r > 0x10100 && r < 0x10fff0 {
			continue // one like the other
		}
		want := map[string]string{"k": "a" + string(r) + "b"}
		doc, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		out, err := YAML(doc)
		if err != nil {
			t.Errorf("%U: %v", r, err)
			continue
		}
		var got map[string]string
		if err := yaml.Unmarshal(out, &got); err != nil || got["k"] != want["k"] {
			t.Errorf("%U: %q is read back as %q, %v", r, out, got["k"], err)
		}
	}
	if _, err := YAML([]byte("{")); err == nil {
		t.Error("half of a document is YAML")
	}
}
