package usage_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	testbed "github.com/nodeagent/nodeagent/internal/testbed/usage"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/server/usage"
	"github.com/nodeagent/nodeagent/pkg/stats"
	"github.com/nodeagent/nodeagent/pkg/volumes"
)

// world has something of everything.
func world(t *testing.T, version string) (*testbed.World, *stats.Reader) {
	t.Helper()
	w := testbed.New(t, version)
	w.Layers = map[string]runtime.Layer{testbed.WebID: {Bytes: 300, Inodes: 3}}
	w.Volumes = map[string]volumes.Volume{"cache": {Used: 5000, Files: 5}, "shm": {Used: 10, Files: 1, Limit: 100, Medium: "Memory"}}
	r := w.Reader()
	if _, err := r.SomeDisks(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w, r
}

// parse reads text as Prometheus does.
func parse(t *testing.T, text []byte) map[string]*dto.MetricFamily {
	t.Helper()
	p := expfmt.NewTextParser(model.LegacyValidation)
	families, err := p.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	return families
}

// value finds the one sample of a family with these labels; each is "name=value".
func value(t *testing.T, families map[string]*dto.MetricFamily, name string, with ...string) float64 {
	t.Helper()
	f := families[name]
	if f == nil {
		t.Errorf("there is no %s", name)
		return -1
	}
	var found []float64
	for _, m := range f.Metric {
		have := map[string]bool{}
		for _, l := range m.Label {
			have[l.GetName()+"="+l.GetValue()] = true
		}
		if !slices.ContainsFunc(with, func(l string) bool { return !have[l] }) {
			found = append(found, m.GetGauge().GetValue()+m.GetCounter().GetValue()+m.GetUntyped().GetValue())
		}
	}
	if len(found) != 1 {
		t.Errorf("%s has %d samples with %v", name, len(found), with)
		return -1
	}
	return found[0]
}

func TestCAdvisor(t *testing.T) {
	for _, version := range []string{"v1", "v2"} {
		t.Run(version, func(t *testing.T) {
			w, r := world(t, version)
			var out bytes.Buffer
			if err := usage.CAdvisor(&out, r, usage.Machine{Version: "v1", Cores: 2}); err != nil {
				t.Fatal(err)
			}
			families := parse(t, out.Bytes())
			for name, f := range families {
				if !strings.HasPrefix(name, "container_") || name == "container_scrape_error" {
					continue
				}
				for _, m := range f.Metric {
					var names []string
					for _, l := range m.Label {
						names = append(names, l.GetName())
					}
					for _, want := range []string{"container", "id", "image", "name", "namespace", "pod"} {
						if !slices.Contains(names, want) {
							t.Errorf("%s has no label %s", name, want)
						}
					}
				}
			}
			web := []string{"container=web", "pod=web", "namespace=shop", "image=nginx:1", "name=" + testbed.WebID, "id=/kubepods/burstable/podu1/" + testbed.WebID}
			pod, sandbox, root := []string{"container=", "pod=web", "namespace=shop", "id=/kubepods/burstable/podu1"}, []string{"container=POD", "pod=web", "image=pause:1"}, []string{"id=/"}
			for _, tc := range []struct {
				name string
				with []string
				more string
				want float64
			}{
				{"container_cpu_usage_seconds_total", web, "cpu=total", 2},
				{"container_cpu_usage_seconds_total", pod, "cpu=total", 3},
				{"container_cpu_usage_seconds_total", root, "cpu=total", 9},
				{"container_cpu_usage_seconds_total", []string{"id=/kubepods"}, "cpu=total", 5},
				{"container_cpu_user_seconds_total", web, "", 1.5},
				{"container_cpu_cfs_throttled_periods_total", web, "", 4},
				{"container_cpu_cfs_throttled_seconds_total", web, "", .25},
				{"container_memory_working_set_bytes", web, "", 150000},
				{"container_memory_rss", web, "", 40960},
				{"container_memory_failures_total", web, "failure_type=pgmajfault,scope=container", 9},
				{"container_oom_events_total", web, "", 2},
				{"container_fs_usage_bytes", web, "", 300},
				{"container_fs_writes_bytes_total", web, "device=8:0", 8192},
				{"container_network_transmit_bytes_total", sandbox, "interface=eth0", 800},
				{"container_network_receive_bytes_total", root, "interface=eth0", 5000},
				{"container_spec_memory_limit_bytes", web, "", 1048576},
				{"container_spec_cpu_quota", web, "", 50000},
				{"container_spec_cpu_period", web, "", 100000},
				{"container_start_time_seconds", web, "", float64(testbed.Began.Unix())},
				{"container_last_seen", web, "", float64(w.Now.Unix())},
				{"container_scrape_error", nil, "", 0},
				{"machine_memory_bytes", nil, "", 4096000 << 10},
				{"machine_cpu_cores", nil, "", 2},
			} {
				with := tc.with
				if tc.more != "" {
					with = append(slices.Clone(with), strings.Split(tc.more, ",")...)
				}
				if got := value(t, families, tc.name, with...); got != tc.want {
					t.Errorf("%s of %v is %v, want %v", tc.name, with, got, tc.want)
				}
			}
			// No limit, no throttling: dashboards divide by it.
			for _, m := range families["container_cpu_cfs_periods_total"].Metric {
				for _, l := range m.Label {
					if l.GetName() == "container" && l.GetValue() != "web" {
						t.Errorf("periods of a limit that is none: %v", m)
					}
				}
			}
		})
	}
}

func TestResource(t *testing.T) {
	for _, version := range []string{"v1", "v2"} {
		w, r := world(t, version)
		var out bytes.Buffer
		if err := usage.Resource(&out, r); err != nil {
			t.Fatal(err)
		}
		families := parse(t, out.Bytes())
		web, pod := []string{"container=web", "pod=web", "namespace=shop"}, []string{"pod=web", "namespace=shop"}
		for name, want := range map[string]float64{
			"container_cpu_usage_seconds_total": 2, "container_memory_working_set_bytes": 150000, "container_swap_usage_bytes": 12288,
			"container_swap_limit_bytes": 0, "container_start_time_seconds": float64(testbed.Began.Unix()),
		} {
			if got := value(t, families, name, web...); got != want {
				t.Errorf("cgroup %s: %s is %v, want %v", version, name, got, want)
			}
		}
		for name, want := range map[string]float64{"pod_cpu_usage_seconds_total": 3, "pod_memory_working_set_bytes": 200000, "pod_swap_usage_bytes": 12288} {
			if got := value(t, families, name, pod...); got != want {
				t.Errorf("cgroup %s: %s is %v, want %v", version, name, got, want)
			}
		}
		if got := value(t, families, "node_cpu_usage_seconds_total"); got != 9 {
			t.Errorf("the node used %v s", got)
		}
		if at := families["pod_cpu_usage_seconds_total"].Metric[0].GetTimestampMs(); at != w.Now.UnixMilli() {
			t.Errorf("timestamp %d, want %d", at, w.Now.UnixMilli())
		}
		for _, name := range []string{"scrape_error", "resource_scrape_error"} {
			if got := value(t, families, name); got != 0 {
				t.Errorf("%s is %v", name, got)
			}
		}
		// What cannot be read is an error that shows, not one that hides the rest.
		if err := os.Remove(filepath.Join(w.Dir, "proc/meminfo")); err != nil {
			t.Fatal(err)
		}
		out.Reset()
		if err := usage.Resource(&out, r); err != nil {
			t.Fatal(err)
		}
		broken := parse(t, out.Bytes())
		if value(t, broken, "resource_scrape_error") != 1 || value(t, broken, "pod_cpu_usage_seconds_total", pod...) != 3 {
			t.Errorf("without meminfo:\n%s", out.String())
		}
	}
}

func TestSummary(t *testing.T) {
	for _, version := range []string{"v1", "v2"} {
		_, r := world(t, version)
		sum, err := usage.Summary(t.Context(), r, "node-1", false)
		if err != nil {
			t.Fatal(err)
		}
		if sum.Node.NodeName != "node-1" || len(sum.Pods) != 1 || len(sum.Pods[0].Containers) != 1 {
			text, _ := json.Marshal(sum)
			t.Fatalf("summary %s", text)
		}
		p, c := sum.Pods[0], sum.Pods[0].Containers[0]
		for what, pair := range map[string][2]uint64{
			"cpu":         {*c.CPU.UsageCoreNanoSeconds, 2e9},
			"cpu now":     {*c.CPU.UsageNanoCores, 2e8},
			"memory":      {*c.Memory.WorkingSetBytes, 150000},
			"memory left": {*c.Memory.AvailableBytes, 1048576 - 150000},
			"rootfs":      {*c.Rootfs.UsedBytes, 300},
			"pod cpu":     {*p.CPU.UsageCoreNanoSeconds, 3e9},
			"sent":        {*p.Network.TxBytes, 800},
			"ephemeral":   {*p.EphemeralStorage.UsedBytes, 300 + 5000 + 4096},
			"cache":       {*p.VolumeStats[0].UsedBytes, 5000},
			"tmpfs":       {*p.VolumeStats[1].AvailableBytes, 90},
			"max pids":    {uint64(*sum.Node.Rlimit.MaxPID), 95000},
			"images":      {*sum.Node.Runtime.ImageFs.UsedBytes, 1000},
		} {
			if pair[0] != pair[1] {
				t.Errorf("cgroup %s: %s is %d, want %d", version, what, pair[0], pair[1])
			}
		}
		if p.Memory.AvailableBytes != nil {
			t.Error("a pod without a limit has memory left of it")
		}
		if (c.CPU.PSI != nil) != (version == "v2") {
			t.Errorf("cgroup %s: pressure %+v", version, c.CPU.PSI)
		}
		little, err := usage.Summary(t.Context(), r, "node-1", true)
		if err != nil || little.Node.Fs != nil || little.Pods[0].VolumeStats != nil || little.Pods[0].CPU == nil {
			t.Errorf("only CPU and memory: %+v, %v", little, err)
		}
	}
}
