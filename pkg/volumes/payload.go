package volumes

import (
	"path"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// file is one file of a volume that the agent writes.
type file struct {
	data []byte
	mode uint32
}

// payload are a volume's files by their path in it.
type payload map[string]file

const (
	defaultMode = 0o644
	maxPath     = 4096
	maxName     = 255
)

func mode(m *int32) uint32 { return override(defaultMode, m) }

func override(mode uint32, m *int32) uint32 {
	if m != nil {
		return uint32(*m) & 0o777
	}
	return mode
}

func isTrue(b *bool) bool { return b != nil && *b }

// project picks the files of an object: all keys, or those that items name.
// missing is what kubelet says of a key that is not there.
func project(data map[string][]byte, items []v1.KeyToPath, mode uint32, optional bool, missing string) (payload, error) {
	files := make(payload, len(data))
	if len(items) == 0 {
		for key, b := range data {
			files[key] = file{b, mode}
		}
		return files, nil
	}
	for _, item := range items {
		b, ok := data[item.Key]
		if !ok && optional {
			continue
		}
		if !ok {
			return nil, errdefs.Errorf(errdefs.ErrNotFound, missing, item.Key)
		}
		files[path.Clean(item.Path)] = file{b, override(mode, item.Mode)}
	}
	return files, nil
}

// check refuses paths that would lead out of the volume or into what keeps its
// order. Validation has done so before; an object may come by other ways.
func (p payload) check() error {
	for name := range p {
		parts := strings.Split(name, "/")
		for _, part := range parts {
			if part == "" || part == "." || part == ".." || len(part) > maxName || strings.Contains(part, "\x00") {
				return errdefs.Errorf(errdefs.ErrInvalid, "invalid path: %q has the part %q", name, part)
			}
		}
		if len(name) > maxPath || strings.HasPrefix(name, "..") {
			return errdefs.Errorf(errdefs.ErrInvalid, "invalid path: %q must not be longer than %d characters or begin with '..'", name, maxPath)
		}
		for i := range parts[1:] {
			above := strings.Join(parts[:i+1], "/")
			if _, both := p[above]; both {
				return errdefs.Errorf(errdefs.ErrInvalid, "invalid path: %q is a file and the folder of %q", above, name)
			}
		}
	}
	return nil
}

// tops are the names in the volume's folder.
func (p payload) tops() map[string]struct{} {
	out := map[string]struct{}{}
	for name := range p {
		top, _, _ := strings.Cut(name, "/")
		out[top] = struct{}{}
	}
	return out
}
