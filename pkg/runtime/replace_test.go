package runtime_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/nodeagent/nodeagent/internal/testbed"
)

// TestReplacedImage imports another image under a name that is pinned: the old
// one is pinned no more, or every new version would keep the last on disk.
func TestReplacedImage(t *testing.T) {
	eachContainerd(t, func(t *testing.T, n *testbed.Node, _ string) {
		c := connect(t, n)
		tag, err := name.NewTag("example.org/app:1")
		if err != nil {
			t.Fatal(err)
		}
		var digests []string
		for _, from := range []string{"docker.io/library/busybox:latest", "docker.io/library/nginx:stable-alpine"} {
			img := testbed.ImageSet(t)[from]
			file := filepath.Join(t.TempDir(), "app.tar")
			if err := tarball.WriteToFile(file, tag, img); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := c.ImportImages(t.Context(), f); err != nil {
				t.Fatal(err)
			}
			if err := c.PinImage(t.Context(), tag.String()); err != nil {
				t.Fatal(err)
			}
			status, err := c.ImageStatus(t.Context(), tag.String())
			if err != nil {
				t.Fatal(err)
			}
			digests = append(digests, status.ID)
		}
		if digests[0] == digests[1] {
			t.Fatal("the name still leads to the old image")
		}
		images, err := c.Images(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range images {
			if i.ID == digests[0] && i.Pinned || i.ID == digests[1] && !i.Pinned {
				t.Errorf("image %s: pinned %v", i.ID, i.Pinned)
			}
		}
		leases, err := n.Exec("ctr", "-a", n.RuntimeSocket(), "-n", "k8s.io", "leases", "ls", "-q")
		if err != nil || strings.Count(leases, "nodeagent-pinned-") != 1 {
			t.Errorf("leases: %s %v", leases, err)
		}
	})
}
