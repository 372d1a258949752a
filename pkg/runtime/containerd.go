package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	containerdtypes "github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// This file and import.go use containerd's own API, over the connection that
// CRI has, for what CRI lacks. They take the generated stubs and the content
// proxy rather than containerd's client package, which would bring along
// registries, snapshotters and OpenTelemetry.

const (
	containerdName = "containerd"
	// criNamespace is where containerd's CRI plugin keeps everything.
	criNamespace = "k8s.io"

	// pinnedLabel is containerd's mark (1.7 and newer read it) for images that
	// no garbage collection may take.
	pinnedLabel  = "io.cri-containerd.pinned"
	pinnedValue  = "pinned"
	pinLeasePart = "nodeagent-pinned-"
	// sourceLabel stands on pulled content: sourceLabel + registry = repository.
	sourceLabel = "containerd.io/distribution.source."
	// maxManifest bounds a manifest that is read into memory.
	maxManifest = 4 << 20
)

// inNamespace addresses containerd's API calls.
func inNamespace(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "containerd-namespace", criNamespace)
}

// isContainerd says whether the runtime has containerd's API.
func (c *Client) isContainerd(ctx context.Context) (bool, error) {
	a, err := c.describe(ctx)
	if err != nil {
		return false, err
	}
	return a.name == containerdName, nil
}

// needContainerd is the error for what other runtimes cannot do.
func (c *Client) needContainerd(ctx context.Context, what string) error {
	ok, err := c.isContainerd(ctx)
	if err != nil {
		return err
	}
	if !ok {
		a, err := c.describe(ctx)
		if err != nil {
			return err
		}
		return fmt.Errorf("%w: %s needs containerd, the runtime is %s", errdefs.ErrInvalid, what, a.name)
	}
	return nil
}

func (c *Client) content() content.Store                 { return proxy.NewContentStore(c.conn) }
func (c *Client) imageStore() imagesapi.ImagesClient     { return imagesapi.NewImagesClient(c.conn) }
func (c *Client) leases() leasesapi.LeasesClient         { return leasesapi.NewLeasesClient(c.conn) }
func (c *Client) ingests() contentapi.ContentClient      { return contentapi.NewContentClient(c.conn) }
func pinLease(target *containerdtypes.Descriptor) string { return pinLeasePart + target.GetDigest() }

// pinnedNames are the names in containerd's store that carry the pinned label;
// empty for another runtime.
func (c *Client) pinnedNames(ctx context.Context) (map[string]bool, error) {
	if ok, err := c.isContainerd(ctx); err != nil || !ok {
		return nil, err
	}
	r, err := c.imageStore().List(inNamespace(ctx), &imagesapi.ListImagesRequest{
		Filters: []string{fmt.Sprintf(`labels.%q==%s`, pinnedLabel, pinnedValue)},
	})
	if err != nil {
		return nil, translate("containerd list images", err)
	}
	names := make(map[string]bool, len(r.GetImages()))
	for _, i := range r.GetImages() {
		names[i.GetName()] = true
	}
	return names, nil
}

// namesOf lists every name of the image that ref is one of.
func (c *Client) namesOf(ctx context.Context, ref string) ([]*imagesapi.Image, error) {
	ctx = inNamespace(ctx)
	name := ref
	if named, err := reference.ParseDockerRef(ref); err == nil && !strings.HasPrefix(ref, "sha256:") {
		name = named.String()
	}
	one, err := c.imageStore().Get(ctx, &imagesapi.GetImageRequest{Name: name})
	if err != nil {
		return nil, translate("containerd get image "+ref, err)
	}
	all, err := c.imageStore().List(ctx, &imagesapi.ListImagesRequest{
		Filters: []string{fmt.Sprintf("target.digest==%s", one.GetImage().GetTarget().GetDigest())},
	})
	if err != nil {
		return nil, translate("containerd list images", err)
	}
	return all.GetImages(), nil
}

// PinImage protects the image from every garbage collection: a label on all
// its names, which CRI and our own collection respect, and a lease on its
// content, which containerd does. Pinning twice is no error.
func (c *Client) PinImage(ctx context.Context, ref string) error {
	if err := c.needContainerd(ctx, "pinning an image"); err != nil {
		return err
	}
	names, err := c.namesOf(ctx, ref)
	if err != nil {
		return err
	}
	nctx := inNamespace(ctx)
	for _, i := range names {
		if i.GetLabels()[pinnedLabel] == pinnedValue {
			continue
		}
		_, err := c.imageStore().Update(nctx, &imagesapi.UpdateImageRequest{
			// The target does not change and yet has to be there: without it
			// containerd up to 2.4 dereferences nil and dies.
			Image:      &imagesapi.Image{Name: i.GetName(), Target: i.GetTarget(), Labels: map[string]string{pinnedLabel: pinnedValue}},
			UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels." + pinnedLabel}},
		})
		if err != nil {
			return translate("containerd pin image "+i.GetName(), err)
		}
	}
	for _, i := range names[:min(1, len(names))] { // they have one target
		lease := pinLease(i.GetTarget())
		if _, err := c.leases().Create(nctx, &leasesapi.CreateRequest{ID: lease}); err != nil && status.Code(err) != codes.AlreadyExists {
			return translate("containerd lease for "+ref, err)
		}
		_, err := c.leases().AddResource(nctx, &leasesapi.AddResourceRequest{
			ID: lease, Resource: &leasesapi.Resource{ID: i.GetTarget().GetDigest(), Type: "content"},
		})
		if err != nil {
			return translate("containerd lease on "+ref, err)
		}
	}
	return nil
}

// unpin drops the lease of an image that is going to be removed.
func (c *Client) unpin(ctx context.Context, ref string) error {
	if ok, err := c.isContainerd(ctx); err != nil || !ok {
		return err
	}
	names, err := c.namesOf(ctx, ref)
	if err != nil {
		return ignoreNotFound(err)
	}
	for _, i := range names[:min(1, len(names))] {
		_, err := c.leases().Delete(inNamespace(ctx), &leasesapi.DeleteRequest{ID: pinLease(i.GetTarget())})
		if err = ignoreNotFound(translate("containerd unpin "+ref, err)); err != nil {
			return err
		}
	}
	return nil
}

// manifest is the part of an image manifest that progress needs.
type manifest struct {
	Config blob   `json:"config"`
	Layers []blob `json:"layers"`
}

type blob struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
}

// PullProgress says how many bytes of ref's configuration and layers are on
// the node, and how many there are, while it is being pulled. errdefs.ErrNotFound
// before its manifest is known, after the pull, and for runtimes without
// containerd's content store. containerd writes a blob in steps of 1 MiB. When two tags of one repository are pulled at
// once, the one whose manifest came last is shown.
func (c *Client) PullProgress(ctx context.Context, ref string) (done, total int64, err error) {
	unknown := fmt.Errorf("%w: no running pull of %s", errdefs.ErrNotFound, ref)
	if ok, err := c.isContainerd(ctx); err != nil {
		return 0, 0, err
	} else if !ok {
		return 0, 0, unknown
	}
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return 0, 0, fmt.Errorf("%w: image name %q: %w", errdefs.ErrInvalid, ref, err)
	}
	active, err := c.ingests().ListStatuses(inNamespace(ctx), &contentapi.ListStatusesRequest{})
	if err != nil {
		return 0, 0, translate("containerd list pulls", err)
	}
	offsets := make(map[string]int64, len(active.GetStatuses()))
	for _, s := range active.GetStatuses() {
		// "layer-sha256:…": the kind, then the digest of what comes.
		if _, d, ok := strings.Cut(s.GetRef(), "-"); ok {
			offsets[d] = s.GetOffset()
		}
	}
	if len(offsets) == 0 {
		return 0, 0, unknown
	}
	return c.progressOf(ctx, named, offsets, unknown)
}

// progressOf finds, among the repository's blobs, the manifest with a blob
// that is on its way, and adds it up.
func (c *Client) progressOf(ctx context.Context, named reference.Named, offsets map[string]int64, unknown error) (done, total int64, err error) {
	ctx = inNamespace(ctx)
	store := c.content()
	have := map[digest.Digest]int64{}
	var candidates []content.Info
	host, _, _ := strings.Cut(reference.Domain(named), ":") // the label has no port
	err = store.Walk(ctx, func(i content.Info) error {
		have[i.Digest] = i.Size
		// Only a manifest refers to a configuration.
		if _, ok := i.Labels["containerd.io/gc.ref.content.config"]; ok && i.Size <= maxManifest {
			candidates = append(candidates, i)
		}
		return nil
	}, fmt.Sprintf(`labels.%q~=%q`, sourceLabel+host, `(^|,)`+regexp.QuoteMeta(reference.Path(named))+`(,|$)`))
	if err != nil {
		return 0, 0, translate("containerd list content", err)
	}
	var best time.Time
	for _, i := range candidates {
		m, err := readManifest(ctx, store, i)
		if err != nil {
			return 0, 0, err
		}
		d, t, running := m.add(have, offsets)
		if running && (total == 0 || i.CreatedAt.After(best)) {
			best, done, total = i.CreatedAt, d, t
		}
	}
	if total == 0 {
		return 0, 0, unknown
	}
	return done, total, nil
}

func readManifest(ctx context.Context, store content.Store, i content.Info) (m manifest, err error) {
	ra, err := store.ReaderAt(ctx, ocispec.Descriptor{Digest: i.Digest, Size: i.Size})
	if err != nil {
		return m, translate("containerd read manifest", err)
	}
	defer func() { err = errors.Join(err, ra.Close()) }()
	b, err := io.ReadAll(io.LimitReader(content.NewReader(ra), maxManifest))
	if err != nil {
		return m, translate("containerd read manifest", err)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("%w: manifest %s: %w", errdefs.ErrInvalid, i.Digest, err)
	}
	return m, nil
}

// add sums what is there and what is coming.
func (m manifest) add(have map[digest.Digest]int64, offsets map[string]int64) (done, total int64, running bool) {
	for _, b := range append([]blob{m.Config}, m.Layers...) {
		total += b.Size
		if n, ok := have[b.Digest]; ok {
			done += n
		} else if n, ok := offsets[b.Digest.String()]; ok {
			done += n
			running = true
		}
	}
	return done, total, running
}
