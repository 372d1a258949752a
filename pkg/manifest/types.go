// Package manifest turns bytes that a user wrote into validated objects.
//
// It is pure: no files, no network, no clock. Decoding is strict (an unknown,
// duplicate or misspelt field is an error that names file, line and field),
// defaults are those of kube-apiserver v1.37, and validation agrees with
// kube-apiserver's for every supported field. A field that this agent does not
// support is refused by name, never ignored.
package manifest

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// Object is one accepted document of a manifest: a Pod, or an object of another
// kind. Exactly one of Pod and Other is set, decoded, defaulted and validated.
type Object struct {
	// Pod has its UID set: the user's own, or UID(nodeName, namespace, name,
	// SpecHash).
	Pod *v1.Pod
	// Other has its UID set: the user's own, or one that depends on the node, the
	// kind and the key alone. It changes in place, where a Pod is replaced.
	Other Resource
	// Canonical is the whole document as the user wrote it, as JSON with sorted
	// keys and without nulls: no defaults, no Go struct in between (but for what
	// Options supplied). It is what is kept on disk and what equality is judged
	// on; Decode reads it back.
	Canonical []byte
	// SpecHash is the hex SHA-256 of the canonical form of a Pod's .spec; others
	// have none.
	SpecHash string
	// Origin is the file or URL the document came from, Line its first line
	// (1-based).
	Origin string
	Line   int
}

// Meta is the object's metadata.
func (o Object) Meta() metav1.Object {
	if o.Pod != nil {
		return o.Pod
	}
	return o.Other
}

// Kind is "Pod" or the kind of Other.
func (o Object) Kind() string {
	if o.Pod != nil {
		return "Pod"
	}
	return KindOf(o.Other)
}

// Key is the object's namespace and name; objects of two kinds may share one.
func (o Object) Key() pod.Key {
	return pod.Key{Namespace: o.Meta().GetNamespace(), Name: o.Meta().GetName()}
}

// Place is "FILE:LINE", without the line when it is unknown.
func (o Object) Place() string { return place(o.Origin, o.Line) }

func place(origin string, line int) string {
	switch {
	case line == 0:
		return origin
	case origin == "":
		return fmt.Sprintf("line %d", line)
	}
	return fmt.Sprintf("%s:%d", origin, line)
}

// UnknownField is the Type of a field that no object of the kind has.
const UnknownField field.ErrorType = "UnknownField"

// Error is one reason why a document was refused.
type Error struct {
	Origin string // file or URL; empty when unknown
	Line   int    // 1-based; 0 when unknown
	Object string // "Pod default/web", when it got that far
	Field  string // "spec.containers[0].image"; empty when the document does not parse
	Msg    string // what is wrong and what to do
	// Type is empty when the document could not be understood, UnknownField, or
	// what is wrong with an object that is one.
	Type field.ErrorType
	// Unsupported is true when the field is valid Kubernetes that this agent
	// does not do.
	Unsupported bool
}

// Error is "FILE:LINE: OBJECT: FIELD: MESSAGE", with unknown parts left out.
func (e *Error) Error() string {
	var parts []string
	for _, p := range []string{place(e.Origin, e.Line), e.Object, e.Field, e.Msg} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, ": ")
}

// Options says how to decode.
type Options struct {
	// Origin names the file or URL in errors and in Object.Origin.
	Origin string
	// NodeName enters the derived UID and spec.nodeName. A pod that names
	// another node is refused; an empty NodeName (offline validation) refuses
	// none.
	NodeName string

	// The rest is for the push source. What they supply becomes part of
	// Canonical, so that a checkpoint decodes to the same object without them.

	// Only is the one kind that is taken ("Pod", "Service"); lists are refused
	// then, as the API does. Empty means every kind, and lists of them.
	Only string
	// Namespace is where an object goes that names none; empty means
	// "default".
	Namespace string
	// UID is given to an object that names none; empty means a UID derived
	// from the node, the key and the spec.
	UID types.UID
	// GenerateName turns metadata.generateName into a name that is free. When
	// nil, generateName is refused: a file must always mean the same pod.
	GenerateName func(prefix string) string
}
