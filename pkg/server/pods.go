package server

import (
	"context"
	"maps"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// find is a pod with its source, for what is below pods only.
func (s *Server) find(key pod.Key) (store.Record, error) {
	rec, ok := s.o.Pods.Get(key)
	if !ok || rec.Pod == nil {
		return store.Record{}, apierrors.NewNotFound(podKind.groupResource(), key.Name)
	}
	return rec, nil
}

// podWriter changes pods.
type podWriter struct{ s *Server }

func (p podWriter) create(ctx context.Context, o manifest.Object) (manifest.Resource, error) {
	made, err := p.s.o.Push.Create(ctx, o)
	if err != nil {
		return nil, err
	}
	return made, nil
}

func (p podWriter) replace(ctx context.Context, rec record, raw []byte, mode writeMode) (manifest.Resource, error) {
	old, key := rec.object.(*v1.Pod), rec.key()
	raw, err := withoutEphemeral(raw, old)
	if err != nil {
		return nil, err
	}
	o, err := p.s.decodeObject(raw, podKind, manifest.Options{Namespace: key.Namespace, UID: old.UID}, false)
	if err != nil {
		return nil, err
	}
	v := p.s.viewOf(podKind.APIVersion, podKind.Resource)
	if err := v.sameObject(o.Pod, o.Pod.ResourceVersion, old); err != nil {
		return nil, err
	}
	if errs := manifest.ValidateUpdate(o.Pod, old); len(errs) > 0 {
		return nil, apierrors.NewInvalid(podKind.gvk().GroupKind(), key.Name, errs)
	}
	if o, err = o.WithManagedFields(mode.managed); err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	if mode.dry {
		return preview(old, o), nil
	}
	// The rules were checked against this revision; nothing else may have come
	// between. Without a wish of the client's the caller tries again.
	now, err := p.s.o.Push.Update(ctx, key, o, old.ResourceVersion)
	if err != nil {
		return nil, err
	}
	return now, nil
}

// preview is what the pod would be shown as once it is o.
func preview(old *v1.Pod, o manifest.Object) *v1.Pod {
	p := *old
	p.ManagedFields = o.Pod.ManagedFields
	p.Labels, p.Annotations, p.Spec = o.Pod.Labels, map[string]string{}, o.Pod.Spec
	p.Spec.EphemeralContainers = old.Spec.EphemeralContainers
	maps.Copy(p.Annotations, o.Pod.Annotations)
	for _, a := range serverAnnotations() {
		if v, set := old.Annotations[a]; set {
			p.Annotations[a] = v
		}
	}
	p.Annotations[pod.AnnotationConfigHash] = o.SpecHash
	if !apiequality.Semantic.DeepEqual(old.Spec, p.Spec) {
		p.Generation++
	}
	return &p
}

func (p podWriter) remove(ctx context.Context, rec record, o metav1.DeleteOptions) (manifest.Resource, error) {
	uid, rv := preconditions(o)
	now, err := p.s.o.Push.Delete(ctx, rec.key(), o.GracePeriodSeconds, uid, rv)
	if err != nil {
		return nil, err
	}
	if now == nil {
		return rec.object, nil
	}
	return now, nil
}
