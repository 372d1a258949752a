package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/yaml"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

const (
	// maxPatchOperations as in kube-apiserver: a JSON patch is cheap to send
	// and, with copies, expensive to apply (CVE-2019-1002100).
	maxPatchOperations = 10000
	maxPatchCopies     = 64
	// These are beyond any Pod. To merge lists takes time with the square of their
	// length, and to merge levels with the square of their depth.
	maxPatchDepth = 64
	maxPatchList  = 1000
)

// patchObject is PATCH: strategic merge, JSON merge, JSON patch or apply.
func (s *Server) patchObject(w http.ResponseWriter, r *http.Request, v *view, key pod.Key) error {
	f, mode, patch, err := s.writeRequest(w, r)
	if err != nil {
		return err
	}
	media, err := bodyMedia(r)
	if err != nil {
		return err
	}
	apply, err := patcher(media, patch, v.empty())
	if err != nil {
		return err
	}
	if apply == nil {
		if patch, err = applied(patch); err != nil {
			return err
		}
		return s.applyObject(w, r, v, key, patch, f, mode)
	}
	o, err := attempt(v, key, func(rec record) (manifest.Resource, error) {
		current, err := json.Marshal(rec.object)
		if err != nil {
			return nil, apierrors.NewInternalError(err)
		}
		patched, err := apply(current)
		if err != nil {
			return nil, err
		}
		if len(patched) > maxBody {
			return nil, tooLarge(len(patched))
		}
		patched = s.tolerate(w, v, patched, mode)
		if err := s.track(v, rec, patched, &mode); err != nil {
			return nil, err
		}
		return v.replace(r.Context(), rec, patched, mode)
	})
	if err != nil {
		return err
	}
	write(w, f, http.StatusOK, o)
	return nil
}

func tooLarge(n int) error {
	return apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("the patched object would have %d bytes, the limit is %d", n, maxBody))
}

// applyJSONPatch applies the operations in pieces that end with a copy, which is
// the only operation that can add more than the patch has itself, and looks at
// the size after each: the library's own limit is one for the whole process.
func applyJSONPatch(doc []byte, p jsonpatch.Patch) ([]byte, error) {
	copies, start := 0, 0
	for i := range p {
		if p[i].Kind() == "copy" {
			copies++
		} else if i < len(p)-1 {
			continue
		}
		if copies > maxPatchCopies {
			return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("the patch has more than %d copy operations", maxPatchCopies))
		}
		out, err := p[start : i+1].Apply(doc)
		if err != nil {
			return nil, &apierrors.StatusError{ErrStatus: metav1.Status{
				Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid,
				Message: "the patch cannot be applied: " + err.Error(),
			}}
		}
		if len(out) > maxBody {
			return nil, tooLarge(len(out))
		}
		doc, start = out, i+1
	}
	return doc, nil
}

// applied is the JSON of a patch of server-side apply, which may be YAML.
func applied(patch []byte) ([]byte, error) {
	out, err := yaml.YAMLToJSONStrict(patch)
	if err == nil {
		err = isModest(out)
	}
	if err != nil {
		return nil, apierrors.NewBadRequest("the patch cannot be applied: " + err.Error())
	}
	return out, nil
}

// patcher parses the patch once and returns what applies it to the JSON of
// an object of the type of as; nil for one that is merged by its schema.
func patcher(media string, patch []byte, as any) (func([]byte) ([]byte, error), error) {
	bad := func(err error) error { return apierrors.NewBadRequest("the patch cannot be applied: " + err.Error()) }
	merge := jsonpatch.MergePatch
	switch types.PatchType(media) {
	case types.ApplyYAMLPatchType:
		return nil, nil
	case types.JSONPatchType, types.MergePatchType:
	case types.StrategicMergePatchType:
		merge = func(doc, patch []byte) ([]byte, error) {
			return strategicpatch.StrategicMergePatch(doc, patch, as)
		}
		// kubectl sends YAML here, too, when asked to.
		var err error
		if patch, err = yaml.YAMLToJSONStrict(patch); err != nil {
			return nil, bad(err)
		}
	default:
		return nil, unsupportedMedia(media, string(types.JSONPatchType), string(types.MergePatchType), string(types.StrategicMergePatchType), string(types.ApplyYAMLPatchType))
	}
	if err := isModest(patch); err != nil {
		return nil, bad(err)
	}
	if types.PatchType(media) == types.JSONPatchType {
		p, err := jsonpatch.DecodePatch(patch)
		if err != nil {
			return nil, bad(err)
		}
		if len(p) > maxPatchOperations {
			return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("the patch has %d operations, the limit is %d", len(p), maxPatchOperations))
		}
		return func(doc []byte) ([]byte, error) { return applyJSONPatch(doc, p) }, nil
	}
	if patch = bytes.TrimSpace(patch); patch[0] != '{' {
		return nil, bad(errors.New("it is not an object"))
	}
	return func(doc []byte) ([]byte, error) {
		out, err := merge(doc, patch)
		if err != nil {
			return nil, bad(err)
		}
		return out, nil
	}, nil
}

// isModest refuses what is no JSON, and JSON that no change of a Pod needs: nested
// too deeply, or with lists that are too long. The list of operations that a
// JSON patch is has its own limit.
func isModest(patch []byte) error {
	if !json.Valid(patch) {
		return errors.New("it is not JSON")
	}
	type level struct {
		list  bool
		items int
	}
	var open []level
	for d := json.NewDecoder(bytes.NewReader(patch)); ; {
		token, err := d.Token()
		if err != nil {
			return nil // the end: it is valid
		}
		delim, _ := token.(json.Delim)
		if delim == '}' || delim == ']' {
			open = open[:len(open)-1]
			continue
		}
		if n := len(open); n > 1 && open[n-1].list {
			if open[n-1].items++; open[n-1].items > maxPatchList {
				return fmt.Errorf("it has a list of more than %d items", maxPatchList)
			}
		}
		if delim == 0 {
			continue
		}
		if open = append(open, level{list: delim == '['}); len(open) > maxPatchDepth {
			return fmt.Errorf("it is nested deeper than %d", maxPatchDepth)
		}
	}
}
