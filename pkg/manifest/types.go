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
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Object is one accepted document of a manifest.
type Object struct {
	// Pod is decoded, defaulted and validated. Its UID is set: the user's own,
	// or UID(nodeName, namespace, name, SpecHash).
	Pod *v1.Pod
	// Canonical is the whole document as the user wrote it, as JSON with sorted
	// keys and without nulls: no defaults, no Go struct in between (but for what
	// Options supplied). It is what is kept on disk and what equality is judged
	// on; Decode reads it back.
	Canonical []byte
	// SpecHash is the hex SHA-256 of the canonical form of .spec.
	SpecHash string
	// Origin is the file or URL the document came from, Line its first line
	// (1-based).
	Origin string
	Line   int
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

// UnknownField is the Type of a field that no Pod has.
const UnknownField field.ErrorType = "UnknownField"

// Error is one reason why a document was refused.
type Error struct {
	Origin string // file or URL; empty when unknown
	Line   int    // 1-based; 0 when unknown
	Object string // "Pod default/web", when it got that far
	Field  string // "spec.containers[0].image"; empty when the document does not parse
	Msg    string // what is wrong and what to do
	// Type is empty when the document could not be understood, UnknownField, or
	// what is wrong with a Pod that is one.
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

	// PodsOnly refuses lists, as the API does.
	PodsOnly bool
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
