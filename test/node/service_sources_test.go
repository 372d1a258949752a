package node

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/pkg/config"
)

// TestServicesFromEverywhere: a Service of the folder, one of a URL and one that
// was pushed are shown alike, are there again after a kill, and go with where
// they came from.
func TestServicesFromEverywhere(t *testing.T) {
	n := newNode(t)
	service := func(name string) string {
		return "apiVersion: v1\nkind: Service\nmetadata: {name: " + name + "}\nspec: {selector: {app: none}, ports: [{port: 80}]}\n"
	}
	web := &page{status: http.StatusOK, body: service("from-url")}
	l, err := n.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: web}
	done := make(chan struct{})
	go func() { _ = srv.Serve(l); close(done) }()
	t.Cleanup(func() { srv.Close(); <-done })
	n.EditConfig(func(c *config.NodeAgentConfiguration) {
		c.ManifestURL = "http://" + l.Addr().String() + "/services.yaml"
		c.ManifestURLInterval.Duration = 200 * time.Millisecond
	})
	n.WriteManifest("a.yaml", service("from-folder"))
	n.StartAgent()
	apply := n.CLICommand("apply", "-f", "-")
	apply.Stdin = strings.NewReader(service("pushed"))
	if out, err := apply.CombinedOutput(); err != nil || string(out) != "service/pushed created\n" {
		t.Fatalf("%v: %s", err, out)
	}
	known := func(names ...string) {
		t.Helper()
		n.Eventually(long, "services "+strings.Join(names, ", "), func() error {
			out, err := n.CLI("get", "services", "-o", "name")
			if got := strings.Fields(strings.ReplaceAll(out, "service/", "")); err == nil && strings.Join(got, " ") != strings.Join(names, " ") {
				err = fmt.Errorf("there are %q", got)
			}
			return err
		})
	}
	known("from-folder", "from-url", "pushed")

	n.KillAgent()
	web.set("", http.StatusServiceUnavailable) // it is not to be forgotten for that
	n.StartAgent()
	known("from-folder", "from-url", "pushed")

	if out, err := n.CLI("delete", "service", "from-folder"); err == nil {
		t.Errorf("a Service of the folder was deleted: %s", out)
	}
	cli(t, n, "delete", "service", "pushed")
	known("from-folder", "from-url")
	n.RemoveManifest("a.yaml")
	known("from-url")
	web.set("apiVersion: v1\nkind: ServiceList\nitems: []\n", http.StatusOK)
	known()
	n.KillAgent()
	n.StartAgent()
	known()
}
