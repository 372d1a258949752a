package manifest

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"sync"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Resource is an object that is no Pod: a *v1.Service, a *v1.ConfigMap, ….
type Resource interface {
	runtime.Object
	metav1.Object
}

// kind is what there is to know of one kind of Resource.
type kind struct {
	apiVersion, name string
	// resource is the kind's name in paths: "services".
	resource string
	// short is kubectl's short name of it, if there is one.
	short string
	// empty is an object of the kind's Go type; it is never changed.
	empty Resource
	// cluster says that objects of the kind are in no namespace.
	cluster bool
	// fields are the kind's rows of the support table; ObjectMeta has its own.
	fields []typeFields
	// nameRule is the API server's for metadata.name.
	nameRule apivalidation.ValidateNameFunc
	// complete fills in the API server's defaults and is idempotent.
	complete func(Resource)
	// validate checks everything but the metadata; old is what is updated, or
	// nil.
	validate func(now, old Resource) field.ErrorList
	// recheckMeta says that the rules for the metadata of a new object are those
	// of an update, too.
	recheckMeta bool
	// strictUpdate says that the rules for updates hold for a changed manifest in
	// a folder, too, and not only over the API.
	strictUpdate bool
	// carryOver is CarryOver for the kind; nil: nothing is ever allocated.
	carryOver func(now, before, wanted Resource)
}

// kinds are all kinds of Resource. Each has a file of its own.
var kinds = sync.OnceValue(func() []kind {
	return []kind{
		serviceKind(), endpointSliceKind(), endpointsKind(), configMapKind(), secretKind(), persistentVolumeKind(), persistentVolumeClaimKind(),
		namespaceKind(), serviceAccountKind(), runtimeClassKind(), priorityClassKind(),
	}
})

func (k kind) typ() reflect.Type { return reflect.TypeOf(k.empty).Elem() }

func (k kind) make() Resource {
	r := k.empty.DeepCopyObject().(Resource)
	reflect.ValueOf(r).Elem().FieldByName("TypeMeta").Set(reflect.ValueOf(metav1.TypeMeta{APIVersion: k.apiVersion, Kind: k.name}))
	return r
}

// findKind is the kind that a manifest names.
func findKind(apiVersion, name string) (kind, bool) {
	i := slices.IndexFunc(kinds(), func(k kind) bool { return k.apiVersion == apiVersion && k.name == name })
	if i < 0 {
		return kind{}, false
	}
	return kinds()[i], true
}

// kindOf is the kind of an object. One of a type that is not in the table is a
// mistake of the caller, and panics.
func kindOf(r Resource) kind {
	i := slices.IndexFunc(kinds(), func(k kind) bool { return reflect.TypeOf(k.empty) == reflect.TypeOf(r) })
	return kinds()[i]
}

// KindOf names the kind of a Resource: "Service".
func KindOf(r Resource) string { return kindOf(r).name }

// Kind names one kind of Resource.
type Kind struct {
	APIVersion string // "discovery.k8s.io/v1"
	Name       string // "EndpointSlice"
	Resource   string // its name in paths: "endpointslices"
	Short      string // kubectl's short name; may be empty
	Namespaced bool
}

// Kinds are all kinds of Resource.
func Kinds() (out []Kind) {
	for _, k := range kinds() {
		out = append(out, Kind{k.apiVersion, k.name, k.resource, k.short, !k.cluster})
	}
	return out
}

// New is an empty object of a kind that is in Kinds, with its type.
func New(name string) Resource {
	i := slices.IndexFunc(kinds(), func(k kind) bool { return k.name == name })
	return kinds()[i].make()
}

// ResourceName is the name of a kind in paths: "pods", "services".
func ResourceName(kind string) string {
	for _, k := range kinds() {
		if k.name == kind {
			return k.resource
		}
	}
	return "pods"
}

// DefaultResource fills in what kube-apiserver v1.37 fills in before it stores
// an object, in place; it is idempotent. What it allocates (cluster IPs, node
// ports) is left open.
func DefaultResource(r Resource) { kindOf(r).complete(r) }

// ValidateResource checks a defaulted object by kube-apiserver's rules for
// creating one.
func ValidateResource(r Resource) field.ErrorList {
	k := kindOf(r)
	errs := apivalidation.ValidateObjectMetaAccessor(r, !k.cluster, k.nameRule, field.NewPath("metadata"))
	return append(errs, k.validate(r, nil)...)
}

// ValidateResourceUpdate checks that a user may turn old into updated, both
// defaulted and neither changed. What was allocated must have been carried over
// before. Metadata that a server keeps (UID when empty, resourceVersion,
// timestamps) is taken from old.
func ValidateResourceUpdate(updated, old Resource) field.ErrorList {
	now, was := updated.DeepCopyObject().(Resource), old.DeepCopyObject().(Resource)
	if now.GetUID() == "" {
		now.SetUID(was.GetUID())
	}
	now.SetGeneration(was.GetGeneration())
	now.SetCreationTimestamp(was.GetCreationTimestamp())
	if was.GetResourceVersion() == "" {
		was.SetResourceVersion("0")
	}
	now.SetResourceVersion(was.GetResourceVersion())
	k := kindOf(now)
	errs := apivalidation.ValidateObjectMetaAccessorUpdate(now, was, field.NewPath("metadata"))
	if k.recheckMeta {
		errs = append(errs, apivalidation.ValidateObjectMetaAccessor(now, !k.cluster, k.nameRule, field.NewPath("metadata"))...)
	}
	return append(errs, k.validate(now, was)...)
}

// RefusedChange says why a manifest may not become what it now says, for kinds
// whose objects are not free to change; nil when it may. What was allocated must
// have been carried over before.
func RefusedChange(updated, old Resource) error {
	if !kindOf(updated).strictUpdate {
		return nil
	}
	return ValidateResourceUpdate(updated, old).ToAggregate()
}

// IsNamespaced says whether objects of a kind ("Service") are in namespaces.
func IsNamespaced(name string) bool {
	i := slices.IndexFunc(kinds(), func(k kind) bool { return k.name == name })
	return i < 0 || !kinds()[i].cluster
}

// Restore reads back an object of a kind as the store showed it, with what was
// allocated and its status.
func Restore(name string, data []byte) (Resource, error) {
	r := New(name)
	if err := json.Unmarshal(data, r); err != nil {
		return nil, err
	}
	DefaultResource(r)
	return r, ValidateResource(r).ToAggregate()
}

// CarryOver gives an object what was allocated for the one that it replaces and
// that it does not name itself, as kube-apiserver does: a Service keeps its
// cluster IPs, node ports, IP families and load balancer addresses. before is
// the replaced object as it was served, wanted what its user had asked for. Only
// now is changed.
func CarryOver(now, before, wanted Resource) {
	if k := kindOf(now); k.carryOver != nil {
		k.carryOver(now, before.DeepCopyObject().(Resource), wanted)
	}
}

// sameResource says that two objects of one key mean the same; metadata does
// not count.
func sameResource(a, b Resource) bool {
	if reflect.TypeOf(a) != reflect.TypeOf(b) {
		return false
	}
	bare := func(r Resource) Resource {
		c := r.DeepCopyObject().(Resource)
		meta := reflect.ValueOf(c).Elem().FieldByName("ObjectMeta")
		meta.Set(reflect.Zero(meta.Type()))
		return c
	}
	return apiequality.Semantic.DeepEqual(bare(a), bare(b))
}

// takes lists the kinds that a manifest may hold: "Pods, Services, …".
func takes() string {
	names := []string{"Pods"}
	for _, k := range kinds() {
		names = append(names, plural(k.name))
	}
	return strings.Join(names, ", ")
}

func plural(name string) string {
	if strings.HasSuffix(name, "Class") {
		return name + "es"
	}
	return strings.TrimSuffix(name, "s") + "s"
}
