package apiserver

import (
	"maps"
	"slices"
	"sync"
)

// few keeps what is read of the objects of an input that has a handful, and
// says all of it when something is different. That there is nothing is news only
// after there was something.
type few[T any] struct {
	input   *input
	convert func(object any) (T, error)
	changed func(all []T)
	equal   func(a, b T) bool

	mu  sync.Mutex
	all map[string]T
}

func newFew[T any](in *input, convert func(any) (T, error), changed func([]T), equal func(a, b T) bool) *few[T] {
	return &few[T]{input: in, convert: convert, changed: changed, equal: equal, all: map[string]T{}}
}

// none makes do with what is known or configured.
func (f *few[T]) none() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.input.replaced(len(f.all))
}

func (f *few[T]) setLocked(all map[string]T) {
	if maps.EqualFunc(f.all, all, f.equal) {
		return
	}
	f.all = all
	f.input.count(len(all))
	sorted := make([]T, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		sorted = append(sorted, all[name])
	}
	f.changed(sorted)
}

// Add implements cache.ReflectorStore.
func (f *few[T]) Add(object any) error { return f.Update(object) }

// Update implements cache.ReflectorStore.
func (f *few[T]) Update(object any) error {
	name, err := nameOf(object)
	if err != nil {
		return err
	}
	v, err := f.convert(object)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	all := maps.Clone(f.all)
	all[name.Name] = v
	f.setLocked(all)
	return nil
}

// Delete implements cache.ReflectorStore.
func (f *few[T]) Delete(object any) error {
	name, err := nameOf(object)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	all := maps.Clone(f.all)
	delete(all, name.Name)
	f.setLocked(all)
	return nil
}

// Replace implements cache.ReflectorStore.
func (f *few[T]) Replace(objects []any, _ string) error {
	all := map[string]T{}
	for _, o := range objects {
		name, err := nameOf(o)
		if err != nil {
			return err
		}
		if all[name.Name], err = f.convert(o); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.setLocked(all)
	f.input.replaced(len(all))
	return nil
}

// Resync implements cache.ReflectorStore; there is nothing that needs it.
func (f *few[T]) Resync() error { return nil }
