package runtime

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Filesystem is what a part of the runtime's storage takes.
type Filesystem struct {
	Path   string // of its mount point
	Bytes  uint64
	Inodes uint64
	// At is when it was measured: runtimes measure in the background.
	At time.Time
}

// Layer is what a container has written to its own file system.
type Layer struct {
	Bytes, Inodes uint64
	At            time.Time
}

// Known is what was last seen of a sandbox or container.
type Known struct {
	UID     types.UID // of the pod
	Sandbox bool
	// Container is nil for a sandbox and for a container that was not looked at
	// yet. It is shared: do not change it.
	Container *Container
}

// Known tells of an id without a call; false when it is none of ours.
func (c *Client) Known(id string) (Known, bool) {
	c.index.mu.Lock()
	defer c.index.mu.Unlock()
	e := c.index.m[id]
	if e == nil {
		return Known{}, false
	}
	return Known{UID: e.uid, Sandbox: e.sandbox, Container: e.ctr}, true
}

// ImageFilesystems are where images are, and where what containers write is: the
// same for most runtimes.
func (c *Client) ImageFilesystems(ctx context.Context) (images, containers []Filesystem, err error) {
	r, err := invoke(ctx, c, "image_fs_info", "", callTimeout, c.img.ImageFsInfo, &cri.ImageFsInfoRequest{})
	if err != nil {
		return nil, nil, err
	}
	images = filesystems(r.GetImageFilesystems())
	containers = filesystems(r.GetContainerFilesystems())
	if len(containers) == 0 { // before CRI 1.28
		containers = images
	}
	return images, containers, nil
}

func filesystems(in []*cri.FilesystemUsage) []Filesystem {
	out := make([]Filesystem, 0, len(in))
	for _, f := range in {
		out = append(out, Filesystem{
			Path: f.GetFsId().GetMountpoint(), Bytes: f.GetUsedBytes().GetValue(), Inodes: f.GetInodesUsed().GetValue(), At: nanos(f.GetTimestamp()),
		})
	}
	return out
}

// Layers are what our containers have written to their own file systems, by id.
// It is one call, for which containerd asks every shim: not for every scrape.
func (c *Client) Layers(ctx context.Context) (map[string]Layer, error) {
	r, err := invoke(ctx, c, "list_container_stats", "", callTimeout, c.rt.ListContainerStats,
		&cri.ListContainerStatsRequest{Filter: &cri.ContainerStatsFilter{LabelSelector: c.selector("")}})
	if err != nil {
		return nil, err
	}
	out := make(map[string]Layer, len(r.GetStats()))
	for _, s := range r.GetStats() {
		if l := s.GetWritableLayer(); l != nil && c.ours(s.GetAttributes().GetLabels()) {
			out[s.GetAttributes().GetId()] = Layer{Bytes: l.GetUsedBytes().GetValue(), Inodes: l.GetInodesUsed().GetValue(), At: nanos(l.GetTimestamp())}
		}
	}
	return out, nil
}
