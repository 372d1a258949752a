package testbed

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/nodeagent/nodeagent/pkg/images/pause"
)

// imagesVersion changes when the images' recipe does.
const imagesVersion = "2"

// nginxConf is the stand-in's configuration: foreground, port 80, logs where
// the runtime collects them, nothing written outside /tmp.
const nginxConf = `daemon off;
worker_processes 1;
pid /tmp/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 256; }
http {
  include /etc/nginx/mime.types;
  default_type application/octet-stream;
  access_log /dev/stdout;
  client_body_temp_path /tmp/client;
  proxy_temp_path /tmp/proxy;
  fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi;
  scgi_temp_path /tmp/scgi;
  server { listen 80; listen [::]:80; root /usr/share/nginx/html; index index.html; }
}
`

// A file of an image: content from a host path or given, or a link.
type file struct {
	from, link string
	content    []byte
	mode       int64
	dir        bool
}

// Images builds the demo images once (kept under the user's cache folder) and
// returns a docker archive with all of them:
//
//	docker.io/library/busybox:latest, docker.io/library/alpine:latest,
//	docker.io/library/nginx:stable-alpine, ignite.azurecr.io/nginx-demo:latest
func Images(t testing.TB) string {
	t.Helper()
	return archive(t, "images", demoImages)
}

// BusyboxImages is an archive with docker.io/library/busybox:latest and
// PauseImage alone, for a runtime that is slow to unpack more.
func BusyboxImages(t testing.TB) string {
	t.Helper()
	return archive(t, "busybox", func() (map[string]v1.Image, error) {
		set, err := demoImages()
		if err != nil {
			return nil, err
		}
		pause, err := pauseImage()
		const busybox = "docker.io/library/busybox:latest"
		return map[string]v1.Image{busybox: set[busybox], PauseImage: pause}, err
	})
}

func pauseArchive(t testing.TB) string {
	t.Helper()
	return archive(t, "pause", func() (map[string]v1.Image, error) {
		img, err := pauseImage()
		return map[string]v1.Image{PauseImage: img}, err
	})
}

// ImageSet is the demo images as objects, by reference, for tests that fill a
// registry of their own.
func ImageSet(t testing.TB) map[string]v1.Image {
	t.Helper()
	set, err := demoImages()
	if err != nil {
		missing(t, err.Error())
	}
	return set
}

func archive(t testing.TB, what string, make func() (map[string]v1.Image, error)) string {
	t.Helper()
	dir, err := CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	set, err := make()
	if err != nil {
		missing(t, err.Error())
	}
	path, err := writeArchive(dir, what, set)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// WriteDemoArchive writes the demo images as one docker archive into a folder
// and returns its path. hack/run-demo uses it.
func WriteDemoArchive(dir string) (string, error) {
	set, err := demoImages()
	if err != nil {
		return "", err
	}
	return writeArchive(dir, "images", set)
}

func writeArchive(dir, what string, set map[string]v1.Image) (string, error) {
	refs := map[name.Reference]v1.Image{}
	sum := sha256.New()
	for _, ref := range sortedKeys(set) {
		tag, err := name.NewTag(ref)
		if err != nil {
			return "", err
		}
		refs[tag] = set[ref]
		d, err := set[ref].Digest()
		if err != nil {
			return "", err
		}
		fmt.Fprintln(sum, ref, d)
	}
	path := filepath.Join(dir, what+"-"+hex.EncodeToString(sum.Sum(nil))[:16]+".tar")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	// Other tests write the same file at the same time.
	tmp, err := os.CreateTemp(dir, filepath.Base(path)+".*")
	if err != nil {
		return "", err
	}
	defer os.Remove(tmp.Name())
	err = errors.Join(tarball.MultiRefWrite(refs, tmp), tmp.Chmod(0o644), tmp.Close())
	if err != nil {
		return "", fmt.Errorf("write %s: %w", tmp.Name(), err)
	}
	return path, os.Rename(tmp.Name(), path)
}

// demoImages is computed once per process: compressing nginx takes a second.
var demoImages = sync.OnceValues(func() (map[string]v1.Image, error) {
	box, err := busyboxFiles()
	if err != nil {
		return nil, err
	}
	busybox, err := image(box, v1.Config{Cmd: []string{"sh"}})
	if err != nil {
		return nil, err
	}
	alpineFiles := with(box, "etc/os-release", file{content: []byte("NAME=\"Alpine Linux\"\nID=alpine\nPRETTY_NAME=\"nodeagent's stand-in for Alpine\"\n")})
	alpine, err := image(alpineFiles, v1.Config{Cmd: []string{"/bin/sh"}})
	if err != nil {
		return nil, err
	}
	ngx, err := nginxFiles(alpineFiles)
	if err != nil {
		return nil, err
	}
	nginx, err := image(ngx, v1.Config{
		Cmd:          []string{"nginx"},
		ExposedPorts: map[string]struct{}{"80/tcp": {}},
		StopSignal:   "SIGQUIT",
	})
	if err != nil {
		return nil, err
	}
	demo, err := image(with(ngx, "usr/share/nginx/html/index.html", file{content: []byte("<h1>nginx-demo</h1>\n")}),
		v1.Config{Cmd: []string{"nginx"}, StopSignal: "SIGQUIT"})
	return map[string]v1.Image{
		"docker.io/library/busybox:latest":      busybox,
		"docker.io/library/alpine:latest":       alpine,
		"docker.io/library/nginx:stable-alpine": nginx,
		"ignite.azurecr.io/nginx-demo:latest":   demo,
	}, err
})

func with(files map[string]file, path string, f file) map[string]file {
	out := map[string]file{path: f}
	for k, v := range files {
		if k != path {
			out[k] = v
		}
	}
	return out
}

// busyboxFiles is Debian's static busybox with its applets as links.
func busyboxFiles() (map[string]file, error) {
	out, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("needs the static busybox of package busybox-static: %w", err)
	}
	files := map[string]file{
		"bin/busybox": {from: "/bin/busybox", mode: 0o755},
		"etc/passwd":  {content: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\nnginx:x:101:101:nginx:/:/bin/false\n")},
		"etc/group":   {content: []byte("root:x:0:\nnogroup:x:65534:\nnginx:x:101:\n")},
		"tmp":         {dir: true, mode: 0o1777},
		"root":        {dir: true, mode: 0o700},
		"var/log":     {dir: true, mode: 0o755},
		"usr/bin/env": {link: "/bin/busybox"},
	}
	for _, applet := range strings.Fields(string(out)) {
		if applet != "busybox" {
			files["bin/"+applet] = file{link: "/bin/busybox"}
		}
	}
	return files, nil
}

// nginxFiles adds Debian's nginx and the libraries that ldd names.
func nginxFiles(base map[string]file) (map[string]file, error) {
	const bin = "/usr/sbin/nginx"
	out, err := exec.Command("ldd", bin).Output()
	if err != nil {
		return nil, fmt.Errorf("needs nginx of package nginx-light: %w", err)
	}
	files := with(base, "usr/sbin/nginx", file{from: bin, mode: 0o755})
	for _, f := range strings.Fields(string(out)) {
		if strings.HasPrefix(f, "/") {
			files[f[1:]] = file{from: f, mode: 0o755}
		}
	}
	files["etc/nginx/nginx.conf"] = file{content: []byte(nginxConf)}
	files["etc/nginx/mime.types"] = file{from: "/etc/nginx/mime.types"}
	files["usr/share/nginx/html/index.html"] = file{content: []byte("<h1>Welcome to nginx!</h1>\n")}
	files["var/log/nginx"] = file{dir: true, mode: 0o755}
	files["var/lib/nginx"] = file{dir: true, mode: 0o755}
	return files, nil
}

// pauseImage holds our own pause program, under the name that the private
// containerd is configured with.
func pauseImage() (v1.Image, error) {
	program, err := pause.Program("")
	if err != nil {
		return nil, err
	}
	return image(map[string]file{"pause": {content: program, mode: 0o755}}, v1.Config{Entrypoint: []string{"/pause"}})
}

// Layer is a layer of regular files, path to content.
func Layer(files map[string]string) (v1.Layer, error) {
	set := map[string]file{}
	for path, content := range files {
		set[path] = file{content: []byte(content), mode: 0o644}
	}
	return layerOf(set)
}

func layerOf(files map[string]file) (v1.Layer, error) {
	content, err := tarFiles(files)
	if err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(content)), nil
	})
}

// image makes a one-layer image whose digest depends on its files alone.
func image(files map[string]file, cfg v1.Config) (v1.Image, error) {
	layer, err := layerOf(files)
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", "amd64"
	cf.Author = "nodeagent testbed " + imagesVersion
	cfg.Env = append(cfg.Env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	cf.Config = cfg
	return mutate.ConfigFile(img, cf)
}

func tarFiles(files map[string]file) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, path := range sortedKeys(files) {
		f := files[path]
		h := &tar.Header{Name: path, Mode: f.mode, ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		switch {
		case f.link != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.link, 0o777
		case f.dir:
			h.Typeflag, h.Name = tar.TypeDir, path+"/"
		case f.from != "":
			c, err := os.ReadFile(f.from)
			if err != nil {
				return nil, err
			}
			f.content = c
		}
		h.Size = int64(len(f.content))
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// demoRegistry is DemoRegistry for a test.
func demoRegistry(t testing.TB) http.Handler {
	t.Helper()
	h, err := DemoRegistry()
	if err != nil {
		missing(t, err.Error())
	}
	return h
}

// DemoRegistry is a registry that holds the demo images, filled once per
// process; every node serves it on its own loopback interface.
func DemoRegistry() (http.Handler, error) { return sharedRegistry() }

var sharedRegistry = sync.OnceValues(func() (http.Handler, error) {
	set, err := demoImages()
	if err != nil {
		return nil, err
	}
	pause, err := pauseImage()
	if err != nil {
		return nil, err
	}
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	for _, ref := range sortedKeys(set) {
		if err := Push(h, ref, set[ref]); err != nil {
			return nil, err
		}
	}
	return h, Push(h, PauseImage, pause)
})

// Push stores an image in a registry handler under the repository and tag of
// ref; the registry's host name in ref is left out, as hosts.toml does. It
// speaks to the handler directly, without a socket.
func Push(h http.Handler, ref string, img v1.Image) error {
	tag, err := name.NewTag(ref)
	if err != nil {
		return err
	}
	repo := "/v2/" + tag.RepositoryStr()
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		digest, err := l.Digest()
		if err != nil {
			return err
		}
		blob, err := l.Compressed()
		if err != nil {
			return err
		}
		if err := send(h, http.MethodPost, repo+"/blobs/uploads/?digest="+digest.String(), "", blob); err != nil {
			return err
		}
	}
	cfg, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	digest, err := img.ConfigName()
	if err != nil {
		return err
	}
	if err := send(h, http.MethodPost, repo+"/blobs/uploads/?digest="+digest.String(), "", bytes.NewReader(cfg)); err != nil {
		return err
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return err
	}
	mt, err := img.MediaType()
	if err != nil {
		return err
	}
	return send(h, http.MethodPut, repo+"/manifests/"+tag.TagStr(), string(mt), bytes.NewReader(manifest))
}

func send(h http.Handler, method, url, contentType string, body io.Reader) error {
	req := httptest.NewRequest(method, url, body)
	req.Header.Set("Content-Type", contentType)
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	if rec.Code != http.StatusCreated {
		return fmt.Errorf("%s %s: %d: %s", method, url, rec.Code, rec.Body)
	}
	return nil
}
