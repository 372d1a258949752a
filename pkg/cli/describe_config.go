package cli

import (
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
)

func (d page) configMap(c *v1.ConfigMap) {
	if c.Immutable != nil {
		d.line(0, "Immutable:\t%s", *c.Immutable)
	}
	d.title("Data")
	for _, key := range slices.Sorted(maps.Keys(c.Data)) {
		d.line(0, "%s:", key)
		d.line(0, "----")
		for line := range strings.Lines(c.Data[key]) {
			d.line(0, "%s", strings.TrimSuffix(line, "\n"))
		}
		d.line(0, "")
	}
	if len(c.BinaryData) == 0 {
		return
	}
	d.title("BinaryData")
	for _, key := range slices.Sorted(maps.Keys(c.BinaryData)) {
		d.line(0, "%s: %s bytes", key, len(c.BinaryData[key]))
	}
}

// secret says how much there is, not what.
func (d page) secret(s *v1.Secret) {
	d.line(0, "Type:\t%s", s.Type)
	if s.Immutable != nil {
		d.line(0, "Immutable:\t%s", *s.Immutable)
	}
	d.title("Data")
	for _, key := range slices.Sorted(maps.Keys(s.Data)) {
		d.line(0, "%s:\t%s bytes", key, len(s.Data[key]))
	}
}

func (d page) title(name string) {
	d.line(0, "")
	d.line(0, "%s", name)
	d.line(0, "%s", strings.Repeat("=", len(name)))
}
