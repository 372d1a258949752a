package runtime

import (
	"context"
	"fmt"
	"strconv"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// Images lists every image of the runtime, also those that are not ours: an
// image belongs to the node.
func (c *Client) Images(ctx context.Context) ([]Image, error) {
	r, err := invoke(ctx, c, "list_images", "", callTimeout, c.img.ListImages, &cri.ListImagesRequest{})
	if err != nil {
		return nil, err
	}
	// containerd 1.6 has no pinned images; its own store still holds our label.
	pinned, err := c.pinnedNames(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]Image, 0, len(r.GetImages()))
	for _, i := range r.GetImages() {
		img := imageOf(i)
		for _, names := range [][]string{img.RepoTags, img.RepoDigests, {img.ID}} {
			for _, n := range names {
				img.Pinned = img.Pinned || pinned[n]
			}
		}
		out = append(out, img)
	}
	return out, nil
}

// ImageStatus finds an image by name, digest reference or id;
// errdefs.ErrNotFound when it is not on the node.
func (c *Client) ImageStatus(ctx context.Context, ref string) (*Image, error) {
	i, err := c.imageStatus(ctx, ref)
	if err != nil {
		return nil, err
	}
	img := imageOf(i)
	return &img, nil
}

func (c *Client) imageStatus(ctx context.Context, ref string) (*cri.Image, error) {
	r, err := invoke(ctx, c, "image_status", ref, callTimeout, c.img.ImageStatus,
		&cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: ref}})
	if err != nil {
		return nil, err
	}
	if r.GetImage().GetId() == "" {
		return nil, fmt.Errorf("%w: image %s", errdefs.ErrNotFound, ref)
	}
	return r.GetImage(), nil
}

func imageOf(i *cri.Image) Image {
	img := Image{
		ID: i.GetId(), RepoTags: i.GetRepoTags(), RepoDigests: i.GetRepoDigests(),
		Size: i.GetSize(), Pinned: i.GetPinned(), User: i.GetUsername(),
	}
	if img.User == "" && i.GetUid() != nil {
		img.User = strconv.FormatInt(i.GetUid().GetValue(), 10)
	}
	return img
}

// PullImage pulls ref and returns the reference to make containers from. It
// has no time limit of its own; auth may be nil.
func (c *Client) PullImage(ctx context.Context, ref string, auth *Auth) (string, error) {
	req := &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}}
	if auth != nil {
		req.Auth = &cri.AuthConfig{
			Username: auth.Username, Password: auth.Password, Auth: auth.Encoded,
			ServerAddress: auth.ServerAddress, IdentityToken: auth.IdentityToken, RegistryToken: auth.RegistryToken,
		}
	}
	r, err := invoke(ctx, c, "pull_image", ref, 0, c.img.PullImage, req)
	return r.GetImageRef(), err
}

// RemoveImage removes the image and all its names, pinned or not.
func (c *Client) RemoveImage(ctx context.Context, ref string) error {
	if err := c.unpin(ctx, ref); err != nil {
		return err
	}
	_, err := invoke(ctx, c, "remove_image", ref, callTimeout, c.img.RemoveImage,
		&cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}})
	return ignoreNotFound(err)
}

// UsedImages are the images of all containers of the runtime, running or not and
// ours or not, by every name or id that they are known by.
func (c *Client) UsedImages(ctx context.Context) (map[string]bool, error) {
	containers, err := c.listContainers(ctx, nil)
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, ctr := range containers {
		for _, ref := range []string{ctr.GetImageRef(), ctr.GetImageId(), ctr.GetImage().GetImage()} {
			used[ref] = true
		}
	}
	return used, nil
}
