package server

import (
	"context"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	metrics "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/server/usage"
	"github.com/nodeagent/nodeagent/pkg/stats"
)

// The kinds of metrics.k8s.io, which metrics-server answers for in a cluster. They
// are read when they are asked for, so that there is nothing to watch.
var (
	podMetricsKind  = servedKind{manifest.Kind{APIVersion: usage.APIVersion, Name: "PodMetrics", Resource: "pods", Namespaced: true}}
	nodeMetricsKind = servedKind{manifest.Kind{APIVersion: usage.APIVersion, Name: "NodeMetrics", Resource: "nodes"}}
)

// measured says that objects of the kind are readings.
func (k servedKind) measured() bool { return k.APIVersion == usage.APIVersion }

// label names the kind in the agent's own metrics.
func (k servedKind) label() string {
	if k.measured() {
		return "metrics.k8s.io/" + k.Resource
	}
	return k.Resource
}

func (s *Server) metricsViews() []*view {
	columns := []metav1.TableColumnDefinition{column("Name", "name", 0), column("CPU", "", 0), column("Memory", "", 0), column("Window", "", 0)}
	return []*view{
		{servedKind: podMetricsKind, reader: podMetrics{s}, fields: s.podMetricsFields, columns: columns, row: tables.measured},
		{servedKind: nodeMetricsKind, reader: nodeMetrics{s}, fields: resourceFields, columns: columns, row: tables.measured},
	}
}

// podMetricsFields are the pod's: `kubectl top` takes its selectors for pods.
func (s *Server) podMetricsFields(o metav1.Object) fields.Set {
	if rec, ok := s.o.Pods.Get(pod.KeyOf(o)); ok && rec.Pod != nil {
		return podFields(rec.Pod)
	}
	return podFields(&v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: o.GetNamespace(), Name: o.GetName()}})
}

func (t tables) measured(o manifest.Resource) metav1.TableRow {
	var window metav1.Duration
	sum := v1.ResourceList{}
	add := func(used v1.ResourceList) {
		for name, q := range used {
			all := sum[name]
			all.Add(q)
			sum[name] = all
		}
	}
	switch o := o.(type) {
	case *metrics.PodMetrics:
		window = o.Window
		for i := range o.Containers {
			add(o.Containers[i].Usage)
		}
	case *metrics.NodeMetrics:
		window = o.Window
		add(o.Usage)
	}
	return metav1.TableRow{Cells: []any{o.GetName(), sum.Cpu().String(), sum.Memory().String(), window.Duration.String()}, Object: t.object(o)}
}

// podMetrics are read from the pods' cgroups.
type podMetrics struct{ s *Server }

func (p podMetrics) list() ([]record, uint64) {
	var out []record
	if r, err := p.s.o.Stats(); err == nil {
		for _, u := range r.Pods(stats.Basic) {
			if m := usage.PodMetrics(&u); m != nil {
				out = append(out, record{object: m})
			}
		}
	}
	return out, p.s.o.Pods.Revision()
}

func (p podMetrics) get(key pod.Key) (record, bool) {
	rec, ok := p.s.o.Pods.Get(key)
	r, err := p.s.o.Stats()
	if !ok || rec.Pod == nil || err != nil {
		return record{}, false
	}
	u, ok := r.Pod(rec.Pod, stats.Basic)
	if !ok {
		return record{}, false
	}
	m := usage.PodMetrics(&u)
	return record{object: m}, m != nil
}

func (podMetrics) watch(context.Context, uint64) (<-chan change, error) {
	return nil, errdefs.ErrInvalid // route refuses it before
}

// nodeMetrics is read from the root cgroup.
type nodeMetrics struct{ s *Server }

func (n nodeMetrics) list() ([]record, uint64) {
	revision := n.s.o.Pods.Revision()
	node, _ := n.s.o.NodeObject.Node()
	r, err := n.s.o.Stats()
	if node == nil || err != nil {
		return nil, revision
	}
	read, err := r.Node(stats.Basic)
	if err != nil {
		n.s.log.Warn("cannot measure the node", "err", err)
		return nil, revision
	}
	return []record{{object: usage.NodeMetrics(&read, node.Name, node.Labels)}}, revision
}

func (n nodeMetrics) get(key pod.Key) (record, bool) {
	all, _ := n.list()
	if len(all) == 0 || all[0].object.GetName() != key.Name {
		return record{}, false
	}
	return all[0], true
}

func (nodeMetrics) watch(context.Context, uint64) (<-chan change, error) {
	return nil, errdefs.ErrInvalid
}
