package testbed

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// module is the first line of the go.mod that marks the repository's root.
const module = "module github.com/nodeagent/nodeagent\n"

// Strict says that a missing tool is a failure instead of a skip: CI=true.
func Strict() bool { return os.Getenv("CI") == "true" }

// Require skips the test unless it runs as root with the given programs in
// PATH. With CI=true a missing program fails the test instead.
func Require(t testing.TB, programs ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "needs root: namespaces, mounts and cgroups")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			missing(t, fmt.Sprintf("needs %s: %v (hack/install-deps.sh installs it)", p, err))
		}
	}
}

func missing(t testing.TB, reason string) {
	t.Helper()
	if Strict() {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

// Root is the repository's root folder.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && bytes.HasPrefix(b, []byte(module)) {
			return dir, nil
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", fmt.Errorf("no go.mod of nodeagent above the working folder: run tests inside the repository")
		}
		dir = up
	}
}
