package manifest

import (
	"bytes"
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// WithManagedFields is the object with a record of who set what, which
// server-side apply keeps. It is a part of Canonical, so that it outlives the
// agent, and of no identity: neither spec hash nor UID depend on it.
func (o Object) WithManagedFields(managed []metav1.ManagedFieldsEntry) (Object, error) {
	d := json.NewDecoder(bytes.NewReader(o.Canonical))
	d.UseNumber()
	var doc map[string]any
	if err := d.Decode(&doc); err != nil {
		return o, fmt.Errorf("reading the canonical form back: %w", err)
	}
	meta, _ := doc["metadata"].(map[string]any)
	if meta == nil {
		return o, nil // nothing that has a name is without metadata
	}
	meta["managedFields"] = managed
	if len(managed) == 0 {
		delete(meta, "managedFields")
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b) // which sorts keys
	enc.SetEscapeHTML(false)
	if err := enc.Encode(doc); err != nil {
		return o, fmt.Errorf("managed fields: %w", err)
	}
	o.Canonical = bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	o.Meta().SetManagedFields(managed)
	return o, nil
}

// RestoreManagedFields gives a decoded object the record that its canonical form
// has. Decode drops it: in a manifest that somebody exported it means nothing.
func (o Object) RestoreManagedFields() {
	if !bytes.Contains(o.Canonical, []byte(`"managedFields"`)) {
		return
	}
	var doc struct {
		Metadata struct {
			ManagedFields []metav1.ManagedFieldsEntry `json:"managedFields"`
		} `json:"metadata"`
	}
	// One that cannot be read is begun anew by the next apply.
	if json.Unmarshal(o.Canonical, &doc) == nil {
		o.Meta().SetManagedFields(doc.Metadata.ManagedFields)
	}
}
