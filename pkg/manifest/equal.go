package manifest

import (
	"bytes"
	"encoding/json"
	"maps"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
)

// SemanticEqual says that two objects of one key describe the same thing, so that
// a running pod need not be touched: their specs were written alike, or mean
// the same once defaults are filled in (a default written out, a quantity in
// another unit, keys in another order). Labels and annotations do not count;
// MetadataEqual compares those. A UID that the user gave does.
func SemanticEqual(a, b Object) bool {
	if len(a.Canonical) > 0 && bytes.Equal(a.Canonical, b.Canonical) {
		return true
	}
	if writtenUID(a.Canonical) != writtenUID(b.Canonical) {
		return false
	}
	if a.Pod == nil || b.Pod == nil {
		return a.Pod == b.Pod && sameResource(a.Other, b.Other)
	}
	// The hash alone is not enough: spec.nodeName may come from the options.
	if a.SpecHash == b.SpecHash && a.Pod.Spec.NodeName == b.Pod.Spec.NodeName {
		return true
	}
	return apiequality.Semantic.DeepEqual(a.Pod.Spec, b.Pod.Spec)
}

// MetadataEqual says that labels and annotations are the same, and the record of
// who set what; none and empty are.
func MetadataEqual(a, b Object) bool {
	m, n := a.Meta(), b.Meta()
	return maps.Equal(m.GetLabels(), n.GetLabels()) && maps.Equal(m.GetAnnotations(), n.GetAnnotations()) &&
		apiequality.Semantic.DeepEqual(m.GetManagedFields(), n.GetManagedFields())
}

func writtenUID(canonical []byte) string {
	var doc struct {
		Metadata struct {
			UID string `json:"uid"`
		} `json:"metadata"`
	}
	// Canonical is ours and always parses; a zero Object has no UID.
	_ = json.Unmarshal(canonical, &doc)
	return doc.Metadata.UID
}
