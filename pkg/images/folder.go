package images

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// Importer is what importing archives needs of the runtime.
type Importer interface {
	// ImportImages reads a docker or OCI archive (a plain tar) and returns the
	// references of the images in it.
	ImportImages(ctx context.Context, r io.Reader) ([]string, error)
	// PinImage keeps an image from being collected. Idempotent.
	PinImage(ctx context.Context, ref string) error
	Images(ctx context.Context) ([]runtime.Image, error)
}

// Imported is what became of one archive in one pass.
type Imported struct {
	File   string   // base name
	Images []string // references, sorted
	Err    error    // why nothing came of it
}

// importedFile is the memory of a folder; a dot keeps it from being an archive.
const importedFile = ".imported.json"

// remembered is one archive that needs no second look while it is the same.
type remembered struct {
	Size   int64     `json:"size"`
	Mod    time.Time `json:"modified"`
	Images []string  `json:"images,omitempty"`
	Error  string    `json:"error,omitempty"`
}

// ImportFolder imports every *.tar, *.tar.gz and *.tgz in dir that is new,
// changed since, or whose images the runtime has lost, and pins the images. It
// returns what it did in order of file name: nothing for archives that are
// known. A bad archive does not keep others from being imported and is tried
// again only when it changes; one that failed because the runtime could not be
// reached is tried again next time. A folder that does not exist is empty.
// The error is about the folder or the runtime as a whole.
func ImportFolder(ctx context.Context, dir string, importer Importer) ([]Imported, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the image folder: %w", err)
	}
	known := readRemembered(dir)
	next := map[string]remembered{}
	var out []Imported
	var present map[string]bool // asked for once, and only when needed
	for _, e := range entries {
		name := e.Name()
		if !isArchive(name) {
			continue
		}
		info, err := os.Stat(filepath.Join(dir, name)) // follows links
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		old, ok := known[name]
		if ok && old.Size == info.Size() && old.Mod.Equal(info.ModTime()) {
			if present == nil {
				if present, err = presentImages(ctx, importer); err != nil {
					return out, err
				}
			}
			if !slices.ContainsFunc(old.Images, func(ref string) bool { return !present[ref] }) {
				next[name] = old
				continue
			}
		}
		im := importOne(ctx, filepath.Join(dir, name), importer)
		out = append(out, im)
		r := remembered{Size: info.Size(), Mod: info.ModTime(), Images: im.Images}
		if im.Err != nil {
			if ctx.Err() != nil || errors.Is(im.Err, errdefs.ErrUnavailable) || errors.Is(im.Err, errdefs.ErrTransient) {
				continue
			}
			r.Images, r.Error = nil, im.Err.Error()
		}
		next[name] = r
		// Written after each archive: an import takes seconds, a kill comes any time.
		if err := writeRemembered(dir, next, known); err != nil {
			return out, err
		}
	}
	for name := range known {
		if _, ok := next[name]; !ok { // the archive is gone, or is to be tried again
			return out, writeRemembered(dir, next, nil)
		}
	}
	return out, nil
}

func isArchive(name string) bool {
	return !strings.HasPrefix(name, ".") &&
		(strings.HasSuffix(name, ".tar") || strings.HasSuffix(name, ".tar.gz") || strings.HasSuffix(name, ".tgz"))
}

// presentImages are all names that the runtime has images for.
func presentImages(ctx context.Context, importer Importer) (map[string]bool, error) {
	imgs, err := importer.Images(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	present := map[string]bool{}
	for _, img := range imgs {
		present[img.ID] = true
		for _, r := range slices.Concat(img.RepoTags, img.RepoDigests) {
			present[r] = true
			if n, err := Normalize(r); err == nil {
				present[n] = true
			}
		}
	}
	return present, nil
}

// importOne imports and pins one archive.
func importOne(ctx context.Context, file string, importer Importer) Imported {
	im := Imported{File: filepath.Base(file)}
	fail := func(err error) Imported {
		im.Err = fmt.Errorf("import images from %s: %w", file, err)
		return im
	}
	f, err := os.Open(file)
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	var r io.Reader = f
	if !strings.HasSuffix(file, ".tar") {
		z, err := gzip.NewReader(f)
		if err != nil {
			return fail(fmt.Errorf("not a gzip file: %w", err))
		}
		defer z.Close()
		r = z
	}
	refs, err := importer.ImportImages(ctx, r)
	if err != nil {
		return fail(err)
	}
	if len(refs) == 0 {
		return fail(fmt.Errorf("there is no named image in it: %w", errdefs.ErrInvalid))
	}
	slices.Sort(refs)
	im.Images = refs
	for _, ref := range refs {
		if err := importer.PinImage(ctx, ref); err != nil {
			return fail(fmt.Errorf("pin %s: %w", ref, err))
		}
	}
	return im
}

// readRemembered returns nothing when the file is missing or damaged: the
// archives are then imported once more, which does no harm.
func readRemembered(dir string) map[string]remembered {
	known := map[string]remembered{}
	data, err := os.ReadFile(filepath.Join(dir, importedFile))
	if err != nil || json.Unmarshal(data, &known) != nil {
		return map[string]remembered{}
	}
	return known
}

// writeRemembered writes next, and of rest what next does not speak of yet.
func writeRemembered(dir string, next, rest map[string]remembered) error {
	all := map[string]remembered{}
	for name, r := range rest {
		all[name] = r
	}
	for name, r := range next {
		all[name] = r
	}
	data, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, importedFile+".tmp")
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("remember imported images: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, importedFile)); err != nil {
		return fmt.Errorf("remember imported images: %w", err)
	}
	return nil
}
