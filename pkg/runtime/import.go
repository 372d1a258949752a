package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	containerdtypes "github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

const (
	// importSeen bounds how long CRI may take to notice an imported image; it
	// learns of it by an event of containerd's image store.
	importSeen  = 5 * time.Second
	importEvery = 5 * time.Millisecond
	// importLease protects the content of an import that dies half-way for
	// this long; afterwards containerd collects it.
	importLease = time.Hour
)

// ImportImages loads a docker or OCI archive (plain tar) into the runtime and
// returns the names it holds, sorted. It returns when CRI knows them all.
// errdefs.ErrInvalid when r is no such archive, names no image, has nothing
// for this machine's platform, or the runtime is not containerd. Importing the
// same archive again changes nothing.
func (c *Client) ImportImages(ctx context.Context, r io.Reader) ([]string, error) {
	if err := c.needContainerd(ctx, "importing an image archive"); err != nil {
		return nil, err
	}
	begin := time.Now()
	names, err := c.importImages(inNamespace(ctx), r)
	c.o.Observe("import_images", time.Since(begin), err)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if err := c.waitImage(ctx, n); err != nil {
			return nil, err
		}
	}
	return names, nil
}

func (c *Client) importImages(ctx context.Context, r io.Reader) (names []string, err error) {
	l, err := c.leases().Create(ctx, &leasesapi.CreateRequest{
		ID:     fmt.Sprintf("nodeagent-import-%d", time.Now().UnixNano()),
		Labels: map[string]string{"containerd.io/gc.expire": time.Now().Add(importLease).Format(time.RFC3339)},
	})
	if err != nil {
		return nil, translate("containerd lease for an import", err)
	}
	id := l.GetLease().GetID()
	defer func() {
		// Also after a cancelled import: what it left may be collected now.
		dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout)
		defer cancel()
		_, derr := c.leases().Delete(dctx, &leasesapi.DeleteRequest{ID: id})
		err = errors.Join(err, ignoreNotFound(translate("containerd release the lease of an import", derr)))
	}()
	lctx := metadata.AppendToOutgoingContext(ctx, "containerd-lease", id)
	src := &watchedReader{r: r}
	store := c.content()
	index, err := archive.ImportIndex(lctx, store, src)
	if err != nil {
		return nil, importError(ctx, err, src.err)
	}
	found, err := c.keep(lctx, store, index)
	if err != nil {
		return nil, err
	}
	for name, target := range found {
		if err := c.putImage(ctx, name, target); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

// watchedReader tells a broken source from a broken archive.
type watchedReader struct {
	r   io.Reader
	err error
}

func (w *watchedReader) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		w.err = err
	}
	return n, err
}

// importError sorts a failed read: the source's and containerd's own troubles
// may pass, everything else is the archive's fault.
func importError(ctx context.Context, err, source error) error {
	if source != nil {
		return fmt.Errorf("%w: read image archive: %w", errdefs.ErrTransient, source)
	}
	if ctx.Err() != nil {
		return translate("import image archive", ctx.Err())
	}
	if t := translate("import image archive", err); errors.Is(t, errdefs.ErrUnavailable) || errors.Is(t, errdefs.ErrTransient) {
		return t
	}
	return fmt.Errorf("%w: not a docker or OCI image archive: %w", errdefs.ErrInvalid, err)
}

// keep marks, for containerd's garbage collection, which blob needs which, for
// this machine's platform only, and returns the named images.
func (c *Client) keep(ctx context.Context, store content.Store, index ocispec.Descriptor) (map[string]ocispec.Descriptor, error) {
	top, err := images.Children(ctx, store, index)
	if err != nil {
		return nil, fmt.Errorf("%w: image archive's index: %w", errdefs.ErrInvalid, err)
	}
	found := map[string]ocispec.Descriptor{}
	children := images.FilterPlatforms(images.ChildrenHandler(store), platforms.Default())
	for _, d := range top {
		name, err := nameOf(d.Annotations)
		if err != nil {
			return nil, err
		}
		if name == "" {
			continue
		}
		if d.Platform != nil && !platforms.Default().Match(*d.Platform) {
			return nil, fmt.Errorf("%w: image %s in the archive is for %s, this machine is %s",
				errdefs.ErrInvalid, name, platforms.Format(*d.Platform), platforms.DefaultString())
		}
		if err := images.WalkNotEmpty(ctx, images.SetChildrenLabels(store, children), d); err != nil {
			return nil, fmt.Errorf("%w: image %s in the archive is not complete for %s: %w",
				errdefs.ErrInvalid, name, platforms.DefaultString(), err)
		}
		found[name] = d
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%w: the archive names no image: save it with a name, or set the annotation %s in its index.json",
			errdefs.ErrInvalid, images.AnnotationImageName)
	}
	return found, nil
}

// nameOf reads an image's full name. OCI lets ref.name be a bare tag, which
// names nothing.
func nameOf(ann map[string]string) (string, error) {
	name := ann[images.AnnotationImageName]
	if name == "" {
		if name = ann[ocispec.AnnotationRefName]; !strings.ContainsAny(name, "/:") {
			return "", nil
		}
	}
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", fmt.Errorf("%w: image name %q in the archive: %w", errdefs.ErrInvalid, name, err)
	}
	return named.String(), nil
}

// putImage makes name point to target.
func (c *Client) putImage(ctx context.Context, name string, target ocispec.Descriptor) error {
	img := &imagesapi.Image{
		Name:      name,
		Target:    &containerdtypes.Descriptor{MediaType: target.MediaType, Digest: target.Digest.String(), Size: target.Size},
		CreatedAt: timestamppb.Now(),
	}
	_, err := c.imageStore().Create(ctx, &imagesapi.CreateImageRequest{Image: img})
	if status.Code(err) != codes.AlreadyExists {
		return translate("containerd image "+name, err)
	}
	old, err := c.imageStore().Get(ctx, &imagesapi.GetImageRequest{Name: name})
	if err == nil {
		_, err = c.imageStore().Update(ctx, &imagesapi.UpdateImageRequest{
			Image: img, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"target"}},
		})
	}
	if err != nil {
		return translate("containerd image "+name, err)
	}
	if was := old.GetImage().GetTarget(); was.GetDigest() != img.Target.Digest {
		return c.letGo(ctx, was)
	}
	return nil
}

// letGo ends the pinning of an image that has lost its last name to a newer
// one: what is left of it is CRI's own, which goes by its id.
func (c *Client) letGo(ctx context.Context, target *containerdtypes.Descriptor) error {
	rest, err := c.imageStore().List(ctx, &imagesapi.ListImagesRequest{Filters: []string{"target.digest==" + target.GetDigest()}})
	if err != nil {
		return translate("containerd list images", err)
	}
	for _, i := range rest.GetImages() {
		if !strings.HasPrefix(i.GetName(), "sha256:") {
			return nil
		}
	}
	for _, i := range rest.GetImages() {
		_, err := c.imageStore().Update(ctx, &imagesapi.UpdateImageRequest{
			Image:      &imagesapi.Image{Name: i.GetName(), Target: i.GetTarget()},
			UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels." + pinnedLabel}},
		})
		if err = ignoreNotFound(translate("containerd unpin image "+i.GetName(), err)); err != nil {
			return err
		}
	}
	_, err = c.leases().Delete(ctx, &leasesapi.DeleteRequest{ID: pinLease(target)})
	return ignoreNotFound(translate("containerd unpin "+target.GetDigest(), err))
}

// waitImage waits until CRI knows an imported image.
func (c *Client) waitImage(ctx context.Context, name string) error {
	tick := time.NewTicker(importEvery)
	defer tick.Stop()
	limit := time.NewTimer(importSeen)
	defer limit.Stop()
	for {
		_, err := c.imageStatus(ctx, name)
		if !errors.Is(err, errdefs.ErrNotFound) {
			return err
		}
		select {
		case <-ctx.Done():
			return translate("wait for image "+name, ctx.Err())
		case <-limit.C:
			return fmt.Errorf("%w: containerd has image %s and its CRI plugin does not show it", errdefs.ErrTransient, name)
		case <-tick.C:
		}
	}
}
