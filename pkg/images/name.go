package images

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"
	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// Normalize completes an image name as users write it: "nginx" becomes
// "docker.io/library/nginx:latest". A digest takes precedence over a tag,
// which is dropped, as the runtime does it. The error is errdefs.ErrInvalid.
func Normalize(image string) (string, error) {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return "", fmt.Errorf("couldn't parse image name %q: %w: %w", image, err, errdefs.ErrInvalid)
	}
	named = reference.TagNameOnly(named)
	if d, ok := named.(reference.Digested); ok {
		if named, err = reference.WithDigest(reference.TrimNamed(named), d.Digest()); err != nil {
			return "", fmt.Errorf("couldn't parse image name %q: %w: %w", image, err, errdefs.ErrInvalid)
		}
	}
	return named.String(), nil
}

// policyOf is the container's pull policy, by the API server's default when
// the manifest leaves it out: Always for :latest, else IfNotPresent.
func policyOf(c *v1.Container) v1.PullPolicy {
	if c.ImagePullPolicy != "" {
		return c.ImagePullPolicy
	}
	if ref, err := Normalize(c.Image); err == nil && strings.HasSuffix(ref, ":latest") {
		return v1.PullAlways
	}
	return v1.PullIfNotPresent
}
