package volumes

import (
	"context"
	"errors"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// secret has a file for each key of a Secret. It lives in memory and is never
// on a disk.
type secret struct{ content }

func (secret) Name() string              { return "secret" }
func (secret) Plugin() string            { return "kubernetes.io~secret" }
func (secret) Handles(v *v1.Volume) bool { return v.Secret != nil }
func (secret) Record(*v1.Volume) Record  { return Record{Medium: string(v1.StorageMediumMemory)} }

func (k secret) SetUp(_ context.Context, r Request) (Mounted, error) {
	s := r.Volume.Secret
	files, err := k.secretFiles(r.Pod.Namespace, s.SecretName, s.Items, mode(s.DefaultMode), isTrue(s.Optional))
	return k.fill(r, k.Name(), v1.StorageMediumMemory, files, err)
}

func (c content) secretFiles(namespace, name string, items []v1.KeyToPath, mode uint32, optional bool) (payload, error) {
	s, err := c.objects.Secret(namespace, name)
	if optional && errors.Is(err, errdefs.ErrNotFound) {
		s, err = &v1.Secret{}, nil
	}
	if err != nil {
		return nil, notFound("secret", name, err)
	}
	return project(s.Data, items, mode, optional, "references non-existent secret key: %s")
}
