package vm

import (
	"context"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/internal/testbed"
)

// GoTest compiles the tests of a package of this module ("./pkg/cgroup"), runs
// them in the guest with args ("-test.run=^TestX$") from a folder that has the
// package's testdata, and returns what they print. A test that fails there fails
// t, and so does one that is skipped: the guest has what tests need. SOAK is
// handed on.
func (v *VM) GoTest(t testing.TB, pkg string, args ...string) string {
	t.Helper()
	root, err := testbed.Root()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(t.TempDir(), path.Base(pkg)+".test")
	build := exec.Command("go", "test", "-c", "-ldflags=-s -w", "-o", bin, pkg)
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("compile the tests of %s: %v\n%s", pkg, err, out)
	}
	limit := 15 * time.Minute
	if os.Getenv("SOAK") != "" {
		limit = 2 * time.Hour
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit+5*time.Minute)
	defer cancel()
	dir := path.Join("/root/src", pkg)
	guest := path.Join(dir, path.Base(bin))
	if err := v.Copy(ctx, bin, guest); err != nil {
		t.Fatal(err)
	}
	if data := filepath.Join(root, pkg, "testdata"); exists(data) {
		if err := v.Copy(ctx, data, path.Join(dir, "testdata")); err != nil {
			t.Fatal(err)
		}
	}
	words := []string{"cd", dir, "&&", "CI=true", "SOAK=" + quote(os.Getenv("SOAK")), guest, "-test.v", "-test.timeout=" + limit.String()}
	for _, a := range args {
		words = append(words, quote(a))
	}
	out, err := v.script(ctx, strings.Join(words, " ")+"; code=$?; rm -f "+guest+"; exit $code")
	t.Logf("%s in the guest: %d tests passed", pkg, strings.Count(out, "--- PASS"))
	switch {
	case err != nil:
		t.Errorf("%s in the guest: %v\n%s", pkg, err, out)
	case strings.Contains(out, "--- SKIP"):
		t.Errorf("%s in the guest skipped tests:\n%s", pkg, out)
	case strings.Contains(out, "no tests to run"):
		t.Errorf("%s in the guest: no test matches %q", pkg, args)
	}
	return out
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
