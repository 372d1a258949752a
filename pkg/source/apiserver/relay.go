package apiserver

import (
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/nodeagent/nodeagent/pkg/proxy/servicemap"
)

// relay hands objects on to the sink and keeps their names only. It outlives
// its reflectors, so that one that begins anew deletes what is gone.
type relay struct {
	input *input
	sink  Sink
	trim  func(object any)
	// tombstone is an object that stands for one of which the name is known.
	tombstone func(metav1.ObjectMeta) any

	mu       sync.Mutex
	known    map[servicemap.Name]struct{}
	complete bool // there was a Replace
}

func newRelay(in *input, sink Sink, trim func(any), tombstone func(metav1.ObjectMeta) any) *relay {
	return &relay{input: in, sink: sink, trim: trim, tombstone: tombstone, known: map[servicemap.Name]struct{}{}}
}

// Transformer implements cache.TransformingStore: it sees each object of a list
// while the list still comes in. Until a first list is complete nothing is
// applied, so the objects go on to the sink at once and the reflector collects
// names; later ones wait for the rest, without what the proxy does not read.
func (r *relay) Transformer() cache.TransformFunc {
	return func(object any) (any, error) {
		r.mu.Lock()
		complete := r.complete
		r.mu.Unlock()
		if complete {
			r.trim(object)
			return object, nil
		}
		name, err := nameOf(object)
		if err == nil {
			err = r.Update(object)
		}
		return &given{&nothing, name}, err
	}
}

// Add implements cache.ReflectorStore.
func (r *relay) Add(object any) error { return r.Update(object) }

// Update implements cache.ReflectorStore.
func (r *relay) Update(object any) error {
	name, err := nameOf(object)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known[name] = struct{}{}
	r.input.count(len(r.known))
	r.sink.Upsert(object)
	return nil
}

// Delete implements cache.ReflectorStore. An object that only left the
// selector is sent as deleted, too.
func (r *relay) Delete(object any) error {
	name, err := nameOf(object)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.known, name)
	r.input.count(len(r.known))
	r.sink.Delete(object)
	return nil
}

// Replace implements cache.ReflectorStore.
func (r *relay) Replace(objects []any, _ string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := make(map[servicemap.Name]struct{}, len(objects))
	for _, object := range objects {
		name, err := nameOf(object)
		if err != nil {
			return err
		}
		now[name] = struct{}{}
	}
	r.sink.Batch(func() {
		for name := range r.known {
			if _, ok := now[name]; !ok {
				r.sink.Delete(r.tombstone(metav1.ObjectMeta{Namespace: name.Namespace.Value(), Name: name.Name}))
			}
		}
		for _, object := range objects {
			if _, done := object.(*given); !done {
				r.sink.Upsert(object)
			}
		}
	})
	r.known, r.complete = now, true
	r.input.replaced(len(now))
	return nil
}

// Resync implements cache.ReflectorStore; there is nothing that needs it.
func (r *relay) Resync() error { return nil }

func nameOf(object any) (servicemap.Name, error) {
	if g, done := object.(*given); done {
		return g.name, nil
	}
	o, ok := object.(metav1.Object)
	if !ok {
		return servicemap.Name{}, fmt.Errorf("the API server sent a %T", object)
	}
	return servicemap.NewName(o.GetNamespace(), o.GetName()), nil
}

// trimMeta drops what the proxy does not read.
func trimMeta(m *metav1.ObjectMeta, label, annotation string) {
	*m = metav1.ObjectMeta{
		Namespace: m.Namespace, Name: m.Name, ResourceVersion: m.ResourceVersion,
		Labels: only(m.Labels, label), Annotations: only(m.Annotations, annotation),
	}
}

func only(m map[string]string, key string) map[string]string {
	if v, ok := m[key]; ok {
		return map[string]string{key: v}
	}
	return nil
}

func trimService(object any) {
	if s, ok := object.(*corev1.Service); ok {
		trimMeta(&s.ObjectMeta, "", "")
		s.Spec.Selector, s.Status.Conditions = nil, nil
	}
}

func trimSlice(object any) {
	s, ok := object.(*discoveryv1.EndpointSlice)
	if !ok {
		return
	}
	trimMeta(&s.ObjectMeta, discoveryv1.LabelServiceName, corev1.EndpointsLastChangeTriggerTime)
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		e.TargetRef, e.Hostname, e.Zone, e.DeprecatedTopology = nil, nil, nil, nil
	}
}
