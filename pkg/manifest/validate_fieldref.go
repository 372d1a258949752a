package manifest

import (
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// fieldRefFields are the rows of what volumes and environment variables say of
// the pod itself.
var fieldRefFields = []typeFields{
	{of: v1.ObjectFieldSelector{}, supported: "apiVersion fieldPath"},
	{of: v1.ResourceFieldSelector{}, supported: "containerName resource divisor"},
}

// fieldPaths are what can be named at all; each place takes some of them.
var fieldPaths = []string{
	"metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid",
	"spec.nodeName", "spec.restartPolicy", "spec.serviceAccountName", "spec.schedulerName",
	"status.phase", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs",
}

var volumeFieldPaths = fieldPaths[:5]

// validateFieldRef checks a reference to a field, of which a place takes those
// in allowed.
func validateFieldRef(ref *v1.ObjectFieldSelector, allowed []string, p *field.Path) (errs field.ErrorList) {
	path := p.Child("fieldPath")
	switch {
	case ref.APIVersion == "":
		return field.ErrorList{field.Required(p.Child("apiVersion"), "")}
	case ref.FieldPath == "":
		return field.ErrorList{field.Required(path, "")}
	case ref.APIVersion != "v1":
		return field.ErrorList{field.Invalid(path, ref.FieldPath, "a Pod has no other apiVersion than v1")}
	}
	if where, key, ok := pod.Subscript(ref.FieldPath); ok {
		switch where {
		case "metadata.annotations":
			return invalid(p, key, validation.IsQualifiedName(strings.ToLower(key)))
		case "metadata.labels":
			return invalid(p, key, validation.IsQualifiedName(key))
		}
		return field.ErrorList{field.Invalid(path, ref.FieldPath, "only labels and annotations have keys")}
	}
	name := ref.FieldPath
	if name == "spec.host" {
		name = "spec.nodeName" // its name of long ago
	} else if !slices.Contains(fieldPaths, name) {
		return field.ErrorList{field.Invalid(path, name, "is no field that can be named")}
	}
	if !slices.Contains(allowed, name) {
		errs = append(errs, field.NotSupported(path, name, allowed))
	}
	return errs
}

// resourceFields are the limits and requests that can be named, beside those of
// huge pages.
var resourceFields = []string{
	"limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory",
}

// byteDivisors are the units of what is counted in bytes.
var byteDivisors = []string{"1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"}

// validateResourceFieldRef checks a reference to a container's limit or request.
// A volume must say which container; a variable is its own's.
func validateResourceFieldRef(ref *v1.ResourceFieldSelector, volume bool, p *field.Path) (errs field.ErrorList) {
	at := p.Child("resource")
	huge := strings.HasPrefix(ref.Resource, "requests."+v1.ResourceHugePagesPrefix) || strings.HasPrefix(ref.Resource, "limits."+v1.ResourceHugePagesPrefix)
	switch {
	case volume && ref.ContainerName == "":
		errs = append(errs, field.Required(p.Child("containerName"), ""))
	case ref.Resource == "":
		errs = append(errs, field.Required(at, ""))
	case !slices.Contains(resourceFields, ref.Resource) && !huge:
		errs = append(errs, field.NotSupported(at, ref.Resource, resourceFields))
	}
	if ref.Divisor.IsZero() {
		return errs
	}
	divisors := byteDivisors
	switch {
	case ref.Resource == "limits.cpu" || ref.Resource == "requests.cpu":
		divisors = []string{"1m", "1"}
	case !slices.Contains(resourceFields, ref.Resource) && !huge:
		return errs
	}
	if !slices.Contains(divisors, ref.Divisor.String()) {
		errs = append(errs, field.Invalid(p.Child("divisor"), ref.Resource, "must be one of "+strings.Join(divisors, ", ")))
	}
	return errs
}
