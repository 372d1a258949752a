package server

import (
	"errors"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/server/api"
)

func TestHealth(t *testing.T) {
	var broken error
	f := newFixture(t, func(o *Options) {
		o.Checks = []Check{{Name: "loops", Live: true, Check: func() error { return broken }}}
	})
	ready := func(edit func(*node)) {
		f.node.set(func(n *node) {
			n.info.Runtime, n.info.Network = api.Runtime{Ready: true}, api.Network{Ready: true}
			n.sources = []api.Source{{Name: "file", Target: "/m", Tried: true, Synced: true}}
			if edit != nil {
				edit(n)
			}
		})
	}
	for _, tt := range []struct {
		name, path string
		edit       func(*node)
		broken     error
		code       int
		want       string
	}{
		{"well", "/healthz", nil, nil, 200, "ok"},
		{"well", "/livez", nil, nil, 200, "ok"},
		{"well", "/readyz", nil, nil, 200, "ok"},
		{"verbose", "/livez?verbose", nil, nil, 200, "[+]ping ok\n[+]loops ok\nlivez check passed\n"},
		{"verbose", "/readyz?verbose", nil, nil, 200, "[+]ping ok\n[+]loops ok\n[+]runtime ok\n[+]network ok\n[+]source-file ok\nreadyz check passed\n"},
		{"a loop hangs", "/healthz", nil, errors.New("hangs\nsince noon"), 500, "[+]ping ok\n[-]loops failed: hangs; since noon\nhealthz check failed\n"},
		{"one check alone", "/livez/loops", nil, errors.New("hangs"), 500, "[-]loops failed: hangs\nlivez check failed\n"},
		{"one check alone", "/livez/ping", nil, errors.New("hangs"), 200, "ok"},
		{"left out", "/livez?exclude=loops", nil, errors.New("hangs"), 200, "ok"},
		{"left out", "/livez?exclude=loops&verbose", nil, errors.New("hangs"), 200, "[+]ping ok\n[+]loops excluded: ok\nlivez check passed\n"},
		{"no such check", "/livez/runtime", nil, nil, 404, "livez has no check \"runtime\"\n"},
		{"no runtime", "/livez", func(n *node) { n.info.Runtime = api.Runtime{Reason: "no answer"} }, nil, 200, "ok"},
		{"no runtime", "/readyz", func(n *node) { n.info.Runtime = api.Runtime{Reason: "no answer"} }, nil, 500, "[-]runtime failed: not ready: no answer\n"},
		{"no network", "/readyz", func(n *node) { n.info.Network.Ready = false }, nil, 500, "[-]network failed: not ready\n"},
		{"not tried", "/readyz", func(n *node) { n.sources[0] = api.Source{Name: "file", Target: "/m"} }, nil, 500, "[-]source-file failed: /m: not tried yet\n"},
		{"not synced", "/readyz", func(n *node) { n.sources[0].Synced = false }, nil, 500, "[-]source-file failed: /m: not synced yet\n"},
		{"unreadable", "/readyz/source-file", func(n *node) { n.sources[0].Synced, n.sources[0].Error = false, "gone" }, nil, 500, "[-]source-file failed: not synced yet: gone\n"},
	} {
		ready(tt.edit)
		broken = tt.broken
		if a := f.call(t, "GET", tt.path, "").code(tt.code); !strings.Contains(a.Body.String(), tt.want) || tt.code == 200 && a.Body.String() != tt.want {
			t.Errorf("%s, %s: %s\nwant %s", tt.name, tt.path, a.Body, tt.want)
		}
	}
	f.call(t, "POST", "/healthz", "").status(405, metav1.StatusReasonMethodNotAllowed)
	f.call(t, "POST", "/metrics", "").status(405, metav1.StatusReasonMethodNotAllowed)
}

func TestMetrics(t *testing.T) {
	f := newFixture(t, nil)
	f.create(t, "web", "")
	f.call(t, "GET", podsPath, "").code(200)
	f.call(t, "BREW", podsPath, "").code(405)
	f.call(t, "GET", "/anything/at/all", "").code(404)
	text := f.call(t, "GET", "/metrics", "").code(200).Body.String()
	for _, want := range []string{
		`kubelet_http_requests_total{long_running="false",method="POST",path="pods",server_type="local"} 1`,
		`kubelet_http_requests_total{long_running="false",method="GET",path="pods",server_type="local"} 1`,
		// What clients make up makes no series of its own.
		`kubelet_http_requests_total{long_running="false",method="other",path="pods",server_type="local"} 1`,
		`kubelet_http_requests_total{long_running="false",method="GET",path="discovery",server_type="local"} 1`,
		`kubelet_http_inflight_requests{long_running="false",method="GET",path="pods",server_type="local"} 0`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("%s is missing in\n%s", want, text)
		}
	}
	none := newFixture(t, func(o *Options) { o.Metrics = nil })
	none.create(t, "web", "")
	none.call(t, "GET", "/metrics", "").code(404)
}
