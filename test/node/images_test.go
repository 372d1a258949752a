package node

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/internal/testbed/registry"
	"github.com/nodeagent/nodeagent/pkg/config"
)

// served puts a registry on the node's loopback interface with busybox in it,
// and returns it with the image's reference.
func served(t *testing.T, n *testbed.Node, o registry.Opts) (*asked, string) {
	t.Helper()
	r := &asked{Registry: registry.New(t, o)}
	r.Addr = n.ServeRegistry(r)
	// A layer that no node has yet: others are not pulled again.
	layer, err := random.Layer(1<<16, types.DockerLayer)
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(testbed.ImageSet(t)["docker.io/library/busybox:latest"], layer)
	if err != nil {
		t.Fatal(err)
	}
	return r, r.Push("app:1", img)
}

// asked counts how often the registry is asked for a manifest, by HEAD or GET.
type asked struct {
	*registry.Registry
	manifests atomic.Int64
}

func (a *asked) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.Contains(r.URL.Path, "/manifests/") {
		a.manifests.Add(1)
	}
	a.Registry.ServeHTTP(w, r)
}

// quickPulls makes a failed pull be tried again after a second.
func quickPulls(n *testbed.Node) {
	n.EditConfig(func(c *config.NodeAgentConfiguration) {
		c.Images.PullBackoff = metav1.Duration{Duration: 1e9}
		c.Images.PullBackoffMax = metav1.Duration{Duration: 1e9}
	})
}

func podOf(name, image, policy string) string {
	m := strings.Replace(manifest{name: name}.String(), "image: busybox", "image: "+image, 1)
	return strings.Replace(m, "imagePullPolicy: IfNotPresent", "imagePullPolicy: "+policy, 1)
}

func TestPullPolicies(t *testing.T) {
	n := newNode(t)
	quickPulls(n)
	reg, image := served(t, n, registry.Opts{})
	n.StartAgent()

	n.WriteManifest("never.yaml", podOf("never", image, "Never"))
	n.WaitPods(long, waiting("never", "ErrImageNeverPull"))
	if asks := reg.manifests.Load(); asks != 0 {
		t.Errorf("policy Never asked the registry %d times", asks)
	}
	n.WriteManifest("missing.yaml", podOf("missing", reg.Addr+"/nothing:here", "IfNotPresent"))
	n.WaitPods(long, waiting("missing", "ImagePullBackOff"))
	n.WriteManifest("invalid.yaml", podOf("invalid", "'UPPER/case::x'", "IfNotPresent"))
	n.WaitPods(long, waiting("invalid", "InvalidImageName"))

	n.WriteManifest("first.yaml", podOf("first", image, "IfNotPresent"))
	n.WaitPods(long, testbed.Running("first", "never")) // Never finds it now
	n.RemoveManifest("missing.yaml")                    // which goes on asking
	n.WaitPods(long, testbed.Gone("missing"))
	before := reg.manifests.Load()
	if before == 0 {
		t.Error("the image came without a pull")
	}
	n.WriteManifest("second.yaml", podOf("second", image, "IfNotPresent"))
	n.WaitPods(long, testbed.Running("second"))
	if now := reg.manifests.Load(); now != before {
		t.Errorf("IfNotPresent asked for an image that is there: %d → %d", before, now)
	}
	n.WriteManifest("always.yaml", podOf("always", image, "Always"))
	n.WaitPods(long, testbed.Running("always"))
	if reg.manifests.Load() == before {
		t.Error("Always did not ask the registry")
	}
	if out := cli(t, n, "get", "images"); !strings.Contains(out, reg.Addr+"/app") {
		t.Errorf("get images lacks the pulled one:\n%s", out)
	}
}

func TestPullCredentials(t *testing.T) {
	n := newNode(t)
	quickPulls(n)
	reg, image := served(t, n, registry.Opts{User: "robot", Pass: "s3cret"})
	file := n.Path("credentials.json")
	credentials := func(pass string) {
		auth := base64.StdEncoding.EncodeToString([]byte("robot:" + pass))
		if err := os.WriteFile(file, fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, reg.Addr, auth), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	credentials("wrong")
	n.EditConfig(func(c *config.NodeAgentConfiguration) { c.Images.CredentialsFile = file })
	n.StartAgent()
	n.WriteManifest("p.yaml", podOf("p", image, "IfNotPresent"))
	n.WaitPods(long, waiting("p", "ImagePullBackOff"))
	credentials("s3cret") // noticed at the next try
	n.WaitPods(long, testbed.Running("p"))
	for _, secret := range []string{"s3cret", "wrong", base64.StdEncoding.EncodeToString([]byte("robot:s3cret"))} {
		if strings.Contains(n.AgentLog(), secret) {
			t.Errorf("the log holds the password %q", secret)
		}
	}
}

// TestPullSecrets: a pod's own secret, and its account's, open the registry; a
// missing one shows, and the pod starts as soon as it comes.
func TestPullSecrets(t *testing.T) {
	n := newNode(t)
	reg, image := served(t, n, registry.Opts{User: "robot", Pass: "s3cret"})
	n.StartAgent() // with pulls that are tried again after a while only
	withSpec := func(name, line string) string {
		return strings.Replace(podOf(name, image, "Always"), "spec:\n", "spec:\n  "+line+"\n", 1)
	}
	n.WriteManifest("own.yaml", withSpec("own", "imagePullSecrets: [{name: login}]"))
	n.WriteManifest("accounts.yaml", withSpec("accounts", "serviceAccountName: puller")+
		"---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: puller}\nimagePullSecrets: [{name: login}]\n")
	n.WriteManifest("none.yaml", podOf("none", image, "Always"))
	refused := func(name string) func(testbed.Pods) error {
		return func(pods testbed.Pods) error {
			if waiting(name, "ErrImagePull")(pods) == nil {
				return nil
			}
			return waiting(name, "ImagePullBackOff")(pods)
		}
	}
	n.WaitPods(long, all(refused("own"), refused("accounts"), refused("none")))
	if out := cli(t, n, "describe", "pod", "own"); !strings.Contains(out, "FailedToRetrieveImagePullSecret") || !strings.Contains(out, "(login)") {
		t.Errorf("no word of the missing secret:\n%s", out)
	}
	auth := base64.StdEncoding.EncodeToString([]byte("robot:s3cret"))
	n.WriteManifest("login.yaml", fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: login}\ntype: kubernetes.io/dockerconfigjson\n"+
		"stringData:\n  .dockerconfigjson: '{\"auths\":{%q:{\"auth\":%q}}}'\n", reg.Addr, auth))
	n.WaitPods(long, all(testbed.Running("own", "accounts"), refused("none")))
	if strings.Contains(n.AgentLog(), "s3cret") || strings.Contains(n.AgentLog(), auth) {
		t.Error("the log holds the password")
	}
}

// TestPullStalls: a registry that stands still delays its own pod only, the pull is
// given up after the deadline and works once the registry does.
func TestPullStalls(t *testing.T) {
	n := newNode(t)
	quickPulls(n)
	reg, image := served(t, n, registry.Opts{StallAfter: 1000})
	n.EditConfig(func(c *config.NodeAgentConfiguration) {
		c.Images.PullProgressDeadline = metav1.Duration{Duration: 2e9}
	})
	n.StartAgent()
	n.WriteManifest("slow.yaml", podOf("slow", image, "IfNotPresent"))
	n.Eventually(long, "the pull stands still", func() error {
		if reg.Stalled() == 0 {
			return fmt.Errorf("no layer is stalled")
		}
		return nil
	})
	n.WriteManifest("quick.yaml", manifest{name: "quick"}.String())
	pods := n.WaitPods(long, testbed.Running("quick"))
	if p, err := pods.Get("slow"); err != nil || p.Status.Phase != v1.PodPending {
		t.Errorf("slow: %v, phase %s", err, p.Status.Phase)
	}
	n.WaitPods(long, waiting("slow", "ImagePullBackOff")) // given up once
	reg.Release()
	n.WaitPods(long, testbed.Running("slow"))
}

// TestPauseImageComesBack: pods start without a registry also after somebody
// has removed the image that sandboxes are made of.
func TestPauseImageComesBack(t *testing.T) {
	n := newNode(t, testbed.WithoutRegistry())
	n.StartAgent()
	n.WriteManifest("p.yaml", manifest{name: "p"}.String())
	n.WaitPods(long, testbed.Running("p"))
	ctx, cancel := context.WithTimeout(context.Background(), long)
	defer cancel()
	gone := &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: testbed.PauseImage}}
	if _, err := n.CRIImages().RemoveImage(ctx, gone); err != nil {
		t.Fatal(err)
	}
	n.WriteManifest("q.yaml", manifest{name: "q"}.String())
	n.WaitPods(long, testbed.Running("q"))
}
