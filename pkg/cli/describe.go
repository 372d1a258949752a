package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/cli/table"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// DescribePods writes everything that is known of each pod, with its events.
func (c *CLI) DescribePods(ctx context.Context, names []string) error {
	var pods []*v1.Pod
	if len(names) == 0 {
		var l v1.PodList
		if err := c.client.get(ctx, podsPath(c.Namespace), nil, &l); err != nil {
			return err
		}
		if len(l.Items) == 0 {
			c.nothing(true, c.Namespace)
		}
		for i := range l.Items {
			pods = append(pods, &l.Items[i])
		}
	}
	failed := false
	for _, n := range names {
		p, err := c.pod(ctx, n)
		if isStatus(err) {
			Report(c.Err, err)
			failed = true
			continue
		}
		if err != nil {
			return err
		}
		pods = append(pods, p)
	}
	for i, p := range pods {
		events, err := c.eventsOf(ctx, p)
		if err != nil {
			return err
		}
		if i > 0 {
			fmt.Fprint(c.Out, "\n\n")
		}
		if err := describePod(c.Out, p, events, c.Now()); err != nil {
			return err
		}
	}
	if failed {
		return errFailed()
	}
	return nil
}

func (c *CLI) eventsOf(ctx context.Context, o metav1.Object) ([]v1.Event, error) {
	res := eventResource()
	q := GetOptions{FieldSelector: fmt.Sprintf("involvedObject.name=%s,involvedObject.namespace=%s,involvedObject.uid=%s", o.GetName(), o.GetNamespace(), o.GetUID())}.query()
	items, _, err := res.list(ctx, c.client, res.path(o.GetNamespace()), q)
	var out []v1.Event
	for _, o := range items {
		out = append(out, *o.(*v1.Event))
	}
	return out, err
}

// page writes "Name:<tab>value" lines, indented by two spaces per level; the
// tabwriter behind it aligns the values.
type page struct{ w *tabwriter.Writer }

// line writes one line. Arguments are made safe; the format is ours.
func (d page) line(level int, format string, args ...any) {
	for i, a := range args {
		args[i] = table.Safe(fmt.Sprint(a))
	}
	fmt.Fprintf(d.w, strings.Repeat("  ", level)+format+"\n", args...)
}

// words writes a list of short values, one per line, under one name.
func (d page) words(name string, items []string) { d.wordsAt(0, name, items) }

func (d page) wordsAt(level int, name string, items []string) {
	if len(items) == 0 {
		d.line(level, name+":\t<none>")
		return
	}
	for i, s := range items {
		if i == 0 {
			d.line(level, name+":\t%s", s)
			continue
		}
		d.line(level, "\t%s", s)
	}
}

// describePod reads as kubectl's does, line by line; what a container waits for
// is said here, too.
func describePod(out io.Writer, p *v1.Pod, events []v1.Event, now time.Time) error {
	d := page{tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)}
	d.head(p, now)
	d.containers(p, "Init Containers", p.Spec.InitContainers, p.Status.InitContainerStatuses)
	d.containers(p, "Containers", p.Spec.Containers, p.Status.ContainerStatuses)
	var debuggers []v1.Container
	for i := range p.Spec.EphemeralContainers {
		debuggers = append(debuggers, v1.Container(p.Spec.EphemeralContainers[i].EphemeralContainerCommon))
	}
	d.containers(p, "Ephemeral Containers", debuggers, p.Status.EphemeralContainerStatuses)
	d.gates(p)
	d.conditions(p)
	d.volumes(p.Spec.Volumes)
	if p.Status.QOSClass != "" {
		d.line(0, "QoS Class:\t%s", p.Status.QOSClass)
	}
	d.words("Node-Selectors", pairs(p.Spec.NodeSelector, "="))
	d.words("Tolerations", tolerations(p.Spec.Tolerations))
	d.spread(p.Spec.TopologySpreadConstraints)
	d.events(events, now)
	return d.w.Flush()
}

func (d page) head(p *v1.Pod, now time.Time) {
	d.line(0, "Name:\t%s", p.Name)
	d.line(0, "Namespace:\t%s", p.Namespace)
	if p.Spec.Priority != nil {
		d.line(0, "Priority:\t%s", *p.Spec.Priority)
	}
	if p.Spec.PriorityClassName != "" {
		d.line(0, "Priority Class Name:\t%s", p.Spec.PriorityClassName)
	}
	if p.Spec.RuntimeClassName != nil {
		d.line(0, "Runtime Class Name:\t%s", *p.Spec.RuntimeClassName)
	}
	if p.Spec.ServiceAccountName != "" {
		d.line(0, "Service Account:\t%s", p.Spec.ServiceAccountName)
	}
	if p.Spec.NodeName == "" {
		d.line(0, "Node:\t<none>")
	} else {
		d.line(0, "Node:\t%s/%s", p.Spec.NodeName, p.Status.HostIP)
	}
	if p.Status.StartTime != nil {
		d.line(0, "Start Time:\t%s", p.Status.StartTime.Format(time.RFC1123Z))
	}
	d.words("Labels", pairs(p.Labels, "="))
	d.annotations(p.Annotations)
	if p.DeletionTimestamp != nil && !pod.IsTerminal(p.Status.Phase) {
		d.line(0, "Status:\tTerminating (lasts %s)", age(now, p.DeletionTimestamp.Time))
		if p.DeletionGracePeriodSeconds != nil {
			d.line(0, "Termination Grace Period:\t%ss", *p.DeletionGracePeriodSeconds)
		}
	} else {
		d.line(0, "Status:\t%s", p.Status.Phase)
	}
	if p.Status.Reason != "" {
		d.line(0, "Reason:\t%s", p.Status.Reason)
	}
	if p.Status.Message != "" {
		d.line(0, "Message:\t%s", p.Status.Message)
	}
	if sc := p.Spec.SecurityContext; sc != nil {
		d.seccomp(0, 0, sc.SeccompProfile)
	}
	d.line(0, "IP:\t%s", p.Status.PodIP)
	if len(p.Status.PodIPs) == 0 {
		d.line(0, "IPs:\t<none>")
	} else {
		d.line(0, "IPs:")
		for _, ip := range p.Status.PodIPs {
			d.line(1, "IP:\t%s", ip.IP)
		}
	}
	for _, o := range p.OwnerReferences {
		if o.Controller != nil && *o.Controller {
			d.line(0, "Controlled By:\t%s/%s", o.Kind, o.Name)
		}
	}
	if r := p.Spec.Resources; r != nil {
		d.line(0, "Resources:")
		d.quantities(1, "Limits", r.Limits)
		d.quantities(1, "Requests", r.Requests)
	}
}

func (d page) containers(p *v1.Pod, title string, specs []v1.Container, statuses []v1.ContainerStatus) {
	if len(specs) == 0 {
		return
	}
	d.line(0, title+":")
	for i := range specs {
		c := &specs[i]
		var st *v1.ContainerStatus
		if at := slices.IndexFunc(statuses, func(s v1.ContainerStatus) bool { return s.Name == c.Name }); at >= 0 {
			st = &statuses[at]
		}
		d.line(1, "%s:", c.Name)
		d.container(p, c, st)
	}
}

func (d page) container(p *v1.Pod, c *v1.Container, st *v1.ContainerStatus) {
	if st != nil {
		d.line(2, "Container ID:\t%s", st.ContainerID)
	}
	d.line(2, "Image:\t%s", c.Image)
	if st != nil {
		d.line(2, "Image ID:\t%s", st.ImageID)
	}
	d.ports(c.Ports)
	if sc := c.SecurityContext; sc != nil {
		d.seccomp(2, 3, sc.SeccompProfile)
	}
	d.block("Command", c.Command)
	d.block("Args", c.Args)
	if st != nil {
		d.state("State", st.State)
		if st.LastTerminationState.Terminated != nil {
			d.state("Last State", st.LastTerminationState)
		}
		ready := "False"
		if st.Ready {
			ready = "True"
		}
		d.line(2, "Ready:\t%s", ready)
		d.line(2, "Restart Count:\t%s", st.RestartCount)
	}
	d.quantities(2, "Limits", c.Resources.Limits)
	d.quantities(2, "Requests", c.Resources.Requests)
	for _, pr := range []struct {
		name  string
		probe *v1.Probe
	}{{"Liveness", c.LivenessProbe}, {"Readiness", c.ReadinessProbe}, {"Startup", c.StartupProbe}} {
		if pr.probe != nil {
			d.line(2, pr.name+":\t%s", probeText(pr.probe))
		}
	}
	d.environment(p, c)
	d.mounts(c)
}

func (d page) ports(ports []v1.ContainerPort) {
	var in, host []string
	for _, p := range ports {
		name := ""
		if p.Name != "" {
			name = " (" + p.Name + ")"
		}
		in = append(in, fmt.Sprintf("%d/%s%s", p.ContainerPort, p.Protocol, name))
		host = append(host, fmt.Sprintf("%d/%s%s", p.HostPort, p.Protocol, name))
	}
	s := ""
	if len(ports) > 1 {
		s = "s"
	}
	d.line(2, "Port"+s+":\t%s", orNone(strings.Join(in, ", ")))
	d.line(2, "Host Port"+s+":\t%s", orNone(strings.Join(host, ", ")))
}

// block writes a list with one item per line, and lines of items below each
// other, as scripts in a command are.
func (d page) block(name string, items []string) {
	if len(items) == 0 {
		return
	}
	d.line(2, name+":")
	for _, it := range items {
		for l := range strings.SplitSeq(it, "\n") {
			d.line(3, "%s", l)
		}
	}
}

func (d page) state(name string, s v1.ContainerState) {
	switch {
	case s.Running != nil:
		d.line(2, name+":\tRunning")
		d.line(3, "Started:\t%s", s.Running.StartedAt.Format(time.RFC1123Z))
	case s.Terminated != nil:
		t := s.Terminated
		d.line(2, name+":\tTerminated")
		if t.Reason != "" {
			d.line(3, "Reason:\t%s", t.Reason)
		}
		if t.Message != "" {
			d.line(3, "Message:\t%s", strings.TrimSpace(t.Message))
		}
		d.line(3, "Exit Code:\t%s", t.ExitCode)
		if t.Signal > 0 {
			d.line(3, "Signal:\t%s", t.Signal)
		}
		d.line(3, "Started:\t%s", t.StartedAt.Format(time.RFC1123Z))
		d.line(3, "Finished:\t%s", t.FinishedAt.Format(time.RFC1123Z))
	case s.Waiting != nil:
		d.line(2, name+":\tWaiting")
		if s.Waiting.Reason != "" {
			d.line(3, "Reason:\t%s", s.Waiting.Reason)
		}
		if s.Waiting.Message != "" {
			d.line(3, "Message:\t%s", s.Waiting.Message)
		}
	default:
		d.line(2, name+":\tWaiting")
	}
}

func (d page) quantities(level int, name string, r v1.ResourceList) {
	if len(r) == 0 {
		return
	}
	d.line(level, name+":")
	for _, k := range slices.Sorted(maps.Keys(r)) {
		q := r[k]
		d.line(level+1, "%s:\t%s", k, q.String())
	}
}

func (d page) conditions(p *v1.Pod) {
	if len(p.Status.Conditions) == 0 {
		return
	}
	d.line(0, "Conditions:\n  Type\tStatus")
	for _, c := range p.Status.Conditions {
		d.line(1, "%s \t%s ", c.Type, c.Status)
	}
}

func (d page) events(events []v1.Event, now time.Time) {
	if len(events) == 0 {
		d.line(0, "Events:\t<none>")
		return
	}
	_ = d.w.Flush() // the columns of what is above are not those of events
	// kubectl's order: the one with the latest news is last.
	slices.SortStableFunc(events, func(a, b v1.Event) int { return a.LastTimestamp.Compare(b.LastTimestamp.Time) })
	d.line(0, "Events:")
	d.line(1, "Type\tReason\tAge\tFrom\tMessage")
	d.line(1, "----\t------\t----\t----\t-------")
	for i := range events {
		e := &events[i]
		seen := age(now, lastSeen(e))
		if n := eventCount(e); n > 1 {
			seen = fmt.Sprintf("%s (x%d over %s)", seen, n, age(now, firstSeen(e)))
		}
		from, message := cmp.Or(e.Source.Component, e.ReportingController), strings.TrimSpace(e.Message)
		if at := e.InvolvedObject.FieldPath; at != "" {
			message = at + ": " + message
		}
		d.line(1, "%s\t%s\t%s\t%s\t%s", e.Type, e.Reason, seen, from, message)
	}
}

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

// pairs are a map's entries, sorted by key.
func pairs(m map[string]string, sep string) []string {
	var out []string
	for _, k := range sortedKeys(m) {
		out = append(out, k+sep+m[k])
	}
	return out
}

func tolerations(ts []v1.Toleration) []string {
	var out []string
	for _, t := range slices.SortedStableFunc(slices.Values(ts), func(a, b v1.Toleration) int { return strings.Compare(a.Key, b.Key) }) {
		s := t.Key
		if t.Value != "" {
			s += "=" + t.Value
		}
		if t.Effect != "" {
			s += ":" + string(t.Effect)
		}
		if t.Operator == v1.TolerationOpExists && t.Value == "" {
			s = strings.TrimSpace(s + " op=Exists")
		}
		if t.TolerationSeconds != nil {
			s += fmt.Sprintf(" for %ds", *t.TolerationSeconds)
		}
		out = append(out, s)
	}
	return out
}
