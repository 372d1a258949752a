package pod

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// Field is what the downward API calls a field of the pod's metadata:
// metadata.name, .namespace, .uid, .labels, .annotations, and one label or
// annotation as in metadata.labels['app'].
func Field(p *v1.Pod, path string) (string, error) {
	if where, key, ok := Subscript(path); ok {
		switch where {
		case "metadata.labels":
			return p.Labels[key], nil
		case "metadata.annotations":
			return p.Annotations[key], nil
		}
	}
	switch path {
	case "metadata.name":
		return p.Name, nil
	case "metadata.namespace":
		return p.Namespace, nil
	case "metadata.uid":
		return string(p.UID), nil
	case "metadata.labels":
		return lines(p.Labels), nil
	case "metadata.annotations":
		return lines(p.Annotations), nil
	}
	return "", errdefs.Errorf(errdefs.ErrInvalid, "unsupported fieldPath: %s", path)
}

// Subscript splits metadata.labels['app'] into metadata.labels and app.
func Subscript(path string) (where, key string, ok bool) {
	rest, ok := strings.CutSuffix(path, "']")
	if !ok {
		return "", "", false
	}
	where, key, ok = strings.Cut(rest, "['")
	return where, key, ok && where != ""
}

// lines is key="value", one a line, sorted.
func lines(m map[string]string) string {
	out := make([]string, 0, len(m))
	for _, key := range slices.Sorted(maps.Keys(m)) {
		out = append(out, key+"="+strconv.Quote(m[key]))
	}
	return strings.Join(out, "\n")
}

// ResourceField is a container's limit or request in units of the divisor,
// rounded up. A limit that is not set is the pod's own, else what the node has to give.
func ResourceField(p *v1.Pod, container string, ref *v1.ResourceFieldSelector, allocatable v1.ResourceList) (string, error) {
	c, _, ok := Container(p, container)
	if !ok {
		return "", errdefs.Errorf(errdefs.ErrInvalid, "container %s not found", container)
	}
	list, name, _ := strings.Cut(ref.Resource, ".")
	var q resource.Quantity
	switch resource := v1.ResourceName(name); {
	case !slices.Contains([]v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage}, resource) &&
		!strings.HasPrefix(name, v1.ResourceHugePagesPrefix),
		list != "limits" && list != "requests":
		return "", errdefs.Errorf(errdefs.ErrInvalid, "unsupported container resource: %s", ref.Resource)
	case list == "requests":
		q = c.Resources.Requests[resource]
	default:
		if q = c.Resources.Limits[resource]; q.IsZero() && !strings.HasPrefix(name, v1.ResourceHugePagesPrefix) {
			q = allocatable[resource]
			if own := p.Spec.Resources; own != nil && OwnResource(resource) && !own.Limits.Name(resource, "").IsZero() {
				q = own.Limits[resource]
			}
		}
	}
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = *resource.NewQuantity(1, resource.DecimalSI)
	}
	value, unit := q.Value(), divisor.Value()
	if name == string(v1.ResourceCPU) {
		value, unit = q.MilliValue(), divisor.MilliValue()
	}
	return fmt.Sprint(int64(math.Ceil(float64(value) / float64(unit)))), nil
}
