package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// isNode says that a word on the command line means the node.
func isNode(word string) bool {
	return slices.Contains([]string{"node", "nodes", "no"}, strings.ToLower(word))
}

// DescribeArgs understands what ObjectNames does, and "node".
func (c *CLI) DescribeArgs(ctx context.Context, args []string) error {
	if len(args) > 0 {
		if word, name, named := strings.Cut(args[0], "/"); isNode(word) {
			names := args[1:]
			if named {
				names = append([]string{name}, names...)
			}
			return c.DescribeNode(ctx, names)
		}
	}
	kind, names, err := ObjectNames(args)
	if err != nil {
		return err
	}
	return c.Describe(ctx, kind, names)
}

// DescribeNode writes everything that is known of the node, of which there is
// one; names may say so.
func (c *CLI) DescribeNode(ctx context.Context, names []string) error {
	var nodes v1.NodeList
	if err := c.client.get(ctx, "/api/v1/nodes", nil, &nodes); err != nil {
		return err
	}
	for i := range nodes.Items {
		n := &nodes.Items[i]
		for _, name := range names {
			if name != n.Name {
				return apierrors.NewNotFound(schema.GroupResource{Resource: "nodes"}, name)
			}
		}
		var pods v1.PodList
		if err := c.client.get(ctx, podsPath(""), nil, &pods); err != nil {
			return err
		}
		events, err := c.eventsOf(ctx, n)
		if err != nil {
			return err
		}
		pods.Items = slices.DeleteFunc(pods.Items, func(p v1.Pod) bool { return pod.IsTerminal(p.Status.Phase) })
		d := page{tabwriter.NewWriter(c.Out, 0, 8, 2, ' ', 0)}
		d.node(n)
		d.podsOfNode(n, pods.Items, c.Now())
		d.events(events, c.Now())
		if err := d.w.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func (d page) node(n *v1.Node) {
	d.line(0, "Name:\t%s", n.Name)
	d.line(0, "Roles:\t%s", orNone(strings.Join(roles(n), ",")))
	d.words("Labels", pairs(n.Labels, "="))
	d.annotations(n.Annotations)
	d.line(0, "CreationTimestamp:\t%s", n.CreationTimestamp.Format(time.RFC1123Z))
	var taints []string
	for _, t := range slices.SortedFunc(slices.Values(n.Spec.Taints), func(a, b v1.Taint) int {
		return strings.Compare(string(a.Effect)+","+a.Key, string(b.Effect)+","+b.Key)
	}) {
		taints = append(taints, t.ToString())
	}
	d.words("Taints", taints)
	d.line(0, "Unschedulable:\t%s", n.Spec.Unschedulable)
	d.line(0, "Conditions:\n  Type\tStatus\tLastHeartbeatTime\tLastTransitionTime\tReason\tMessage")
	d.line(1, "----\t------\t-----------------\t------------------\t------\t-------")
	for _, c := range n.Status.Conditions {
		d.line(1, "%s \t%s \t%s \t%s \t%s \t%s", c.Type, c.Status, c.LastHeartbeatTime.Format(time.RFC1123Z),
			c.LastTransitionTime.Format(time.RFC1123Z), c.Reason, c.Message)
	}
	d.line(0, "Addresses:")
	for _, a := range n.Status.Addresses {
		d.line(1, "%s:\t%s", a.Type, a.Address)
	}
	d.quantities(0, "Capacity", n.Status.Capacity)
	d.quantities(0, "Allocatable", n.Status.Allocatable)
	i := n.Status.NodeInfo
	d.line(0, "System Info:")
	for _, l := range [][2]string{
		{"Machine ID", i.MachineID}, {"System UUID", i.SystemUUID}, {"Boot ID", i.BootID}, {"Kernel Version", i.KernelVersion},
		{"OS Image", i.OSImage}, {"Operating System", i.OperatingSystem}, {"Architecture", i.Architecture},
		{"Container Runtime Version", i.ContainerRuntimeVersion}, {"Kubelet Version", i.KubeletVersion},
	} {
		d.line(1, l[0]+":\t%s", l[1])
	}
	if n.Spec.PodCIDR != "" {
		d.line(0, "PodCIDR:\t%s", n.Spec.PodCIDR)
		d.line(0, "PodCIDRs:\t%s", strings.Join(n.Spec.PodCIDRs, ","))
	}
}

// roles are what labels call the node.
func roles(n *v1.Node) (out []string) {
	for _, k := range sortedKeys(n.Labels) {
		if role, ok := strings.CutPrefix(k, "node-role.kubernetes.io/"); ok && role != "" {
			out = append(out, role)
		}
	}
	return out
}

// podsOfNode are the pods that have not ended, with what they ask for.
func (d page) podsOfNode(n *v1.Node, pods []v1.Pod, now time.Time) {
	d.line(0, "Non-terminated Pods:\t(%s in total)", len(pods))
	d.line(1, "Namespace\tName\t\tCPU Requests\tCPU Limits\tMemory Requests\tMemory Limits\tAge")
	d.line(1, "---------\t----\t\t------------\t----------\t---------------\t-------------\t---")
	has := n.Status.Allocatable
	requests, limits := v1.ResourceList{}, v1.ResourceList{}
	for i := range pods {
		p := &pods[i]
		req, lim := pod.Requests(p), pod.Limits(p)
		add(requests, req)
		add(limits, lim)
		d.line(1, "%s\t%s\t\t%s\t%s\t%s\t%s\t%s", p.Namespace, p.Name, shareOf(req, has, v1.ResourceCPU), shareOf(lim, has, v1.ResourceCPU),
			shareOf(req, has, v1.ResourceMemory), shareOf(lim, has, v1.ResourceMemory), age(now, p.CreationTimestamp.Time))
	}
	d.line(0, "Allocated resources:\n  (Total limits may be over 100 percent, i.e., overcommitted.)")
	d.line(1, "Resource\tRequests\tLimits")
	d.line(1, "--------\t--------\t------")
	names := []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage}
	var huge []v1.ResourceName
	for name := range has {
		if strings.HasPrefix(string(name), v1.ResourceHugePagesPrefix) {
			huge = append(huge, name)
		}
	}
	slices.Sort(huge)
	for _, name := range append(names, huge...) {
		d.line(1, "%s\t%s\t%s", name, shareOf(requests, has, name), shareOf(limits, has, name))
	}
}

func add(to, more v1.ResourceList) {
	for name, q := range more {
		sum := to[name]
		sum.Add(q)
		to[name] = sum
	}
}

// shareOf is a quantity with what part of the node's it is.
func shareOf(list, of v1.ResourceList, name v1.ResourceName) string {
	q, all := list[name], of[name]
	part, whole := float64(q.Value()), float64(all.Value())
	if name == v1.ResourceCPU {
		part, whole = float64(q.MilliValue()), float64(all.MilliValue())
	}
	percent := float64(0)
	if whole != 0 {
		percent = part / whole * 100
	}
	return fmt.Sprintf("%s (%d%%)", q.String(), int64(percent))
}
