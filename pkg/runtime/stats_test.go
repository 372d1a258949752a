package runtime

import (
	"context"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (f *fakeRuntime) ListContainerStats(_ context.Context, r *cri.ListContainerStatsRequest) (*cri.ListContainerStatsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	resp := &cri.ListContainerStatsResponse{}
	for id, c := range f.ctrs {
		if !matches(c.st.Labels, r.GetFilter().GetLabelSelector()) {
			continue
		}
		resp.Stats = append(resp.Stats, &cri.ContainerStats{
			Attributes:    &cri.ContainerAttributes{Id: id, Labels: c.st.Labels},
			WritableLayer: &cri.FilesystemUsage{Timestamp: int64(time.Second), UsedBytes: &cri.UInt64Value{Value: 12345}, InodesUsed: &cri.UInt64Value{Value: 6}},
		})
	}
	// containerd has none for a container that it is still making.
	resp.Stats = append(resp.Stats, &cri.ContainerStats{Attributes: &cri.ContainerAttributes{Id: "new"}})
	return resp, nil
}

func (f *fakeRuntime) ImageFsInfo(context.Context, *cri.ImageFsInfoRequest) (*cri.ImageFsInfoResponse, error) {
	return &cri.ImageFsInfoResponse{ImageFilesystems: []*cri.FilesystemUsage{{
		FsId: &cri.FilesystemIdentifier{Mountpoint: "/images"}, UsedBytes: &cri.UInt64Value{Value: 99}, InodesUsed: &cri.UInt64Value{Value: 9},
	}}}, nil
}

func TestUsage(t *testing.T) {
	f := newFake(t, nil)
	c, other := dialFake(t, f, nil), dialFake(t, f, func(o *Options) { o.Owner = "other" })
	box, ctr := startPod(t, c, onePod("u1"))
	startPod(t, other, onePod("u2"))

	layers, err := c.Layers(t.Context())
	if want := (Layer{Bytes: 12345, Inodes: 6, At: time.Unix(1, 0)}); err != nil || len(layers) != 1 || layers[ctr] != want {
		t.Errorf("layers %+v, %v; want one of %+v: only what is ours, and has one", layers, err, want)
	}
	images, containers, err := c.ImageFilesystems(t.Context())
	if want := (Filesystem{Path: "/images", Bytes: 99, Inodes: 9}); err != nil || len(images) != 1 || images[0] != want || len(containers) != 1 || containers[0] != want {
		t.Errorf("file systems %+v and %+v, %v; want %+v twice", images, containers, err, want)
	}

	mustPods(t, c)
	calls := f.count("listCtrs")
	if k, ok := c.Known(box); !ok || !k.Sandbox || k.UID != "u1" {
		t.Errorf("sandbox: %+v, %v", k, ok)
	}
	if k, ok := c.Known(ctr); !ok || k.Sandbox || k.UID != "u1" || k.Container == nil || k.Container.Name != "main" {
		t.Errorf("container: %+v, %v", k, ok)
	}
	if k, ok := c.Known("none"); ok {
		t.Errorf("%+v is known", k)
	}
	if now := f.count("listCtrs"); now != calls {
		t.Errorf("%d calls to tell what is known", now-calls)
	}
}
