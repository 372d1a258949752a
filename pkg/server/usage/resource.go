package usage

import (
	"io"
	"time"

	"github.com/nodeagent/nodeagent/pkg/stats"
)

// entity is the node, a pod or a container of /metrics/resource.
type entity struct {
	labels  string
	c       *stats.Cgroup
	started time.Time
}

// Resource writes /metrics/resource, what metrics-server asks for.
func Resource(w io.Writer, r *stats.Reader) error {
	node, err := r.Node(stats.Basic)
	t := newText(w, node.Time)
	failed := 0.0
	if err != nil {
		failed = 1
	}
	var pods, containers []entity
	read := r.Pods(stats.Basic)
	for i := range read {
		p := &read[i]
		pods = append(pods, entity{labels: labels("namespace", p.Pod.Namespace, "pod", p.Pod.Name), c: &p.Cgroup})
		for j := range p.Containers {
			c := &p.Containers[j]
			containers = append(containers, entity{labels("container", c.Name, "namespace", p.Pod.Namespace, "pod", p.Pod.Name), &c.Cgroup, c.StartedAt})
		}
	}
	var nodes []entity
	if err == nil {
		nodes = []entity{{c: &node.Cgroup}}
	}
	cpu := func(e *entity) (float64, bool) { return e.c.CPU.Usage.Seconds(), true }
	memory := func(e *entity) (float64, bool) { return float64(e.c.Memory.WorkingSet), true }
	swap := func(e *entity) (float64, bool) { return float64(e.c.Memory.Swap), true }
	limit := func(e *entity) (float64, bool) {
		return float64(e.c.Memory.SwapLimit), e.c.Memory.SwapLimit != stats.NoLimit
	}
	for _, f := range []struct {
		of               []entity
		name, kind, help string
		value            func(e *entity) (float64, bool)
	}{
		{containers, "container_cpu_usage_seconds_total", counter, "CPU time of the container in core-seconds.", cpu},
		{containers, "container_memory_working_set_bytes", gauge, "Working set of the container.", memory},
		{containers, "container_swap_limit_bytes", gauge, "Swap limit of the container.", limit},
		{containers, "container_swap_usage_bytes", gauge, "Swap that the container uses.", swap},
		{nodes, "node_cpu_usage_seconds_total", counter, "CPU time of the node in core-seconds.", cpu},
		{nodes, "node_memory_working_set_bytes", gauge, "Working set of the node.", memory},
		{nodes, "node_swap_usage_bytes", gauge, "Swap that the node uses.", swap},
		{pods, "pod_cpu_usage_seconds_total", counter, "CPU time of the pod in core-seconds.", cpu},
		{pods, "pod_memory_working_set_bytes", gauge, "Working set of the pod.", memory},
		{pods, "pod_swap_usage_bytes", gauge, "Swap that the pod uses.", swap},
	} {
		t.entities(f.name, f.kind, f.help, f.of, f.value, true)
	}
	t.entities("container_start_time_seconds", gauge, "When the container started, in seconds since 1970.", containers, func(e *entity) (float64, bool) {
		return float64(e.started.UnixNano()) / 1e9, !e.started.IsZero()
	}, false)
	for _, name := range []string{"resource_scrape_error", "scrape_error"} {
		t.family(name, gauge, "1 when something could not be read.")
		t.sample(name, "", failed, time.Time{})
	}
	return t.flush()
}

// entities writes one family, with the time of each value if it is stamped.
func (t *text) entities(name, kind, help string, list []entity, value func(e *entity) (float64, bool), stamped bool) {
	begun := false
	for i := range list {
		v, ok := value(&list[i])
		if !ok {
			continue
		}
		if !begun {
			begun = true
			t.family(name, kind, help)
		}
		at := time.Time{}
		if stamped {
			at = list[i].c.Time
		}
		t.sample(name, list[i].labels, v, at)
	}
}
