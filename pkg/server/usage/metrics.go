package usage

import (
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metrics "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"github.com/nodeagent/nodeagent/pkg/stats"
)

// APIVersion is that of metrics.k8s.io.
const APIVersion = "metrics.k8s.io/v1beta1"

// PodMetrics is a pod in metrics.k8s.io; nil while none of its containers has used
// anything that could be told.
func PodMetrics(p *stats.Pod) *metrics.PodMetrics {
	m := &metrics.PodMetrics{
		TypeMeta:   metav1.TypeMeta{APIVersion: APIVersion, Kind: "PodMetrics"},
		ObjectMeta: meta(p.Pod.Namespace, p.Pod.Name, p.Pod.Labels, p.Time),
		Timestamp:  metav1.NewTime(p.Time), Window: metav1.Duration{Duration: p.Window},
	}
	for i := range p.Containers {
		c := &p.Containers[i]
		if c.Window == 0 {
			continue
		}
		if m.Window.Duration == 0 || c.Window < m.Window.Duration {
			m.Window.Duration = c.Window
		}
		m.Containers = append(m.Containers, metrics.ContainerMetrics{Name: c.Name, Usage: used(&c.Cgroup)})
	}
	if len(m.Containers) == 0 {
		return nil
	}
	return m
}

// NodeMetrics is the node in metrics.k8s.io.
func NodeMetrics(n *stats.Node, name string, labels map[string]string) *metrics.NodeMetrics {
	return &metrics.NodeMetrics{
		TypeMeta:   metav1.TypeMeta{APIVersion: APIVersion, Kind: "NodeMetrics"},
		ObjectMeta: meta("", name, labels, n.Time),
		Timestamp:  metav1.NewTime(n.Time), Window: metav1.Duration{Duration: n.Window}, Usage: used(&n.Cgroup),
	}
}

func meta(namespace, name string, labels map[string]string, at time.Time) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels, CreationTimestamp: metav1.NewTime(at)}
}

func used(c *stats.Cgroup) v1.ResourceList {
	return v1.ResourceList{
		v1.ResourceCPU:    *resource.NewScaledQuantity(int64(c.Rate), resource.Nano),
		v1.ResourceMemory: *resource.NewQuantity(int64(c.Memory.WorkingSet), resource.BinarySI),
	}
}
