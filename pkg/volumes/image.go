package volumes

import (
	"context"

	v1 "k8s.io/api/core/v1"
)

// image is the content of an OCI image. The runtime mounts it, always
// read-only; it is pulled like that of a container.
type image struct{}

func (image) Name() string                           { return "image" }
func (image) Plugin() string                         { return "kubernetes.io~image" }
func (image) Handles(v *v1.Volume) bool              { return v.Image != nil }
func (image) Record(*v1.Volume) Record               { return Record{Foreign: true} }
func (image) TearDown(context.Context, Record) error { return nil }

func (k image) SetUp(_ context.Context, r Request) (Mounted, error) {
	return Mounted{Name: r.Volume.Name, Kind: k.Name(), ReadOnly: true, Image: true}, nil
}
