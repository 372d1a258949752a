package corpus

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// ServerSide are manifests with what only an API server writes, as "kubectl get
// -o yaml" prints it. nodeagent drops those parts unread.
func ServerSide() (out []Variant) {
	fields := map[string]any{
		"selfLink": "/x", "resourceVersion": "12345", "generation": 3, "creationTimestamp": "2026-01-02T03:04:05Z",
		"deletionTimestamp": "2026-01-02T03:04:05Z", "deletionGracePeriodSeconds": 30,
		"managedFields": []any{Object{"manager": "kubectl", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": Object{"f:spec": Object{}}}},
	}
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		o := Full()
		o["metadata"].(Object)[key] = fields[key]
		out = append(out, Variant{"server-side " + key, encode(o)})
	}
	for _, status := range []any{Object{}, Object{"phase": "Running", "podIP": "10.0.0.1", "conditions": []any{Object{"type": "Ready", "status": "True"}}}, nil} {
		o := Full()
		o["status"] = status
		out = append(out, Variant{"status", encode(o)})
	}
	return out
}

// Own is a manifest that Kubernetes accepts and nodeagent refuses by a rule of
// its own, and the field that it must name.
type Own struct {
	Variant
	Field string
}

// OwnRules lists nodeagent's own rules, with an example each.
func OwnRules() (out []Own) {
	add := func(why, path string, value any) {
		pod := put(Object{"apiVersion": "v1", "kind": "Pod", "metadata": Object{"name": "p"}, "spec": Object{
			"containers": []any{Object{"name": "c", "image": "i"}}}}, split(path), value)
		out = append(out, Own{Variant{why, encode(pod.(Object))}, path})
	}
	// An API server replaces the UID; here it names a folder and a label.
	add("a UID that is no name", "metadata.uid", "../../etc")
	add("a UID that is too long", "metadata.uid", strings.Repeat("u", 64))
	// No process and no path can be given a NUL: the runtime fails much later.
	for _, path := range []string{"spec.containers[0].args[0]", "spec.containers[0].command[0]", "spec.containers[0].workingDir", "metadata.annotations[a]"} {
		add("a NUL character", path, "a\x00b")
	}
	// Our own annotation means a probe that is there, and a time.
	add("a probe period of nobody", "metadata.annotations[readiness.probe-period.nodeagent.dev/c]", "200ms")
	// Kubernetes computes with numbers of any size; no resource needs them.
	for i, q := range []string{"1e100", "1e-100", strings.Repeat("0", 80) + "1"} {
		add(fmt.Sprintf("a quantity out of any range (%d)", i), "spec.containers[0].resources.requests[cpu]", q)
	}
	return out
}
