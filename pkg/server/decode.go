package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// decodeObject decodes, defaults and validates the one object in raw. What a server
// sets is taken out first, so that the output of a GET can be sent back; create
// also takes the UID out, as kube-apiserver does.
func (s *Server) decodeObject(raw []byte, kind servedKind, opts manifest.Options, create bool) (manifest.Object, error) {
	opts.Origin, opts.NodeName, opts.Only = store.SourcePush, s.o.NodeName, kind.Name
	o, err := decodeOne(raw, kind, opts)
	if err != nil {
		return o, err
	}
	doc, err := document(o.Canonical)
	if err != nil {
		return o, err
	}
	rv, err := resourceVersion(doc)
	if err != nil {
		return o, err
	}
	if create && rv != "" {
		return o, apierrors.NewBadRequest("resourceVersion should not be set on objects to be created")
	}
	if stripServerSide(doc, create, kind.ownStatus()) {
		// A name that was generated stands in the canonical form already.
		if o, err = decodeDocument(doc, kind, opts); err != nil {
			return o, err
		}
	}
	o.Meta().SetResourceVersion(rv)
	return o, nil
}

func decodeDocument(doc map[string]any, kind servedKind, opts manifest.Options) (manifest.Object, error) {
	var clean bytes.Buffer
	enc := json.NewEncoder(&clean)
	enc.SetEscapeHTML(false) // it must not grow beyond what a document may have
	if err := enc.Encode(doc); err != nil {
		return manifest.Object{}, apierrors.NewInternalError(err)
	}
	return decodeOne(clean.Bytes(), kind, opts)
}

// document reads a canonical form, its numbers as they are written.
func document(canonical []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(canonical))
	d.UseNumber()
	var doc map[string]any
	if err := d.Decode(&doc); err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("reading the canonical form back: %w", err))
	}
	return doc, nil
}

// resourceVersion is what the client says of it; the manifest's decoder does
// not look at what a server sets.
func resourceVersion(doc map[string]any) (string, error) {
	meta, _ := doc["metadata"].(map[string]any)
	switch v := meta["resourceVersion"].(type) {
	case nil:
		return "", nil
	case string:
		return v, nil
	}
	return "", apierrors.NewBadRequest("metadata.resourceVersion: expected a string")
}

// serverAnnotations are the ones that the store adds to what it shows.
func serverAnnotations() []string {
	return []string{pod.AnnotationOrigin, pod.AnnotationConfigSource, pod.AnnotationConfigHash, pod.AnnotationConfigSeen, pod.AnnotationConfigMirror, pod.AnnotationProblem}
}

// stripServerSide removes what only a server may say, and reports whether there
// was any; status says that the status is one of them.
func stripServerSide(doc map[string]any, create, status bool) bool {
	found := false
	drop := func(m map[string]any, keys ...string) {
		for _, k := range keys {
			if _, ok := m[k]; ok {
				delete(m, k)
				found = true
			}
		}
	}
	if status {
		drop(doc, "status")
	}
	meta, _ := doc["metadata"].(map[string]any)
	if meta == nil {
		return found
	}
	drop(meta, "resourceVersion", "creationTimestamp", "generation", "selfLink", "managedFields", "deletionTimestamp", "deletionGracePeriodSeconds")
	if create {
		drop(meta, "uid")
	}
	if a, ok := meta["annotations"].(map[string]any); ok {
		drop(a, serverAnnotations()...)
		if len(a) == 0 {
			delete(meta, "annotations")
		}
	}
	return found
}

func decodeOne(raw []byte, kind servedKind, opts manifest.Options) (manifest.Object, error) {
	objects, errs := manifest.Decode(raw, opts)
	if len(errs) > 0 {
		return manifest.Object{}, decodeError(kind, errs)
	}
	if len(objects) != 1 {
		return manifest.Object{}, apierrors.NewBadRequest(fmt.Sprintf("the body must hold one %s, not %d", kind.Name, len(objects)))
	}
	return objects[0], nil
}

// decodeError tells a body that is no Pod (400) from a Pod that may not be
// (422), as kube-apiserver does.
func decodeError(kind servedKind, errs []*manifest.Error) error {
	if e := errs[0]; e.Unsupported && e.Field == "kind" {
		return apierrors.NewBadRequest("the object provided is unrecognized (must be of type " + kind.Name + "): " + e.Msg)
	}
	name := ""
	if _, key, ok := strings.Cut(errs[0].Object, " "); ok {
		name = key[strings.IndexByte(key, '/')+1:]
	}
	if slices.ContainsFunc(errs, isValidation) {
		return invalid(kind, name, errs)
	}
	var text []string
	for _, e := range errs {
		switch {
		case e.Field == "":
			text = append(text, e.Msg)
		case e.Type == manifest.UnknownField:
			// The field stands in the middle, as tools know it.
			text = append(text, fmt.Sprintf("unknown field %q%s", e.Field, strings.TrimPrefix(e.Msg, "unknown field")))
		default:
			text = append(text, e.Field+": "+e.Msg)
		}
	}
	st := apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s: strict decoding error: %s",
		kind.Name, kind.version(), kind.Name, strings.Join(text, ", ")))
	st.ErrStatus.Details = &metav1.StatusDetails{Name: name, Kind: kind.Name}
	for _, e := range errs {
		st.ErrStatus.Details.Causes = append(st.ErrStatus.Details.Causes, metav1.StatusCause{Type: causeType(e), Field: e.Field, Message: e.Msg})
	}
	return st
}

// nameLetters leaves out what may spell words or be misread, as kube's do.
const nameLetters = "bcdfghjklmnpqrstvwxz2456789"

// freeName makes names for metadata.generateName that no object of the kind has now.
func (s *Server) freeName(v *view, namespace string) func(string) string {
	return func(prefix string) string {
		// 63 less the suffix, so that the name may be a host name.
		prefix = prefix[:min(len(prefix), 58)]
		name := prefix
		for range 8 {
			var b [5]byte
			_, _ = s.o.Rand.Read(b[:]) // crypto/rand never fails; a name that is taken is refused later
			for i := range b {
				b[i] = nameLetters[int(b[i])%len(nameLetters)]
			}
			name = prefix + string(b[:])
			if _, taken := v.get(pod.Key{Namespace: namespace, Name: name}); !taken {
				break
			}
		}
		return name
	}
}
