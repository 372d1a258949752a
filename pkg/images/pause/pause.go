// Package pause is the image of the container that holds a pod's namespaces,
// inside our own binary: pods start with no registry in reach.
//
// bin/ holds the program for each architecture, built from src/pause.c by
// hack/build-pause.sh.
package pause

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"runtime"
	"time"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// Ref is the image's name. Its tag changes whenever its content does.
const Ref = "nodeagent.dev/pause:1"

//go:embed bin
var programs embed.FS

// Program is the static executable for a GOARCH; "" is ours.
func Program(arch string) ([]byte, error) {
	if arch == "" {
		arch = runtime.GOARCH
	}
	b, err := programs.ReadFile("bin/pause-linux-" + arch)
	if err != nil {
		return nil, fmt.Errorf("there is no pause program for %s; set images.pauseImage to an image for it: %w", arch, errdefs.ErrInvalid)
	}
	return b, nil
}

// blob is one content-addressed file of the archive.
type blob struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	data        []byte
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

func newBlob(mediaType string, data []byte) blob {
	sum := sha256.Sum256(data)
	return blob{MediaType: mediaType, Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: len(data), data: data}
}

func (b blob) path() string { return "blobs/sha256/" + b.Digest[len("sha256:"):] }

// Archive is a tar file with the image under the given name, as an OCI layout
// that docker and podman load, too. The same arguments give the same bytes.
func Archive(ref, arch string) ([]byte, error) {
	if arch == "" {
		arch = runtime.GOARCH
	}
	program, err := Program(arch)
	if err != nil {
		return nil, err
	}
	rootfs, err := pack(file{"pause", 0o755, program})
	if err != nil {
		return nil, err
	}
	layer := newBlob("application/vnd.oci.image.layer.v1.tar", rootfs)
	config, err := document("application/vnd.oci.image.config.v1+json", map[string]any{
		"created":      "2026-01-01T00:00:00Z",
		"architecture": arch,
		"os":           "linux",
		// Nobody: the program needs no right at all.
		"config":  map[string]any{"User": "65535:65535", "Entrypoint": []string{"/pause"}, "WorkingDir": "/"},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{layer.Digest}},
		"history": []any{map[string]any{"created": "2026-01-01T00:00:00Z", "created_by": "nodeagent"}},
	})
	if err != nil {
		return nil, err
	}
	manifest, err := document("application/vnd.oci.image.manifest.v1+json", map[string]any{
		"schemaVersion": 2,
		"mediaType":     "application/vnd.oci.image.manifest.v1+json",
		"config":        config,
		"layers":        []blob{layer},
	})
	if err != nil {
		return nil, err
	}
	manifest.Platform = &platform{Architecture: arch, OS: "linux"}
	// containerd takes the name from the first, other tools from the second.
	manifest.Annotations = map[string]string{"io.containerd.image.name": ref, "org.opencontainers.image.ref.name": ref}
	index, err := json.Marshal(map[string]any{
		"schemaVersion": 2,
		"mediaType":     "application/vnd.oci.image.index.v1+json",
		"manifests":     []blob{manifest},
	})
	if err != nil {
		return nil, err
	}
	docker, err := json.Marshal([]any{map[string]any{
		"Config": config.path(), "RepoTags": []string{ref}, "Layers": []string{layer.path()},
	}})
	if err != nil {
		return nil, err
	}
	return pack(
		file{"oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		file{"index.json", 0o644, index},
		file{"manifest.json", 0o644, docker},
		file{layer.path(), 0o644, layer.data},
		file{config.path(), 0o644, config.data},
		file{manifest.path(), 0o644, manifest.data},
	)
}

// document marshals with sorted keys, so that it is the same every time.
func document(mediaType string, content map[string]any) (blob, error) {
	data, err := json.Marshal(content)
	if err != nil {
		return blob{}, fmt.Errorf("building the pause image: %w", err)
	}
	return newBlob(mediaType, data), nil
}

type file struct {
	name string
	mode int64
	data []byte
}

func pack(files ...file) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("building the pause image: %w", err)
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, fmt.Errorf("building the pause image: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("building the pause image: %w", err)
	}
	return b.Bytes(), nil
}
