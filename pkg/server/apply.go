package server

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// applyObject is PATCH of server-side apply: it makes the object when there is
// none.
func (s *Server) applyObject(w http.ResponseWriter, r *http.Request, v *view, key pod.Key, patch []byte, f format, mode writeMode) error {
	force, err := boolParam(r.URL.Query(), "force")
	if err != nil {
		return err
	}
	if r.URL.Query().Get("fieldManager") == "" {
		return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "PatchOptions"}, "",
			field.ErrorList{field.Required(field.NewPath("fieldManager"), "is required for apply patch")})
	}
	if err := checkApply(v, key, patch); err != nil {
		return err
	}
	for try := 1; ; try++ {
		o, code, err := s.apply(r, v, key, patch, force, mode)
		switch {
		case err == nil:
			write(w, f, code, o)
			return nil
		case errors.Is(err, errdefs.ErrConflict), errors.Is(err, errdefs.ErrExists):
			if try < changeTries {
				continue
			}
		}
		return err
	}
}

// apply merges a patch into what there is now, or into nothing.
func (s *Server) apply(r *http.Request, v *view, key pod.Key, patch []byte, force bool, mode writeMode) (manifest.Resource, int, error) {
	rec, there := v.get(key)
	if there {
		if err := v.writable(rec); err != nil {
			return nil, 0, err
		}
	}
	merged, err := s.merge(v, key, rec, patch, mode.manager, force)
	if err != nil {
		return nil, 0, err
	}
	mode.managed = merged.GetManagedFields()
	merged.SetManagedFields(nil)
	raw, err := json.Marshal(merged.Object)
	if err != nil {
		return nil, 0, apierrors.NewInternalError(err)
	}
	if there {
		o, err := v.replace(r.Context(), rec, raw, mode)
		if err != nil {
			return nil, 0, err
		}
		return v.typed(o), http.StatusOK, nil
	}
	o, err := s.decodeObject(raw, v.servedKind, manifest.Options{Namespace: key.Namespace, UID: uuid.NewUUID()}, true)
	if err != nil {
		return nil, 0, err
	}
	if o, err = o.WithManagedFields(mode.managed); err != nil {
		return nil, 0, apierrors.NewInternalError(err)
	}
	made, err := s.create(r, v, o, mode)
	return made, http.StatusCreated, err
}

// checkApply refuses a patch that is not of the object in the path.
func checkApply(v *view, key pod.Key, patch []byte) error {
	var meta metav1.PartialObjectMetadata
	if err := json.Unmarshal(patch, &meta); err != nil {
		return apierrors.NewBadRequest("the patch cannot be applied: " + err.Error())
	}
	switch {
	case meta.APIVersion != v.APIVersion || meta.Kind != v.Name:
		return apierrors.NewBadRequest("the patch is of " + meta.Kind + " in " + meta.APIVersion + ", the path of " + v.Name + " in " + v.APIVersion)
	case meta.Name != "" && meta.Name != key.Name:
		return apierrors.NewBadRequest("metadata.name: the patch is of " + meta.Name + ", the path of " + key.Name)
	case len(meta.ManagedFields) > 0:
		return apierrors.NewBadRequest("metadata.managedFields must be nil")
	}
	if meta.Namespace != "" {
		return sameNamespace(&meta, key.Namespace)
	}
	return nil
}

// merge is the object as it is once patch is applied, with its record of who set
// what.
func (s *Server) merge(v *view, key pod.Key, rec record, patch []byte, manager string, force bool) (*unstructured.Unstructured, error) {
	applied := &unstructured.Unstructured{}
	if err := json.Unmarshal(patch, &applied.Object); err != nil {
		return nil, apierrors.NewBadRequest("the patch cannot be applied: " + err.Error())
	}
	applied.SetName(key.Name)
	applied.SetNamespace(key.Namespace)
	live := &unstructured.Unstructured{Object: map[string]any{}}
	live.SetGroupVersionKind(v.gvk())
	if rec.object != nil {
		var err error
		if live, err = asUnstructured(rec.object); err != nil {
			return nil, err
		}
	}
	fields, err := s.managers.For(v.gvk())
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	merged, err := fields.Apply(live, applied, manager, force)
	var status apierrors.APIStatus
	switch {
	case errors.As(err, &status):
		return nil, err
	case err != nil:
		// It is the patch that does not fit the schema: an object that is served does.
		return nil, apierrors.NewBadRequest("the patch cannot be applied: " + err.Error())
	}
	return merged.(*unstructured.Unstructured), nil
}

func asUnstructured(o manifest.Resource) (*unstructured.Unstructured, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	u := &unstructured.Unstructured{}
	if err := json.Unmarshal(b, &u.Object); err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	return u, nil
}

// track notes down what a change that is no apply sets, for an object that
// somebody has applied; of the others there is no record.
func (s *Server) track(v *view, rec record, raw []byte, mode *writeMode) error {
	mode.managed = nil
	before := rec.object.GetManagedFields()
	if len(before) == 0 {
		return nil
	}
	mode.managed = before
	now := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(raw, &now.Object); err != nil || now.Object == nil {
		return nil // decoding says what is wrong with it
	}
	live, err := asUnstructured(rec.object)
	if err != nil {
		return err
	}
	fields, err := s.managers.For(v.gvk())
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	if now.GroupVersionKind() != v.gvk() {
		return nil
	}
	o, err := fields.Update(live, now, mode.manager)
	if err != nil {
		return nil // decoding says what is wrong with it
	}
	if meta, ok := o.(metav1.Object); ok {
		mode.managed = meta.GetManagedFields()
	}
	return nil
}

// managerOf names who changes something: as the client says, or by its program.
func managerOf(r *http.Request) string {
	if m := r.URL.Query().Get("fieldManager"); m != "" {
		return m
	}
	program, _, _ := strings.Cut(r.UserAgent(), "/")
	return program[:min(len(program), 128)]
}
