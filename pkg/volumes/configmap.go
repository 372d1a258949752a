package volumes

import (
	"context"
	"errors"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// configMap has a file for each key of a ConfigMap, on the node's disk.
type configMap struct{ content }

func (configMap) Name() string              { return "configMap" }
func (configMap) Plugin() string            { return "kubernetes.io~configmap" }
func (configMap) Handles(v *v1.Volume) bool { return v.ConfigMap != nil }
func (configMap) Record(*v1.Volume) Record  { return Record{} }

func (k configMap) SetUp(_ context.Context, r Request) (Mounted, error) {
	s := r.Volume.ConfigMap
	files, err := k.configMapFiles(r.Pod.Namespace, s.Name, s.Items, mode(s.DefaultMode), isTrue(s.Optional))
	return k.fill(r, k.Name(), v1.StorageMediumDefault, files, err)
}

func (c content) configMapFiles(namespace, name string, items []v1.KeyToPath, mode uint32, optional bool) (payload, error) {
	cm, err := c.objects.ConfigMap(namespace, name)
	if optional && errors.Is(err, errdefs.ErrNotFound) {
		cm, err = &v1.ConfigMap{}, nil
	}
	if err != nil {
		return nil, notFound("configmap", name, err)
	}
	data := make(map[string][]byte, len(cm.Data)+len(cm.BinaryData))
	for key, text := range cm.Data {
		data[key] = []byte(text)
	}
	for key, b := range cm.BinaryData {
		data[key] = b
	}
	return project(data, items, mode, optional, "configmap references non-existent config key: %s")
}
