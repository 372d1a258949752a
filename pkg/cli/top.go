package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"

	v1 "k8s.io/api/core/v1"
	metrics "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"github.com/nodeagent/nodeagent/pkg/cli/table"
)

// TopOptions are the flags of `top`.
type TopOptions struct {
	AllNamespaces bool
	Containers    bool
	Selector      string
	FieldSelector string
	SortBy        string // "", cpu or memory
	NoHeaders     bool
}

// SortKeys are the values of --sort-by.
func SortKeys() []string { return []string{"cpu", "memory"} }

const metricsPath = "/apis/metrics.k8s.io/v1beta1"

// usage is a line of `top`.
type usage struct {
	names       []string
	cpu, memory int64 // thousandths of a core, bytes
}

func (u *usage) add(used v1.ResourceList) {
	u.cpu += used.Cpu().MilliValue()
	u.memory += used.Memory().Value()
}

func (u *usage) cells() []string {
	return append(u.names, fmt.Sprintf("%dm", u.cpu), fmt.Sprintf("%dMi", u.memory>>20))
}

func (o TopOptions) check() error {
	if o.SortBy != "" && !slices.Contains(SortKeys(), o.SortBy) {
		return fmt.Errorf("--sort-by %q: write cpu or memory", o.SortBy)
	}
	return nil
}

func (o TopOptions) sort(lines []usage) {
	slices.SortStableFunc(lines, func(a, b usage) int {
		switch o.SortBy {
		case "cpu":
			return cmp.Compare(b.cpu, a.cpu)
		case "memory":
			return cmp.Compare(b.memory, a.memory)
		}
		return slices.Compare(a.names, b.names)
	})
}

// TopPods shows what pods use now: one, or all that are selected.
func (c *CLI) TopPods(ctx context.Context, name string, o TopOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	if name != "" && (o.AllNamespaces || o.Selector != "" || o.FieldSelector != "") {
		return errors.New("a pod's name goes with no selector and not with -A")
	}
	namespace, path := c.Namespace, metricsPath
	if o.AllNamespaces {
		namespace = ""
	} else {
		path += "/namespaces/" + url.PathEscape(namespace)
	}
	path += "/pods"
	var list metrics.PodMetricsList
	if name != "" {
		list.Items = make([]metrics.PodMetrics, 1)
		if err := c.client.get(ctx, path+"/"+url.PathEscape(name), nil, &list.Items[0]); err != nil {
			return err
		}
	} else if err := c.client.get(ctx, path, GetOptions{Selector: o.Selector, FieldSelector: o.FieldSelector}.query(), &list); err != nil {
		return err
	}
	if len(list.Items) == 0 {
		c.nothing(true, namespace)
		return nil
	}
	headers := []string{"NAME", "CPU(cores)", "MEMORY(bytes)"}
	if o.Containers {
		headers = []string{"POD", "NAME", "CPU(cores)", "MEMORY(bytes)"}
	}
	if o.AllNamespaces {
		headers = slices.Insert(headers, 0, "NAMESPACE")
	}
	return c.printTop(headers, podLines(list.Items, o), o)
}

func podLines(pods []metrics.PodMetrics, o TopOptions) (lines []usage) {
	for i := range pods {
		p := &pods[i]
		line := func(names ...string) *usage {
			if o.AllNamespaces {
				names = append([]string{p.Namespace}, names...)
			}
			lines = append(lines, usage{names: names})
			return &lines[len(lines)-1]
		}
		if !o.Containers {
			sum := line(p.Name)
			for j := range p.Containers {
				sum.add(p.Containers[j].Usage)
			}
			continue
		}
		for j := range p.Containers {
			line(p.Name, p.Containers[j].Name).add(p.Containers[j].Usage)
		}
	}
	o.sort(lines)
	return lines
}

// TopNode shows what the node uses now, and of what it has for pods.
func (c *CLI) TopNode(ctx context.Context, name string, o TopOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	var list metrics.NodeMetricsList
	if err := c.client.get(ctx, metricsPath+"/nodes", GetOptions{Selector: o.Selector}.query(), &list); err != nil {
		return err
	}
	var nodes v1.NodeList
	if err := c.client.get(ctx, "/api/v1/nodes", nil, &nodes); err != nil {
		return err
	}
	var lines []usage
	for i := range list.Items {
		if name != "" && list.Items[i].Name != name {
			continue
		}
		u := usage{names: []string{list.Items[i].Name}}
		u.add(list.Items[i].Usage)
		lines = append(lines, u)
	}
	if len(lines) == 0 && name != "" {
		return fmt.Errorf("there is no node %q; this one is %s", name, nodeName(nodes))
	}
	if len(lines) == 0 {
		return errors.New("nothing is known of the node's use yet: see nodeagent get events")
	}
	t := table.New(c.Out, o.headers("NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)")...)
	for _, u := range lines {
		cpu, memory := "<unknown>", "<unknown>"
		for i := range nodes.Items {
			if have := nodes.Items[i].Status.Allocatable; nodes.Items[i].Name == u.names[0] {
				cpu, memory = share(u.cpu, have.Cpu().MilliValue()), share(u.memory, have.Memory().Value())
			}
		}
		cells := u.cells()
		t.Row(cells[0], cells[1], cpu, cells[2], memory)
	}
	return t.Flush()
}

func nodeName(nodes v1.NodeList) string {
	if len(nodes.Items) == 0 {
		return "unknown"
	}
	return nodes.Items[0].Name
}

func share(used, of int64) string {
	if of <= 0 {
		return "<unknown>"
	}
	return fmt.Sprintf("%d%%", used*100/of)
}

func (o TopOptions) headers(names ...string) []string {
	if o.NoHeaders {
		return nil
	}
	return names
}

func (c *CLI) printTop(headers []string, lines []usage, o TopOptions) error {
	t := table.New(c.Out, o.headers(headers...)...)
	for _, u := range lines {
		t.Row(u.cells()...)
	}
	return t.Flush()
}
