package cli

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	clientexec "k8s.io/client-go/util/exec"
)

// sending answers whatever command with an archive.
func sending(archive []byte) streamFunc {
	return func(_ context.Context, s session) error {
		_, err := s.out.Write(archive)
		return err
	}
}

// archive packs entries in order; a body is a file's content or a link's target.
type entry struct {
	name string
	kind byte
	body string
	mode int64
}

func archive(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Mode: e.mode}
		switch e.kind {
		case tar.TypeReg:
			h.Size = int64(len(e.body))
		case tar.TypeSymlink, tar.TypeLink:
			h.Linkname = e.body
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if e.kind == tar.TypeReg {
			if _, err := io.WriteString(w, e.body); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// shape is what is below a folder: "path mode content", links as "path -> target",
// and "path/ mode" of folders with another mode than usual.
func shape(t *testing.T, dir string) string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		st, err := os.Lstat(p)
		if err != nil {
			return err
		}
		switch {
		case st.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(p)
			out = append(out, rel+" -> "+to)
			return err
		case st.Mode().IsRegular():
			b, err := os.ReadFile(p)
			out = append(out, fmt.Sprintf("%s %o %s", rel, st.Mode(), b))
			return err
		case st.Mode().Perm() != 0o755:
			out = append(out, fmt.Sprintf("%s/ %o", rel, st.Mode().Perm()))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, "; ")
}

// copier is a CLI with a pod "web", a folder, and a victim outside of the
// folder that nothing may touch.
func copier(t *testing.T) (c *CLI, errs *bytes.Buffer, dir string) {
	t.Helper()
	f, c, _, errs := newFake(t)
	f.put(simplePod("default", "web", nil))
	f.put(simplePod("team", "web", nil))
	top := t.TempDir()
	dir = filepath.Join(top, "dir")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(top, "victim"), []byte("safe"), 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b, err := os.ReadFile(filepath.Join(top, "victim"))
		names, _ := filepath.Glob(filepath.Join(top, "*"))
		if string(b) != "safe" || err != nil || len(names) != 2 {
			t.Errorf("something was written outside of the destination: victim %q, %v; there are %q", b, err, names)
		}
	})
	return c, errs, dir
}

// TestHostileArchives: what a container sends is not trusted. Nothing is written
// outside of the destination, whatever it says.
func TestHostileArchives(t *testing.T) {
	file := func(name, body string) entry { return entry{name, tar.TypeReg, body, 0o644} }
	folder := func(name string) entry { return entry{name, tar.TypeDir, "", 0o755} }
	link := func(name, to string) entry { return entry{name, tar.TypeSymlink, to, 0o777} }
	const outside = "nothing more is unpacked"
	for name, tc := range map[string]struct {
		entries []entry
		want    string // in the destination
		err     string
	}{
		"dots":                       {[]entry{folder("src"), file("src/../../victim", "x")}, "", outside},
		"dots at the front":          {[]entry{folder("src"), file("../victim", "x")}, "", outside},
		"dots within":                {[]entry{folder("src"), file("src/a/../b", "x")}, "b 644 x", ""},
		"an absolute path":           {[]entry{folder("src"), file("/victim", "x")}, "", outside},
		"an absolute source":         {[]entry{folder("/src"), file("/src/victim", "x")}, "", outside},
		"a neighbour":                {[]entry{folder("src"), file("srcs/a", "x")}, "", outside},
		"a neighbouring file":        {[]entry{folder("src"), file("srcxa", "x")}, "", outside},
		"the first is outside":       {[]entry{file("../victim", "x")}, "", outside},
		"what came before stays":     {[]entry{folder("src"), file("src/a", "1"), file("etc/passwd", "x"), file("src/b", "2")}, "a 644 1", outside},
		"a link out, then through":   {[]entry{folder("src"), link("src/l", ".."), file("src/l/victim", "x")}, "l/victim 644 x", ""},
		"a link to root, then":       {[]entry{folder("src"), link("src/l", "/"), folder("src/l/tmp")}, "", ""},
		"a link named as the target": {[]entry{link("src", "/etc"), file("src/passwd", "x")}, "", "src is a link"},
		"a hard link":                {[]entry{folder("src"), {"src/h", tar.TypeLink, "../victim", 0o644}, file("src/h", "x")}, "h 644 x", ""},
		"devices and fifos":          {[]entry{folder("src"), {"src/null", tar.TypeChar, "", 0o666}, {"src/f", tar.TypeFifo, "", 0o666}, {"src/b", tar.TypeBlock, "", 0o666}}, "", ""},
		"set-id":                     {[]entry{folder("src"), {"src/su", tar.TypeReg, "x", 0o6755}}, "su 755 x", ""},
		"a folder nobody may enter":  {[]entry{{"src", tar.TypeDir, "", 0}, {"src/d", tar.TypeDir, "", 0}, file("src/d/a", "x")}, "d/ 700; d/a 644 x", ""},
		"a file nobody may write":    {[]entry{folder("src"), {"src/a", tar.TypeReg, "x", 0o444}}, "a 444 x", ""},
		"a file, then below it":      {[]entry{file("src", "1"), file("src/a", "x")}, "src 644 1", outside},
		"a file in a file":           {[]entry{folder("src"), file("src/a", "1"), file("src/a/b", "x")}, "a 644 1", "file exists"},
		"a name with an escape":      {[]entry{folder("src"), file("\x1b[2J/../x", "x")}, "", outside},
		"nothing":                    {nil, "", "empty archive"},
	} {
		t.Run(name, func(t *testing.T) {
			c, errs, dir := copier(t)
			c.stream = sending(archive(t, tc.entries...))
			code := Report(errs, c.Copy(t.Context(), "web:/src", dir, CopyOptions{}))
			if got := shape(t, dir); got != tc.want || (code != 0) != (tc.err != "") || !strings.Contains(errs.String(), tc.err) || strings.Contains(errs.String(), "\x1b") {
				t.Errorf("unpacked %q, code %d, %q; want %q, %q", got, code, errs, tc.want, tc.err)
			}
		})
	}
}

// TestHostileArchivesOfEverything: a source without a name of its own allows
// any name, but no way out.
func TestHostileArchivesOfEverything(t *testing.T) {
	for _, src := range []string{"/", ".", "/src/.."} {
		for name, want := range map[string]string{"../victim": "nothing more", "/victim": "nothing more", "./a/../../victim": "nothing more", "./a": "", "b": ""} {
			c, errs, dir := copier(t)
			c.stream = sending(archive(t, entry{"./", tar.TypeDir, "", 0o755}, entry{name, tar.TypeReg, "x", 0o644}))
			code := Report(errs, c.Copy(t.Context(), "web:"+src, dir, CopyOptions{}))
			if got := shape(t, dir); (got == "") != (want != "") || (code != 0) != (want != "") || !strings.Contains(errs.String(), want) {
				t.Errorf("%s from %s: there is %q, code %d, %q", name, src, got, code, errs)
			}
		}
	}
}

// TestLinksThatAreThere: links in the destination lead nowhere else either.
func TestLinksThatAreThere(t *testing.T) {
	c, errs, dir := copier(t)
	if err := errors.Join(os.Symlink("../victim", filepath.Join(dir, "a")), os.Symlink("..", filepath.Join(dir, "d")), os.Symlink("inside", filepath.Join(dir, "ok"))); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"src/a", "src/d/victim"} {
		c.stream = sending(archive(t, entry{"src", tar.TypeDir, "", 0o755}, entry{name, tar.TypeReg, "x", 0o644}))
		errs.Reset()
		if code := Report(errs, c.Copy(t.Context(), "web:/src", dir, CopyOptions{})); code != 1 || !strings.Contains(errs.String(), "escapes") {
			t.Errorf("%s: code %d, %q", name, code, errs)
		}
	}
	c.stream = sending(archive(t, entry{"src", tar.TypeDir, "", 0o755}, entry{"src/ok", tar.TypeReg, "x", 0o600}))
	if err := c.Copy(t.Context(), "web:/src", dir, CopyOptions{}); err != nil {
		t.Errorf("a link within the destination: %v", err)
	}
	if got := shape(t, dir); !strings.Contains(got, "inside 600 x") {
		t.Errorf("there is %s", got)
	}
}

// TestBrokenArchives: what arrived of it stays, and the failure is told.
func TestBrokenArchives(t *testing.T) {
	whole := archive(t, entry{"src", tar.TypeDir, "", 0o755}, entry{"src/a", tar.TypeReg, strings.Repeat("x", 4096), 0o644})
	lost := errors.New("the connection is lost")
	for name, tc := range map[string]struct {
		stream streamFunc
		want   string
	}{
		"cut":             {sending(whole[:2048]), "unexpected EOF"},
		"no archive":      {sending([]byte(strings.Repeat("no tar ", 100))), "archive from the container"},
		"connection lost": {func(_ context.Context, s session) error { _, _ = s.out.Write(whole[:2048]); return lost }, lost.Error()},
		"tar fails": {func(_ context.Context, s session) error {
			_, _ = s.out.Write(whole)
			return clientexec.CodeExitError{Err: lost, Code: 2}
		}, "tar in pod web ended with exit code 2 for /src"},
		"tar finds nothing": {func(context.Context, session) error { return clientexec.CodeExitError{Err: lost, Code: 1} }, "exit code 1"},
		"no tar":            {func(context.Context, session) error { return clientexec.CodeExitError{Err: lost, Code: 127} }, "needs tar in the container of pod web, which has none"},
	} {
		t.Run(name, func(t *testing.T) {
			c, errs, dir := copier(t)
			c.stream = tc.stream
			if code := Report(errs, c.Copy(t.Context(), "web:/src", dir, CopyOptions{})); code != 1 || !strings.Contains(errs.String(), tc.want) {
				t.Errorf("code %d, %q, want %q", code, errs, tc.want)
			}
		})
	}
}

// TestCopyCommands: no path is taken for an option.
func TestCopyCommands(t *testing.T) {
	c, _, dir := copier(t)
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	var commands []string
	c.stream = func(_ context.Context, s session) error {
		if s.command[0] == "test" {
			return clientexec.CodeExitError{Err: errors.New("no"), Code: 1}
		}
		commands = append(commands, s.container+": "+strings.Join(s.command, " "))
		if s.in == nil {
			e := entry{s.command[len(s.command)-1], tar.TypeReg, "", 0o644}
			if e.name == "." {
				e.kind = tar.TypeDir
			}
			_, err := s.out.Write(archive(t, e))
			return err
		}
		_, err := io.Copy(io.Discard, s.in)
		return err
	}
	for _, tc := range []struct {
		src, dst string
		o        CopyOptions
		want     string
	}{
		{file, "web:/-d/f", CopyOptions{}, "main: tar xmf - -C /-d/"},
		{file, "web:/-d/f", CopyOptions{NoPreserve: true}, "main: tar --no-same-permissions --no-same-owner -xmf - -C /-d/"},
		{file, "web:-d/f", CopyOptions{}, "main: tar xmf - -C ./-d/"},
		{file, "web:f", CopyOptions{}, "main: tar xmf - -C ."},
		{"web:/-d/-f", file, CopyOptions{}, "main: tar cf - -C /-d/ -- -f"},
		{"web:-d/f", file, CopyOptions{}, "main: tar cf - -C ./-d/ -- f"},
		{"web:f/", file, CopyOptions{}, "main: tar cf - -C . -- f"},
		{"web:/a/../..", dir, CopyOptions{}, "main: tar cf - -C / -- ."},
	} {
		commands = nil
		if err := c.Copy(t.Context(), tc.src, tc.dst, tc.o); err != nil {
			t.Errorf("%s to %s: %v", tc.src, tc.dst, err)
		}
		if !slices.Equal(commands, []string{tc.want}) {
			t.Errorf("%s to %s runs %q, want %q", tc.src, tc.dst, commands, tc.want)
		}
	}
}
