package cli

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestValidate: what the daemon takes is valid and what it refuses is not.
func TestValidate(t *testing.T) {
	const good = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: i}]}\n"
	for name, c := range map[string]struct {
		files     map[string]string // content by name; a folder is validated when there are several
		out, errs string            // with DIR for the folder
	}{
		"a pod":         {map[string]string{"a.yaml": good}, "DIR/a.yaml:1: Pod default/web is valid\n", ""},
		"comments only": {map[string]string{"a.yaml": "# none\n---\n"}, "", "DIR/a.yaml: holds no object\n"},
		"empty":         {map[string]string{"a.yaml": ""}, "", "DIR/a.yaml: is empty\n"},
		"twice": {map[string]string{"a.yaml": good + "---\n" + good}, "DIR/a.yaml:1: Pod default/web is valid\n",
			"DIR/a.yaml:6: pod default/web is already defined by DIR/a.yaml:1: remove or rename one of them\n"},
		"a folder": {map[string]string{
			"a.yaml": good, "noextension": strings.Replace(good, "web", "app", 1), "b.json": strings.Replace(good, "image", "imagge", 1),
			".hidden.yaml": "bad: [", "a.yaml~": "bad: [", "a.yaml.swp": "bad: [", "a.bak": "bad: [", "sub/a.yaml": "bad: [",
			"c.yaml": good, "zero.yaml": "",
		}, "DIR/a.yaml:1: Pod default/web is valid\nDIR/noextension:1: Pod default/app is valid\n",
			"DIR/b.json:4: Pod default/web: spec.containers[0].imagge: unknown field; did you mean image?\n" +
				"DIR/zero.yaml: is empty: remove the file to remove its pods, or write a comment into it\n" +
				"DIR/c.yaml:1: pod default/web is already defined by DIR/a.yaml:1: remove or rename one of them\n"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			arg := dir
			for file, content := range c.files {
				file = filepath.Join(dir, file)
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
					t.Fatal(err)
				}
				if len(c.files) == 1 {
					arg = file
				}
			}
			out, errs, err := validate(t, "", arg)
			if got := strings.ReplaceAll(out, dir, "DIR"); got != c.out {
				t.Errorf("output %q, want %q", got, c.out)
			}
			if got := strings.ReplaceAll(errs, dir, "DIR"); got != c.errs {
				t.Errorf("errors %q, want %q", got, c.errs)
			}
			if failed := c.errs != "" && !strings.Contains(c.errs, "holds no object"); (err != nil) != failed {
				t.Errorf("the exit is %v", err)
			}
		})
	}
}

func validate(t *testing.T, in string, args ...string) (out, errs string, err error) {
	t.Helper()
	var o, e bytes.Buffer
	err = New("", Streams{In: strings.NewReader(in), Out: &o, Err: &e}).Validate(t.Context(), args, "")
	var exit *ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return o.String(), e.String(), err
}

// TestValidateGoesOn: one argument that cannot be read keeps no other from
// being judged, and nothing hangs on a FIFO in a folder.
func TestValidateGoesOn(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "fifo.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, errs, err := validate(t, "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: i}]}\n",
		filepath.Join(dir, "missing.yaml"), dir, "-")
	if err == nil || out != "-:1: Pod default/web is valid\n" {
		t.Errorf("%v, output %q", err, out)
	}
	for _, want := range []string{"missing.yaml: no such file", "fifo.yaml: is a FIFO, not a file"} {
		if !strings.Contains(errs, want) {
			t.Errorf("errors %q lack %q", errs, want)
		}
	}
}
