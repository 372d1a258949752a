package metrics

import (
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

// TestNames pins the names, labels and values that dashboards made for kubelet
// ask for.
func TestNames(t *testing.T) {
	m := New(Build{Version: "v1", Revision: "abc", NodeName: "node-1"})
	m.RuntimeOperation("run_podsandbox", time.Second, nil)
	m.RuntimeOperation("run_podsandbox", time.Second, errors.New("no"))
	m.Relisted(time.Millisecond)
	m.ExitHandled(time.Millisecond)
	m.Running(2, map[string]int{"running": 3})
	m.Running(1, map[string]int{"exited": 4})
	m.PodStarted(time.Second)
	m.PodWorker("sync", time.Millisecond)
	m.SandboxStarted(nil)
	m.SandboxStarted(errors.New("no"))
	m.ContainerStarted(true, "")
	m.ContainerStarted(false, "CreateContainerError")
	m.Source("file", true, 2)
	m.Source("http", false, 0)
	m.Request("GET", "pods", "local", true)
	m.Request("GET", "pods", "local", true)()
	web, gone := &v1.Pod{}, &v1.Pod{}
	web.Namespace, web.Name, web.UID = "shop", "web", "u1"
	gone.Namespace, gone.Name, gone.UID = "shop", "gone", "u2"
	for _, p := range []*v1.Pod{web, gone} {
		m.Probed(p, "main", "Readiness", true, time.Millisecond)
		m.Probed(p, "main", "Readiness", false, time.Millisecond)
	}
	m.ProbesEnded(gone, "main")

	m.Relisted(time.Millisecond)
	w := httptest.NewRecorder()
	m.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if strings.Contains(w.Body.String(), "prober_") {
		t.Error("kubelet shows probes elsewhere")
	}
	m.Probes(w, httptest.NewRequest("GET", "/metrics/probes", nil))
	got := "\n" + w.Body.String()
	if ct := w.Header().Get("Content-Type"); !strings.HasPrefix(ct, "text/plain") {
		t.Errorf("content type %q, want text/plain", ct)
	}
	for _, want := range []string{
		`kubelet_runtime_operations_total{operation_type="run_podsandbox"} 2`,
		`kubelet_runtime_operations_errors_total{operation_type="run_podsandbox"} 1`,
		`kubelet_runtime_operations_duration_seconds_count{operation_type="run_podsandbox"} 2`,
		`kubelet_pleg_relist_duration_seconds_count 2`,
		`kubelet_pleg_relist_interval_seconds_count 1`,
		`kubelet_pleg_last_seen_seconds `,
		`kubelet_http_requests_duration_seconds_count{long_running="true",method="GET",path="pods",server_type="local"} 1`,
		`nodeagent_exit_handled_seconds_bucket{le="0.001"} 1`,
		`kubelet_running_pods 1`,
		`kubelet_running_containers{container_state="running"} 0`,
		`kubelet_running_containers{container_state="exited"} 4`,
		`kubelet_pod_start_duration_seconds_count 1`,
		`kubelet_pod_worker_duration_seconds_count{operation_type="sync"} 1`,
		`kubelet_started_pods_total 1`,
		`kubelet_started_pods_errors_total 1`,
		`kubelet_started_containers_total{container_type="init_container"} 1`,
		`kubelet_started_containers_errors_total{code="CreateContainerError",container_type="container"} 1`,
		`nodeagent_source_synced{source="file"} 1`,
		`nodeagent_source_synced{source="http"} 0`,
		`nodeagent_source_problems{source="file"} 2`,
		`kubelet_http_requests_total{long_running="true",method="GET",path="pods",server_type="local"} 2`,
		`kubelet_http_inflight_requests{long_running="true",method="GET",path="pods",server_type="local"} 1`,
		`prober_probe_total{container="main",namespace="shop",pod="web",pod_uid="u1",probe_type="Readiness",result="successful"} 1`,
		`prober_probe_total{container="main",namespace="shop",pod="web",pod_uid="u1",probe_type="Readiness",result="failed"} 1`,
		`prober_probe_duration_seconds_count{container="main",namespace="shop",pod="web",probe_type="Readiness"} 1`,
		`kubelet_node_name{node="node-1"} 1`,
		`nodeagent_build_info{go_version="`,
		`go_goroutines `,
		`process_resident_memory_bytes `,
	} {
		if !strings.Contains(got, "\n"+want) {
			t.Errorf("missing line %s", want)
		}
	}
	if strings.Contains(got, `pod="gone"`) {
		t.Error("the probes of a pod that is gone are still counted")
	}
}

// TestNode pins what is known of the node and its volumes.
func TestNode(t *testing.T) {
	m := New(Build{})
	m.CgroupVersion(2)
	m.Claims(func() []Claim {
		return []Claim{{Namespace: "shop", Name: "data", Capacity: 100, Available: 40, Used: 60, Inodes: 10, InodesFree: 7, InodesUsed: 3}}
	})
	w := httptest.NewRecorder()
	m.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{
		`kubelet_cgroup_version 2`,
		`kubelet_volume_stats_available_bytes{namespace="shop",persistentvolumeclaim="data"} 40`,
		`kubelet_volume_stats_capacity_bytes{namespace="shop",persistentvolumeclaim="data"} 100`,
		`kubelet_volume_stats_inodes_used{namespace="shop",persistentvolumeclaim="data"} 3`,
	} {
		if !strings.Contains(w.Body.String(), "\n"+want) {
			t.Errorf("missing line %s", want)
		}
	}
}

func TestOpenMetrics(t *testing.T) {
	m := New(Build{})
	r := httptest.NewRequest("GET", "/metrics", nil)
	r.Header.Set("Accept", "application/openmetrics-text;version=1.0.0")
	w := httptest.NewRecorder()
	m.ServeHTTP(w, r)
	if !strings.HasSuffix(w.Body.String(), "# EOF\n") {
		t.Error("an OpenMetrics answer ends with # EOF")
	}
}

// TestNil: a component without metrics needs no switch.
func TestNil(t *testing.T) {
	var m *Metrics
	m.RuntimeOperation("x", 0, nil)
	m.Relisted(0)
	m.ExitHandled(0)
	m.Running(1, nil)
	m.PodStarted(0)
	m.PodWorker("x", 0)
	m.SandboxStarted(nil)
	m.ContainerStarted(true, "")
	m.Source("x", true, 0)
	m.Request("GET", "", "", false)()
	m.Probed(nil, "", "", true, 0)
	m.ProbesEnded(nil, "")
	w := httptest.NewRecorder()
	m.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	m.Probes(w, httptest.NewRequest("GET", "/metrics/probes", nil))
	if w.Code != 404 {
		t.Errorf("code %d, want 404", w.Code)
	}
}

// TestProxyNames pins what dashboards made for kube-proxy ask for.
func TestProxyNames(t *testing.T) {
	m := New(Build{})
	m.ProxyChange(true, true) // without a proxy nothing is measured
	m.WithProxy([]v1.IPFamily{v1.IPv4Protocol})
	m.ProxyChange(true, true)
	m.ProxyChange(false, false)
	m.ProxyQueued(time.Unix(100, 0))
	m.ProxySynced("nftables", true, time.Millisecond, time.Unix(101, 0), nil)
	m.ProxyChange(false, true)
	m.ProxySynced("nftables", false, time.Second, time.Unix(102, 0), errors.New("no"))
	m.ProxySynced("iptables", false, time.Second, time.Unix(103, 0), errors.New("no"))
	m.ProxySynced("iptables", true, time.Second, time.Unix(103, 0), errors.New("no"))
	m.ProxyProgrammed(v1.IPv4Protocol, 400*time.Millisecond)
	m.ProxyNoLocal("external", v1.IPv4Protocol, 3)
	m.ProxyAnswered("/healthz", 200)
	m.ProxyAnswered("/livez", 503)
	m.FlowsCleaned(v1.IPv4Protocol, time.Millisecond, 7)
	w := httptest.NewRecorder()
	m.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{
		`kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"} 4`,
		`kubeproxy_sync_full_proxy_rules_duration_seconds_bucket{ip_family="IPv4",le="0.001"} 1`,
		`kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family="IPv4"} 2`,
		`kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"} 101`,
		`kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv4"} 100`,
		`kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="0.5"} 1`,
		`kubeproxy_sync_proxy_rules_service_changes_total 1`,
		`kubeproxy_sync_proxy_rules_service_changes_pending 0`,
		`kubeproxy_sync_proxy_rules_endpoint_changes_total 2`,
		`kubeproxy_sync_proxy_rules_endpoint_changes_pending 1`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 3`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"} 0`,
		`kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family="IPv4"} 1`,
		`kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family="IPv4"} 2`,
		`kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total{ip_family="IPv4"} 1`,
		`kubeproxy_proxy_healthz_total{code="200"} 1`,
		`kubeproxy_proxy_livez_total{code="503"} 1`,
		`kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family="IPv4"} 1`,
		`kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv4"} 7`,
	} {
		if !strings.Contains(w.Body.String(), "\n"+want) {
			t.Errorf("missing line %s", want)
		}
	}
}
