package cli

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	clientexec "k8s.io/client-go/util/exec"
)

// container gives the CLI a pod "web" whose commands run on this host, with dir
// as their working folder.
func container(t *testing.T, c *CLI, f *fakeAgent, dir string) {
	t.Helper()
	f.put(simplePod("default", "web", nil))
	c.stream = func(ctx context.Context, s session) error {
		cmd := exec.CommandContext(ctx, s.command[0], s.command[1:]...)
		cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = dir, s.in, s.out, s.err
		err := cmd.Run()
		var code *exec.ExitError
		switch {
		case errors.As(err, &code):
			return clientexec.CodeExitError{Err: err, Code: code.ExitCode()}
		case errors.Is(err, exec.ErrNotFound):
			return clientexec.CodeExitError{Err: err, Code: 127}
		}
		return err
	}
}

func tree(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, ok := strings.CutPrefix(text, "-> "); ok {
			err = os.Symlink(to, p)
		} else {
			err = os.WriteFile(p, []byte(text), 0o640)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// list is "path content" of every file below dir.
func list(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		if to, err := os.Readlink(p); err == nil {
			out = append(out, rel+" -> "+to)
			return nil
		}
		b, err := os.ReadFile(p)
		out = append(out, rel+" "+string(b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestCopy(t *testing.T) {
	files := map[string]string{"d/a": "1", "d/sub/b c": "2", "d/link": "-> a", "-dash": "3"}
	for name, tc := range map[string]struct {
		from, to string
		want     []string // below the far side's folder for uploads, ours else
		warns    string
	}{
		"folder in":                {"HERE/d", "web:new", []string{"new/a 1", "new/link -> a", "new/sub/b c 2"}, ""},
		"folder into a folder":     {"HERE/d", "default/web:there", []string{"there/d/a 1", "there/d/link -> a", "there/d/sub/b c 2"}, ""},
		"file in, renamed":         {"HERE/d/a", "web:x", []string{"x 1"}, ""},
		"file into a folder":       {"HERE/d/a", "web:there/", []string{"there/a 1"}, ""},
		"a link that is named, in": {"HERE/d/link", "web:x", []string{"x 1"}, ""},
		"folder out":               {"web:d", "HERE/out", []string{"out/a 1", "out/sub/b c 2"}, "skipping d/link"},
		"file out, renamed":        {"web:d/sub/b c", "HERE/x", []string{"x 2"}, ""},
		"file out into a folder":   {"web:d/a", "HERE/there", []string{"there/a 1"}, ""},
		"a name like an option":    {"web:-dash", "HERE/x", []string{"x 3"}, ""},
		"a folder's content":       {"web:d/sub/.", "HERE/out", []string{"out/b c 2"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f, c, _, errs := newFake(t)
			here, far := t.TempDir(), t.TempDir()
			container(t, c, f, far)
			src, dst := far, here
			if strings.HasPrefix(tc.from, "HERE") {
				src, dst = here, far
			}
			tree(t, src, files)
			if err := os.Mkdir(filepath.Join(dst, "there"), 0o755); err != nil {
				t.Fatal(err)
			}
			from, to := strings.ReplaceAll(tc.from, "HERE", here), strings.ReplaceAll(tc.to, "HERE", here)
			if err := c.Copy(t.Context(), from, to, CopyOptions{}); err != nil {
				t.Fatal(err)
			}
			if got := list(t, dst); !slices.Equal(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if tc.warns == "" && errs.Len() > 0 || !strings.Contains(errs.String(), tc.warns) {
				t.Errorf("said %q, want %q", errs, tc.warns)
			}
		})
	}
}

func TestCopyRefuses(t *testing.T) {
	f, c, _, _ := newFake(t)
	here, far := t.TempDir(), t.TempDir()
	container(t, c, f, far)
	tree(t, far, map[string]string{"file": "1", "link": "-> file"})
	tree(t, here, map[string]string{"file": "1"})
	for _, tc := range []struct{ from, to, want string }{
		{"a", "b", "must be in a pod"},
		{"web:a", "web:b", "must be local"},
		{"web:", here, "write [NAMESPACE/]POD:PATH"},
		{"", here, "a path is empty"},
		{"none:a", here, `pods "none" not found`},
		{"web:absent", here, "ended with exit code 2 for absent"},
		// To copy nothing and call it a success helps nobody.
		{"web:link", here, "link is a link or a device in the container; name the file that it leads to"},
		{filepath.Join(here, "absent"), "web:x", "no such file"},
		{filepath.Join(here, "file"), "web:absent/", "is not a folder in pod web"},
		{filepath.Join(here, "file"), "web:absent/x", "ended with exit code 2 for absent/x"},
	} {
		if err := c.Copy(t.Context(), tc.from, tc.to, CopyOptions{}); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s to %s: %v, want %s", tc.from, tc.to, err, tc.want)
		}
	}
	c.stream = func(context.Context, session) error { return clientexec.CodeExitError{Err: errors.New("x"), Code: 127} }
	if err := c.Copy(t.Context(), "web:file", here, CopyOptions{}); err == nil || !strings.Contains(err.Error(), "copy needs tar") {
		t.Errorf("no tar: %v", err)
	}
	c.stream = func(context.Context, session) error { return errLost }
	if err := c.Copy(t.Context(), "web:file", filepath.Join(here, "cut"), CopyOptions{}); !errors.Is(err, errLost) {
		t.Errorf("a lost connection: %v", err)
	}
}
