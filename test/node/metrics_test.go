package node

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	summary "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/nodeagent/nodeagent/internal/testbed"
)

const (
	burned    = 2.0      // seconds of CPU time, at least
	allocated = 24 << 20 // bytes of memory
	written   = 3 << 20  // bytes in the container's own file system
	cached    = 5 << 20  // bytes in an emptyDir
)

// busy burns CPU time, fills memory and disks, and then rests.
const busy = `dd if=/dev/zero of=/layer bs=1M count=3 2>/dev/null
dd if=/dev/zero of=/cache/file bs=1M count=5 2>/dev/null
dd if=/dev/zero of=/shm/file bs=1M count=24 2>/dev/null
sync
until [ $(awk '{print $14+$15}' /proc/$$/stat) -ge 210 ]; do i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; done
echo done
` + forever

// scrape reads what the agent answers at a path of its socket.
func scrape(n *testbed.Node, path string) ([]byte, error) {
	resp, err := n.API().Get("http://agent" + path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, resp.Status, b)
	}
	return b, err
}

// samples are the families of a path, as Prometheus reads them.
func samples(n *testbed.Node, path string) (map[string]*dto.MetricFamily, error) {
	b, err := scrape(n, path)
	if err != nil {
		return nil, err
	}
	p := expfmt.NewTextParser(model.LegacyValidation)
	return p.TextToMetricFamilies(strings.NewReader(string(b)))
}

// sample is the one sample with these labels; each is "name=value".
func sample(families map[string]*dto.MetricFamily, name string, with ...string) (float64, error) {
	var found []float64
	for _, m := range families[name].GetMetric() {
		have := map[string]bool{}
		for _, l := range m.Label {
			have[l.GetName()+"="+l.GetValue()] = true
		}
		if !slices.ContainsFunc(with, func(l string) bool { return !have[l] }) {
			found = append(found, m.GetGauge().GetValue()+m.GetCounter().GetValue()+m.GetUntyped().GetValue())
		}
	}
	if len(found) != 1 {
		return 0, fmt.Errorf("%s has %d samples with %v", name, len(found), with)
	}
	return found[0], nil
}

// between is a bound of a value; high 0 is none.
type between struct {
	name      string
	with      []string
	low, high float64
}

func check(families map[string]*dto.MetricFamily, list []between) error {
	for _, b := range list {
		v, err := sample(families, b.name, b.with...)
		if err != nil {
			return err
		}
		if v < b.low || b.high > 0 && v > b.high {
			return fmt.Errorf("%s of %v is %v, want %v to %v", b.name, b.with, v, b.low, b.high)
		}
	}
	return nil
}

// TestUsage: a pod that uses known amounts of everything is measured right on
// every path that tells.
func TestUsage(t *testing.T) {
	n := started(t)
	n.WriteManifest("busy.yaml", manifest{
		name: "busy", script: busy, labels: "app: busy",
		spec: "volumes: [{name: cache, emptyDir: {}}, {name: shm, emptyDir: {medium: Memory}}]\n",
		container: "volumeMounts: [{name: cache, mountPath: /cache}, {name: shm, mountPath: /shm}]\n" +
			"resources: {requests: {cpu: 10m}, limits: {cpu: '1', memory: 128Mi}}\n" +
			"readinessProbe: {exec: {command: ['true']}, periodSeconds: 1}\n",
	}.String())
	n.WriteManifest("idle.yaml", manifest{name: "idle"}.String())
	n.WaitPods(long, testbed.Running("busy", "idle"))
	n.Eventually(long, "the pod has done its work", func() error {
		out, err := n.CLI("logs", "busy")
		if err == nil && !strings.Contains(out, "done") {
			err = fmt.Errorf("it says %q", out)
		}
		return err
	})
	id := runningID(t, n, "busy", "main")
	t.Run("cadvisor", func(t *testing.T) { usageOfCAdvisor(t, n, id) })
	t.Run("resource", func(t *testing.T) { usageOfResource(t, n) })
	t.Run("summary", func(t *testing.T) { usageOfSummary(t, n) })
	t.Run("kubelet", func(t *testing.T) {
		n.Eventually(long, "the agent counts", func() error {
			families, err := samples(n, "/metrics")
			if err != nil {
				return err
			}
			if families["prober_probe_total"] != nil {
				return fmt.Errorf("kubelet has probes elsewhere")
			}
			return check(families, []between{
				{"kubelet_running_pods", nil, 2, 2}, {"kubelet_running_containers", []string{"container_state=running"}, 2, 2},
				{"kubelet_started_pods_total", nil, 2, 2}, {"kubelet_started_containers_total", []string{"container_type=container"}, 2, 2},
			})
		})
		n.Eventually(long, "probes are counted", func() error {
			families, err := samples(n, "/metrics/probes")
			if err != nil {
				return err
			}
			return check(families, []between{{"prober_probe_total", []string{"pod=busy", "container=main", "probe_type=Readiness", "result=successful"}, 1, 0}})
		})
	})
	t.Run("top", func(t *testing.T) {
		for command, want := range map[string][]string{
			"top pods": {"NAME", "busy", "idle"}, "top pods -A -l app=busy": {"NAMESPACE", "busy"}, "top pod busy --containers": {"POD", "main"},
			"top pods --sort-by memory": {"busy", "idle"}, "top node": {"CPU(%)", "%"},
		} {
			out, err := n.CLI(strings.Fields(command)...)
			if err != nil {
				t.Errorf("%s: %v: %s", command, err, out)
			}
			at := 0
			for _, w := range want {
				i := strings.Index(out[at:], w)
				if i < 0 {
					t.Errorf("%s: %q is not there, or not in its place:\n%s", command, w, out)
					break
				}
				at += i
			}
		}
	})
}

func usageOfCAdvisor(t *testing.T, n *testbed.Node, id string) {
	main := []string{"namespace=default", "pod=busy", "container=main", "name=" + id}
	with := func(more ...string) []string { return append(slices.Clone(main), more...) }
	n.Eventually(long, "/metrics/cadvisor is right", func() error {
		families, err := samples(n, "/metrics/cadvisor")
		if err != nil {
			return err
		}
		return check(families, []between{
			{"container_cpu_usage_seconds_total", with("cpu=total"), burned, 60},
			{"container_cpu_usage_seconds_total", []string{"pod=busy", "container=", "image="}, burned, 60},
			{"container_cpu_cfs_periods_total", main, 1, 0},
			{"container_spec_cpu_quota", main, 100000, 100000},
			{"container_spec_memory_limit_bytes", main, 128 << 20, 128 << 20},
			{"container_memory_usage_bytes", main, allocated, 128 << 20},
			{"container_memory_working_set_bytes", main, allocated, 128 << 20},
			{"container_memory_cache", main, allocated, 128 << 20},
			{"container_memory_failures_total", with("failure_type=pgfault", "scope=container"), 1, 0},
			{"container_fs_usage_bytes", main, written, written + 1<<20},
			{"container_fs_limit_bytes", main, written, 0},
			{"container_processes", main, 1, 10},
			{"container_oom_events_total", main, 0, .5},
			{"container_network_receive_bytes_total", []string{"pod=busy", "container=POD", "interface=eth0"}, 0, 0},
			{"container_start_time_seconds", main, 1 << 30, 0},
			{"container_last_seen", main, 1 << 30, 0},
			{"container_cpu_usage_seconds_total", []string{"id=/"}, burned, 0},
			{"machine_memory_bytes", nil, 1 << 28, 0},
			{"machine_cpu_cores", nil, 1, 0},
			{"container_scrape_error", nil, 0, .5},
		})
	})
}

func usageOfResource(t *testing.T, n *testbed.Node) {
	families, err := samples(n, "/metrics/resource")
	if err != nil {
		t.Fatal(err)
	}
	pod := []string{"namespace=default", "pod=busy"}
	main := append(slices.Clone(pod), "container=main")
	if err := check(families, []between{
		{"container_cpu_usage_seconds_total", main, burned, 60}, {"container_memory_working_set_bytes", main, allocated, 128 << 20},
		{"container_start_time_seconds", main, 1 << 30, 0}, {"container_swap_usage_bytes", main, 0, 128 << 20},
		{"pod_cpu_usage_seconds_total", pod, burned, 60}, {"pod_memory_working_set_bytes", pod, allocated, 128 << 20},
		{"node_cpu_usage_seconds_total", nil, burned, 0}, {"node_memory_working_set_bytes", nil, allocated, 0},
		{"scrape_error", nil, 0, .5}, {"resource_scrape_error", nil, 0, .5},
	}); err != nil {
		t.Error(err)
	}
}

func usageOfSummary(t *testing.T, n *testbed.Node) {
	n.Eventually(long, "/stats/summary is right", func() error {
		b, err := scrape(n, "/stats/summary")
		if err != nil {
			return err
		}
		var sum summary.Summary
		if err := json.Unmarshal(b, &sum); err != nil {
			return err
		}
		i := slices.IndexFunc(sum.Pods, func(p summary.PodStats) bool { return p.PodRef.Name == "busy" })
		if i < 0 || len(sum.Pods[i].Containers) != 1 || sum.Node.Fs == nil || sum.Node.Runtime == nil || sum.Node.Memory.AvailableBytes == nil || sum.Pods[i].EphemeralStorage == nil {
			return fmt.Errorf("summary: %s", b)
		}
		p, c := sum.Pods[i], sum.Pods[i].Containers[0]
		if c.Rootfs == nil || c.Logs == nil || len(p.VolumeStats) < 2 || p.Network == nil {
			return fmt.Errorf("pod: %s", b)
		}
		volume := map[string]uint64{}
		for _, v := range p.VolumeStats {
			volume[v.Name] = *v.UsedBytes
		}
		for what, b := range map[string][3]uint64{
			"cpu":       {*c.CPU.UsageCoreNanoSeconds, burned * 1e9, 60e9},
			"memory":    {*c.Memory.WorkingSetBytes, allocated, 128 << 20},
			"rootfs":    {*c.Rootfs.UsedBytes, written, written + 1<<20},
			"logs":      {*c.Logs.UsedBytes, 1, 1 << 20},
			"cache":     {volume["cache"], cached, cached + 1<<20},
			"shm":       {volume["shm"], allocated, allocated + 1<<20},
			"ephemeral": {*p.EphemeralStorage.UsedBytes, written + cached, written + cached + 2<<20},
			"processes": {*p.ProcessStats.ProcessCount, 2, 20},
		} {
			if b[0] < b[1] || b[0] > b[2] {
				return fmt.Errorf("%s is %d, want %d to %d", what, b[0], b[1], b[2])
			}
		}
		return nil
	})
}
