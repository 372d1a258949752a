package api

import (
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"
)

// YAML writes JSON as YAML. JSON may hold characters that YAML's parser takes
// in escaped form only: DEL, the C1 controls and two that are none.
func YAML(doc []byte) ([]byte, error) {
	special := func(r rune) bool {
		return r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0xfffe || r == 0xffff
	}
	text := string(doc)
	if strings.IndexFunc(text, special) < 0 {
		return yaml.JSONToYAML(doc)
	}
	var b strings.Builder
	for _, r := range text {
		if special(r) {
			fmt.Fprintf(&b, `\u%04x`, r) // all of them are in strings
		} else {
			b.WriteRune(r)
		}
	}
	return yaml.JSONToYAML([]byte(b.String()))
}
