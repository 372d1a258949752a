package embedded

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// program is a containerd on this host.
type program struct {
	path    string
	banner  string // the line that --version prints
	version string // "1.6.20~ds1", "2.4.2"
	major   int
}

// searchPath is where containerd, its shim and runc are looked for besides
// PATH: systemd units and cron jobs often have a short one.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

var versionField = regexp.MustCompile(`^v?((\d+)\.(\d+)\.\S+)$`)

// findProgram finds containerd and asks it for its version. name is a path or a
// program's name; "" is containerd.
func findProgram(ctx context.Context, name string) (program, error) {
	if name == "" {
		name = "containerd"
	}
	path, err := lookPath(name, os.Getenv("PATH")+":"+searchPath)
	if err != nil {
		return program{}, fmt.Errorf("embedded runtime: %w; install it (apt install containerd), set runtime.containerd, "+
			"or name another runtime with --runtime-endpoint: %w", err, errdefs.ErrUnavailable)
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return program{}, fmt.Errorf("embedded runtime: %s --version: %w; reinstall containerd", path, err)
	}
	p := program{path: path, banner: strings.TrimSpace(string(out))}
	if err := p.parse(); err != nil {
		return program{}, err
	}
	for _, helper := range []string{"containerd-shim-runc-v2", "runc"} {
		if _, err := lookPath(helper, p.searchPath()); err != nil {
			return program{}, fmt.Errorf("embedded runtime: containerd is at %s, but %w; install it beside containerd: %w", path, err, errdefs.ErrUnavailable)
		}
	}
	return p, nil
}

// parse reads "containerd github.com/containerd/containerd/v2 v2.4.2 0d3b…".
func (p *program) parse() error {
	for _, field := range strings.Fields(p.banner) {
		m := versionField.FindStringSubmatch(field)
		if m == nil {
			continue
		}
		minor, _ := strconv.Atoi(m[3])
		p.version = m[1]
		p.major, _ = strconv.Atoi(m[2])
		if p.major < 1 || p.major == 1 && minor < 6 {
			return fmt.Errorf("embedded runtime: %s is containerd %s: 1.6 or newer is needed: %w", p.path, p.version, errdefs.ErrInvalid)
		}
		return nil
	}
	return fmt.Errorf("embedded runtime: %s --version says %q, which names no version of containerd: %w", p.path, p.banner, errdefs.ErrInvalid)
}

// searchPath is the PATH that containerd gets: what lies beside it is of its
// version and comes first.
func (p program) searchPath() string {
	return filepath.Dir(p.path) + ":" + os.Getenv("PATH") + ":" + searchPath
}

// lookPath finds an executable without changing this process's own PATH.
func lookPath(name, dirs string) (string, error) {
	if strings.Contains(name, "/") {
		return exec.LookPath(name)
	}
	for _, dir := range filepath.SplitList(dirs) {
		if !filepath.IsAbs(dir) {
			continue
		}
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("there is no program %s in %s", name, dirs)
}
