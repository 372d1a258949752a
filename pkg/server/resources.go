package server

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// resourceWriter changes objects of a kind that is no pod.
type resourceWriter struct {
	s    *Server
	kind servedKind
}

func (w resourceWriter) create(ctx context.Context, o manifest.Object) (manifest.Resource, error) {
	rec, err := w.s.o.PushResources.CreateResource(ctx, o)
	return rec.Object, err
}

// replace makes raw the new form of the object. What the client sends back only
// because it was shown (defaults, what was allocated, the status) does not become
// its wish.
func (w resourceWriter) replace(ctx context.Context, rec record, raw []byte, mode writeMode) (manifest.Resource, error) {
	old := rec.object
	o, rv, err := w.decodeUpdate(raw, rec)
	if err != nil {
		return nil, err
	}
	v := w.s.viewOf(w.kind.APIVersion, w.kind.Resource)
	if err := v.sameObject(o.Other, rv, old); err != nil {
		return nil, err
	}
	if o, err = o.WithManagedFields(mode.managed); err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	served := o.Other.DeepCopyObject().(manifest.Resource)
	manifest.CarryOver(served, old, rec.wanted)
	if errs := manifest.ValidateResourceUpdate(served, old); len(errs) > 0 {
		return nil, apierrors.NewInvalid(w.kind.gvk().GroupKind(), old.GetName(), errs)
	}
	if mode.dry {
		return served, nil
	}
	now, err := w.s.o.PushResources.UpdateResource(ctx, o, old.GetResourceVersion())
	return now.Object, err
}

// decodeUpdate reads the new form of an object without what only comes back.
func (w resourceWriter) decodeUpdate(raw []byte, rec record) (o manifest.Object, rv string, err error) {
	opts := manifest.Options{Origin: store.SourcePush, NodeName: w.s.o.NodeName, Only: w.kind.Name, Namespace: rec.key().Namespace, UID: rec.object.GetUID()}
	objects, errs := manifest.Decode(raw, opts)
	if len(errs) > 0 && !slices.ContainsFunc(errs, isValidation) {
		return o, "", decodeError(w.kind, errs)
	}
	var text []byte
	if len(objects) == 1 {
		text = objects[0].Canonical
	} else if text, err = yaml.YAMLToJSON(raw); err != nil { // it decodes; only its values are wrong as they stand
		return o, "", apierrors.NewBadRequest(err.Error())
	}
	doc, err := document(text)
	if err != nil {
		return o, "", err
	}
	if rv, err = resourceVersion(doc); err != nil {
		return o, "", err
	}
	current, err := json.Marshal(rec.object)
	if err != nil {
		return o, "", apierrors.NewInternalError(err)
	}
	shown, err := document(current)
	if err != nil {
		return o, "", err
	}
	wanted, err := document(rec.canonical)
	if err != nil {
		return o, "", err
	}
	stripServerSide(doc, false, w.kind.ownStatus())
	for _, part := range []string{"spec", "status"} {
		onlyWishes(doc, shown, wanted, part)
	}
	o, err = decodeDocument(doc, w.kind, opts)
	return o, rv, err
}

func (w resourceWriter) remove(ctx context.Context, rec record, o metav1.DeleteOptions) (manifest.Resource, error) {
	if w.kind.Name == "Namespace" {
		if err := w.s.emptyNamespace(ctx, rec.object.GetName()); err != nil {
			return nil, err
		}
	}
	uid, rv := preconditions(o)
	_, err := w.s.o.PushResources.DeleteResource(ctx, w.kind.Name, rec.key(), uid, rv)
	// Nothing has to end: the object is gone.
	return nil, err
}

// emptyNamespace deletes what came in through this API and is in a namespace, as
// the deletion of a namespace does. Pods end in their own time, and what comes
// from elsewhere stays; the namespace is shown for as long as there is any of it.
func (s *Server) emptyNamespace(ctx context.Context, namespace string) error {
	for _, v := range s.views {
		if !v.Namespaced || v.writer == nil {
			continue
		}
		records, _ := v.list()
		for _, rec := range records {
			if rec.source != store.SourcePush || rec.object.GetNamespace() != namespace {
				continue
			}
			if _, err := v.remove(ctx, rec, metav1.DeleteOptions{}); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
				return v.named(err, rec.object.GetName())
			}
		}
	}
	return nil
}
