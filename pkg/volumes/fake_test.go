package volumes

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// objects is a store that tests fill.
type objects struct {
	mu   sync.Mutex
	objs map[string]any
}

func (o *objects) put(list ...metav1.Object) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, obj := range list {
		o.objs[fmt.Sprintf("%T %s/%s", obj, obj.GetNamespace(), obj.GetName())] = obj
	}
}

func get[T any](o *objects, namespace, name string) (*T, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	obj, ok := o.objs[fmt.Sprintf("%T %s/%s", new(T), namespace, name)]
	if !ok {
		return nil, errdefs.ErrNotFound
	}
	return obj.(*T), nil
}

func (o *objects) ConfigMap(ns, name string) (*v1.ConfigMap, error) {
	return get[v1.ConfigMap](o, ns, name)
}
func (o *objects) Secret(ns, name string) (*v1.Secret, error) { return get[v1.Secret](o, ns, name) }
func (o *objects) PersistentVolume(name string) (*v1.PersistentVolume, error) {
	return get[v1.PersistentVolume](o, "", name)
}

func (o *objects) PersistentVolumeClaim(ns, name string) (*v1.PersistentVolumeClaim, error) {
	return get[v1.PersistentVolumeClaim](o, ns, name)
}

// withObjects is a manager of a node with one label, rack=1.
func withObjects(t *testing.T) (*Manager, *objects) {
	t.Helper()
	needRoot(t)
	o := &objects{objs: map[string]any{}}
	m := New(Options{
		PodsDir: filepath.Join(realTemp(t), "pods"), Objects: o, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Allocatable: func() v1.ResourceList { return v1.ResourceList{"cpu": resource.MustParse("2")} },
		NodeMatches: func(s *v1.NodeSelector) bool {
			return s.NodeSelectorTerms[0].MatchExpressions[0].Values[0] == "1"
		},
		Clock: func() time.Time { return time.Date(2026, 2, 1, 15, 4, 5, 0, time.UTC) },
	})
	must(t, os.MkdirAll(m.dir, 0o750))
	return m, o
}

func configMapOf(name string, data map[string]string) *v1.ConfigMap {
	return &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Data: data}
}

func secretOf(name string, data map[string]string) *v1.Secret {
	s := &v1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Data: map[string][]byte{}}
	for k, v := range data {
		s.Data[k] = []byte(v)
	}
	return s
}

func configVolume(name, of string, items ...v1.KeyToPath) v1.Volume {
	return v1.Volume{Name: name, VolumeSource: v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{
		LocalObjectReference: v1.LocalObjectReference{Name: of}, Items: items}}}
}

func secretVolume(name, of string, items ...v1.KeyToPath) v1.Volume {
	return v1.Volume{Name: name, VolumeSource: v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: of, Items: items}}}
}
