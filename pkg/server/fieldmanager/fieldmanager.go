// Package fieldmanager merges what clients apply and keeps the record of who set
// which field, with the machinery of Kubernetes and the published schemas.
//
// The schemas are unpacked when somebody applies, and the garbage collector may
// have them back as soon as nobody does.
package fieldmanager

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"weak"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// Managers makes the field managers of kinds.
type Managers struct {
	// Schemas is the JSON object of a group's schemas by their names.
	Schemas func(apiVersion string) (io.ReadCloser, error)

	mu    sync.Mutex
	types map[string]weak.Pointer[typeConverter]
}

// typeConverter is what a group's schemas come to.
type typeConverter struct{ managedfields.TypeConverter }

// For is the manager of a kind's objects.
func (m *Managers) For(kind schema.GroupVersionKind) (*managedfields.FieldManager, error) {
	types, err := m.converter(kind.GroupVersion().String())
	if err != nil {
		return nil, err
	}
	return managedfields.NewDefaultFieldManager(types, same{}, same{}, same{}, kind, kind.GroupVersion(), "", nil)
}

func (m *Managers) converter(apiVersion string) (*typeConverter, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.types[apiVersion].Value(); c != nil {
		return c, nil
	}
	types, err := m.load(apiVersion)
	if err != nil {
		return nil, fmt.Errorf("schemas of %s: %w", apiVersion, err)
	}
	c := &typeConverter{types}
	if m.types == nil {
		m.types = map[string]weak.Pointer[typeConverter]{}
	}
	m.types[apiVersion] = weak.Make(c)
	return c, nil
}

// load reads a group's schemas.
func (m *Managers) load(apiVersion string) (types managedfields.TypeConverter, err error) {
	r, err := m.Schemas(apiVersion)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	var all map[string]*spec.Schema
	if err := json.NewDecoder(r).Decode(&all); err != nil {
		return nil, err
	}
	return managedfields.NewTypeConverter(all, false)
}

// same is the conversion between versions where there is one version only, and
// no defaults: what is merged is decoded and defaulted as any other object.
type same struct{}

func (same) Convert(_, _, _ any) error { return errors.New("nothing is converted here") }
func (same) ConvertToVersion(in runtime.Object, _ runtime.GroupVersioner) (runtime.Object, error) {
	return in, nil
}
func (same) ConvertFieldLabel(_ schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}
func (same) Default(runtime.Object) {}
func (same) New(kind schema.GroupVersionKind) (runtime.Object, error) {
	o := &unstructured.Unstructured{Object: map[string]any{}}
	o.SetGroupVersionKind(kind)
	return o, nil
}
