package volumes

import (
	"context"
	"path/filepath"

	v1 "k8s.io/api/core/v1"

	podpkg "github.com/nodeagent/nodeagent/pkg/pod"
)

// downwardAPI has files with what the pod's own object says. It lives in
// memory, as with kubelet.
type downwardAPI struct{ content }

func (downwardAPI) Name() string              { return "downwardAPI" }
func (downwardAPI) Plugin() string            { return "kubernetes.io~downward-api" }
func (downwardAPI) Handles(v *v1.Volume) bool { return v.DownwardAPI != nil }
func (downwardAPI) Record(*v1.Volume) Record  { return Record{Medium: string(v1.StorageMediumMemory)} }

func (k downwardAPI) SetUp(_ context.Context, r Request) (Mounted, error) {
	files, err := k.downwardFiles(r.Pod, r.Volume.DownwardAPI.Items, mode(r.Volume.DownwardAPI.DefaultMode))
	return k.fill(r, k.Name(), v1.StorageMediumMemory, files, err)
}

func (c content) downwardFiles(p *v1.Pod, items []v1.DownwardAPIVolumeFile, mode uint32) (payload, error) {
	files := payload{}
	for i := range items {
		item := &items[i]
		var text string
		var err error
		switch {
		case item.FieldRef != nil:
			text, err = podpkg.Field(p, item.FieldRef.FieldPath)
		case item.ResourceFieldRef != nil:
			text, err = podpkg.ResourceField(p, item.ResourceFieldRef.ContainerName, item.ResourceFieldRef, c.allocatable())
		}
		if err != nil {
			return nil, err
		}
		files[filepath.Clean(item.Path)] = file{data: []byte(text), mode: override(mode, item.Mode)}
	}
	return files, nil
}
