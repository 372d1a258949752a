package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// tolerateRounds is how often unknown fields are taken out: the decoder reports no
// more of them at a time than a person can take in.
const tolerateRounds = 8

// tolerate takes the fields that no object of the kind has out of raw, when the
// client says so (fieldValidation Warn or Ignore). Without its word they are
// refused: a field that is dropped helps nobody.
func (s *Server) tolerate(w http.ResponseWriter, v *view, raw []byte, mode writeMode) []byte {
	if mode.validation != metav1.FieldValidationWarn && mode.validation != metav1.FieldValidationIgnore {
		return raw
	}
	opts := manifest.Options{
		Origin: store.SourcePush, NodeName: s.o.NodeName, Only: v.Name,
		GenerateName: func(prefix string) string { return prefix + "x" },
	}
	for range tolerateRounds {
		_, errs := manifest.Decode(raw, opts)
		var doc any
		for _, e := range errs {
			if e.Type != manifest.UnknownField || e.Field == "" {
				continue
			}
			if doc == nil && yaml.Unmarshal(raw, &doc) != nil {
				return raw // decoding says what is wrong with it
			}
			removeField(doc, e.Field)
			if mode.validation == metav1.FieldValidationWarn {
				w.Header().Add("Warning", fmt.Sprintf("299 - %q", fmt.Sprintf("unknown field %q", e.Field)))
			}
		}
		if doc == nil {
			return raw
		}
		b, err := json.Marshal(doc)
		if err != nil {
			return raw
		}
		raw = b
	}
	return raw
}

// removeField takes a field such as spec.containers[0].imaeg out of a document.
// What is not there is no error.
func removeField(doc any, path string) {
	switch at := doc.(type) {
	case map[string]any:
		if _, ok := at[path]; ok {
			delete(at, path) // whatever dots it has in its name
			return
		}
		end := strings.IndexAny(path, ".[")
		if end < 0 {
			return
		}
		removeField(at[path[:end]], strings.TrimPrefix(path[end:], "."))
	case []any:
		index, rest, _ := strings.Cut(strings.TrimPrefix(path, "["), "]")
		if i, err := strconv.Atoi(index); err == nil && i >= 0 && i < len(at) {
			removeField(at[i], strings.TrimPrefix(rest, "."))
		}
	}
}
