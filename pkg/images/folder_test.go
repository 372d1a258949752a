package images

import (
	"compress/gzip"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

func TestImportFolder(t *testing.T) {
	r := newRegistry(t)
	dir := t.TempDir()
	put := func(name, content string) {
		t.Helper()
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if filepath.Ext(name) == ".tar" {
			_, err = f.WriteString(content)
		} else {
			z := gzip.NewWriter(f)
			if _, err = z.Write([]byte(content)); err == nil {
				err = z.Close()
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	pass := func() []Imported {
		t.Helper()
		done, err := ImportFolder(t.Context(), dir, r)
		if err != nil {
			t.Fatal(err)
		}
		return done
	}
	put("b.tar", "r.org/b:1=sha256:b\nr.org/a:2=sha256:a\n")
	put("c.tar.gz", "r.org/c:1=sha256:c\n")
	put("d.tgz", "r.org/d:1=sha256:d\n")
	put("a.tar", "rubbish")
	put("readme.txt", "rubbish")
	put(".e.tar", "r.org/e:1=sha256:e\n")
	done := pass()
	var files []string
	for _, d := range done {
		files = append(files, d.File)
	}
	if want := []string{"a.tar", "b.tar", "c.tar.gz", "d.tgz"}; !slices.Equal(files, want) {
		t.Fatalf("imported %v, want %v", files, want)
	}
	if !errors.Is(done[0].Err, errdefs.ErrInvalid) || done[1].Err != nil || !slices.Equal(done[1].Images, []string{"r.org/a:2", "r.org/b:1"}) {
		t.Errorf("%+v", done)
	}
	if pins := r.said("pin "); len(pins) != 4 {
		t.Errorf("pins %v, want all four images", pins)
	}
	if again := pass(); len(again) > 0 {
		t.Errorf("a second pass did %+v", again)
	}
	// The runtime lost one image, the user mended the bad archive.
	if err := r.RemoveImage(t.Context(), "r.org/d:1"); err != nil {
		t.Fatal(err)
	}
	put("a.tar", "r.org/good:1=sha256:g\n")
	if done := pass(); len(done) != 2 || done[0].File != "a.tar" || done[0].Err != nil || done[1].File != "d.tgz" {
		t.Errorf("%+v", done)
	}
	if err := os.WriteFile(filepath.Join(dir, importedFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if done := pass(); len(done) != 4 {
		t.Errorf("with a damaged memory: %+v, want all again", done)
	}
	if done, err := ImportFolder(t.Context(), filepath.Join(dir, "none"), r); len(done) > 0 || err != nil {
		t.Errorf("a folder that is not there: %v, %v", done, err)
	}
}
