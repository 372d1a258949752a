package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

// canonicalForm writes values as JSON with sorted keys and without white space.
// Nulls are left out where they mean that a field is absent; in a dictionary
// such as labels a null is an empty value, and stays.
//
// The form is a promise: pods on disk and derived UIDs depend on it, so it must
// never change for a document that an older version accepted.
type canonicalForm struct {
	// withoutServerSide leaves out what only an API server writes, and metadata
	// that is refused where it asks for something: owners and finalizers.
	withoutServerSide bool
}

// append writes a value that stands where the API has type t; t is nil below
// fields that the schema does not describe.
func (c canonicalForm) append(b []byte, n *node, t reflect.Type) []byte {
	if t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch n.kind {
	case kindNull:
		return append(b, "null"...)
	case kindBool, kindNumber:
		return append(b, n.text...)
	case kindString:
		return appendString(b, n.text)
	case kindList:
		var item reflect.Type
		if t != nil && t.Kind() == reflect.Slice {
			item = t.Elem()
		}
		b = append(b, '[')
		for i, v := range n.items {
			if i > 0 {
				b = append(b, ',')
			}
			b = c.append(b, v, item)
		}
		return append(b, ']')
	}
	return c.appendObject(b, n, t)
}

func (c canonicalForm) appendObject(b []byte, n *node, t reflect.Type) []byte {
	dictionary := t != nil && t.Kind() == reflect.Map
	fields := schema()[t]
	order := slices.Clone(n.entries)
	slices.SortFunc(order, func(x, y entry) int { return strings.Compare(x.key, y.key) })
	b = append(b, '{')
	first := true
	for _, e := range order {
		f := fields[e.key]
		if dictionary {
			f.typ = t.Elem()
		} else if e.value.kind == kindNull || c.withoutServerSide && (f.support == serverSide || f.support == refused && t == metaType) {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = appendString(b, e.key)
		b = append(b, ':')
		b = c.append(b, e.value, f.typ)
	}
	return append(b, '}')
}

func appendString(b []byte, s string) []byte {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	// A string always encodes.
	_ = enc.Encode(s)
	return append(b, bytes.TrimSuffix(buf.Bytes(), []byte("\n"))...)
}

// appendAppArmor adds to a spec the annotations that are a part of it: another
// profile is another pod.
func appendAppArmor(spec []byte, annotations map[string]string) []byte {
	for _, k := range slices.Sorted(maps.Keys(annotations)) {
		if strings.HasPrefix(k, prefixAppArmor) {
			spec = append(appendString(append(appendString(spec, k), ':'), annotations[k]), '\n')
		}
	}
	return spec
}

func hashSpec(spec []byte) string {
	if len(spec) == 0 {
		spec = []byte("{}")
	}
	sum := sha256.Sum256(spec)
	return hex.EncodeToString(sum[:])
}

// UID derives a pod's UID from what makes it the same pod: the node, the key
// and the hash of the spec; other kinds have their kind in its place. It has the shape of a UUID (RFC 9562, version 8).
func UID(nodeName, namespace, name, specHash string) types.UID {
	h := sha256.New()
	for _, s := range []string{"nodeagent pod uid", nodeName, namespace, name, specHash} {
		// No part can hold a NUL: all of them are names or hex.
		h.Write([]byte(s))
		h.Write([]byte{0})
	}
	u := h.Sum(nil)[:16]
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return types.UID(fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16]))
}
