package server

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metrics "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"github.com/nodeagent/nodeagent/internal/testbed/usage"
	"github.com/nodeagent/nodeagent/pkg/stats"
)

// TestMetricsAPI: what kubectl top reads is selected as pods are, cannot be
// watched, and does not hide the pods themselves.
func TestMetricsAPI(t *testing.T) {
	w := usage.New(t, "v2")
	var f *fixture
	w.Options.Pods = func() []*v1.Pod {
		list, _ := f.store.List()
		var out []*v1.Pod
		for _, r := range list {
			p := r.Pod.DeepCopy()
			p.UID, p.Spec = "u1", usage.Pod().Spec // the files are of this one
			out = append(out, p)
		}
		return out
	}
	reader := w.Reader()
	f = newFixture(t, func(o *Options) { o.Stats = func() (*stats.Reader, error) { return reader, nil } })
	f.create(t, "web", "  labels: {app: web}\n")
	get := func(path string, into any) int {
		t.Helper()
		r := f.call(t, http.MethodGet, path, "")
		if into != nil {
			if err := json.Unmarshal(r.Body.Bytes(), into); err != nil {
				t.Fatalf("%s: %v: %s", path, err, r.Body)
			}
		}
		return r.Code
	}
	const root = "/apis/metrics.k8s.io/v1beta1"
	var pods metrics.PodMetricsList
	get(root+"/namespaces/default/pods?labelSelector=app%3Dweb&fieldSelector=spec.nodeName%3D"+nodeName, &pods)
	if len(pods.Items) != 1 || len(pods.Items[0].Containers) != 1 || pods.Kind != "PodMetricsList" {
		t.Fatalf("pods: %+v", pods)
	}
	p := pods.Items[0]
	if used := p.Containers[0].Usage; p.Name != "web" || used.Cpu().MilliValue() != 200 || used.Memory().Value() != 150000 || p.Window.Duration != 10*time.Second {
		t.Errorf("pod: %+v", p)
	}
	for _, none := range []string{"?labelSelector=app%3Dother", "?fieldSelector=metadata.name%3Dother"} {
		if get(root+"/pods"+none, &pods); len(pods.Items) != 0 {
			t.Errorf("%s: %+v", none, pods.Items)
		}
	}
	var nodes metrics.NodeMetricsList
	get(root+"/nodes", &nodes)
	if len(nodes.Items) != 1 || nodes.Items[0].Name != nodeName || nodes.Items[0].Usage.Memory().Value() != 50960 {
		t.Errorf("nodes: %+v", nodes)
	}
	for path, want := range map[string]int{
		root + "/nodes/" + nodeName: 200, root + "/nodes/other": 404, root + "/namespaces/default/pods/none": 404,
		root + "/pods?watch=1": http.StatusMethodNotAllowed, root + "/nodes/" + nodeName + "/status": 404,
	} {
		if code := get(path, nil); code != want {
			t.Errorf("%s: %d, want %d", path, code, want)
		}
	}
	discovery := f.call(t, http.MethodGet, root, "").Body.String()
	if !strings.Contains(discovery, `"verbs":["get","list"]`) || strings.Contains(discovery, `"po"`) || strings.Contains(discovery, "all") {
		t.Errorf("discovery: %s", discovery)
	}
	if docs := f.call(t, http.MethodGet, "/openapi/v3", "").Body.String(); strings.Contains(docs, "metrics.k8s.io") {
		t.Errorf("a document that is none: %s", docs)
	}
	var own v1.PodList
	if get("/api/v1/pods", &own); len(own.Items) != 1 || own.Items[0].Kind == "PodMetrics" {
		t.Errorf("pods: %+v", own)
	}
}

// TestScrapes: each path answers on the listener of health and metrics, too.
func TestScrapes(t *testing.T) {
	reader := usage.New(t, "v1").Reader()
	f := newFixture(t, func(o *Options) { o.Stats = func() (*stats.Reader, error) { return reader, nil } })
	for path, want := range map[string]string{
		"/metrics": "kubelet_running_pods", "/metrics/cadvisor": "container_cpu_usage_seconds_total", "/metrics/resource": "node_cpu_usage_seconds_total",
		"/metrics/probes": "", "/stats/summary": `"nodeName"`, "/stats/summary?only_cpu_and_memory=true": `"nodeName"`,
	} {
		for _, kind := range []string{kindLocal, kindHealth} {
			if r := f.serve(t, kind, asRoot(httptest.NewRequest(http.MethodGet, path, nil))); r.Code != 200 || !strings.Contains(r.Body.String(), want) {
				t.Errorf("%s on the %s listener: %d %s", path, kind, r.Code, r.Body)
			}
		}
		if r := f.serve(t, kindHealth, httptest.NewRequest(http.MethodPost, path, nil)); r.Code != http.StatusMethodNotAllowed {
			t.Errorf("POST %s: %d", path, r.Code)
		}
	}
	without := newFixture(t, nil)
	if r := without.serve(t, kindHealth, httptest.NewRequest(http.MethodGet, "/metrics/cadvisor", nil)); r.Code != http.StatusServiceUnavailable {
		t.Errorf("without a runtime: %d %s", r.Code, r.Body)
	}
}
