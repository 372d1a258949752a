package server

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// tables makes metav1.Tables, kubectl's printed form of lists.
type tables struct {
	now     time.Time
	include metav1.IncludeObjectPolicy
}

func column(name, format string, priority int32) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: "string", Format: format, Priority: priority}
}

func podColumns() []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		column("Name", "name", 0), column("Ready", "", 0), column("Status", "", 0), column("Restarts", "", 0), column("Age", "", 0),
		column("IP", "", 1), column("Node", "", 1), column("Nominated Node", "", 1), column("Readiness Gates", "", 1),
	}
}

func eventColumns() []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		column("Last Seen", "", 0), column("Type", "", 0), column("Reason", "", 0), column("Object", "", 0),
		column("Subobject", "", 1), column("Source", "", 1), column("Message", "", 0),
		column("First Seen", "", 1), column("Count", "", 1), column("Name", "name", 1),
	}
}

// table wraps rows; columns are left out for all but the first message of a
// watch.
func table(columns []metav1.TableColumnDefinition, revision string, rows []metav1.TableRow) *metav1.Table {
	if rows == nil {
		rows = []metav1.TableRow{}
	}
	if columns == nil {
		columns = []metav1.TableColumnDefinition{}
	}
	return &metav1.Table{
		TypeMeta:          metav1.TypeMeta{APIVersion: metav1.SchemeGroupVersion.String(), Kind: "Table"},
		ListMeta:          metav1.ListMeta{ResourceVersion: revision},
		ColumnDefinitions: columns, Rows: rows,
	}
}

// object is what a row carries of its object: the metadata, all or nothing.
func (t tables) object(o runtime.Object, m metav1.ObjectMeta) runtime.RawExtension {
	switch t.include {
	case metav1.IncludeNone:
		return runtime.RawExtension{}
	case metav1.IncludeObject:
		return runtime.RawExtension{Object: o}
	}
	return runtime.RawExtension{Object: &metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{APIVersion: metav1.SchemeGroupVersion.String(), Kind: "PartialObjectMetadata"},
		ObjectMeta: m,
	}}
}

// age is how long ago something was, as kubectl prints it.
func (t tables) age(at time.Time) string {
	if at.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(t.now.Sub(at))
}

func (t tables) pod(p *v1.Pod) metav1.TableRow {
	sum := summarise(p)
	restarts := strconv.Itoa(sum.restarts)
	if sum.restarts != 0 && !sum.lastRestart.IsZero() {
		restarts = fmt.Sprintf("%d (%s ago)", sum.restarts, t.age(sum.lastRestart))
	}
	ip := ""
	if len(p.Status.PodIPs) > 0 {
		ip = p.Status.PodIPs[0].IP
	}
	row := metav1.TableRow{
		Cells: []any{
			p.Name, fmt.Sprintf("%d/%d", sum.ready, sum.total), sum.status, restarts, t.age(p.CreationTimestamp.Time),
			orNone(ip), orNone(p.Spec.NodeName), orNone(p.Status.NominatedNodeName), readinessGates(p),
		},
		Object: t.object(p, p.ObjectMeta),
	}
	if pod.IsTerminal(p.Status.Phase) {
		row.Conditions = []metav1.TableRowCondition{{
			Type: metav1.RowCompleted, Status: metav1.ConditionTrue, Reason: string(p.Status.Phase),
			Message: "The pod has ended and is not restarted.",
		}}
	}
	return row
}

func readinessGates(p *v1.Pod) string {
	if len(p.Spec.ReadinessGates) == 0 {
		return "<none>"
	}
	ok := 0
	for _, g := range p.Spec.ReadinessGates {
		if conditionTrue(p, g.ConditionType) {
			ok++
		}
	}
	return fmt.Sprintf("%d/%d", ok, len(p.Spec.ReadinessGates))
}

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}

// podSummary is the READY, STATUS and RESTARTS columns of kubectl.
type podSummary struct {
	ready, total int
	status       string
	restarts     int
	lastRestart  time.Time
}

func (s *podSummary) countRestarts(c *v1.ContainerStatus) {
	s.restarts += int(c.RestartCount)
	if t := c.LastTerminationState.Terminated; t != nil && t.FinishedAt.After(s.lastRestart) {
		s.lastRestart = t.FinishedAt.Time
	}
}

// summarise follows kubectl's rules: the first init container that is not done
// decides while the pod initialises, after that the first container that has
// something to say; restarts of init containers stop counting once they are over.
func summarise(p *v1.Pod) podSummary {
	s := podSummary{total: len(p.Spec.Containers), status: string(p.Status.Phase)}
	if p.Status.Reason != "" {
		s.status = p.Status.Reason
	}
	initialising, sidecars := s.initContainers(p)
	if !initialising || conditionTrue(p, v1.PodInitialized) {
		s.restarts, s.lastRestart = sidecars.restarts, sidecars.lastRestart
		s.containers(p)
	}
	if p.DeletionTimestamp != nil && !pod.IsTerminal(p.Status.Phase) {
		s.status = "Terminating"
	}
	return s
}

// initContainers returns whether one of them is still to be done, and the
// restarts of those that go on running beside the others (sidecars).
func (s *podSummary) initContainers(p *v1.Pod) (initialising bool, sidecars podSummary) {
	restartable := map[string]bool{}
	for i := range p.Spec.InitContainers {
		if c := &p.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways {
			restartable[c.Name] = true
			s.total++
		}
	}
	for i := range p.Status.InitContainerStatuses {
		c := &p.Status.InitContainerStatuses[i]
		s.countRestarts(c)
		if restartable[c.Name] {
			sidecars.countRestarts(c)
		}
		ended, waiting := c.State.Terminated, c.State.Waiting
		switch {
		case ended != nil && ended.ExitCode == 0:
			continue
		case restartable[c.Name] && c.Started != nil && *c.Started:
			if c.Ready {
				s.ready++
			}
			continue
		case ended != nil:
			s.status = "Init:" + endReason(ended)
		case waiting != nil && waiting.Reason != "" && waiting.Reason != "PodInitializing":
			s.status = "Init:" + waiting.Reason
		default:
			s.status = fmt.Sprintf("Init:%d/%d", i, len(p.Spec.InitContainers))
		}
		return true, sidecars
	}
	return false, sidecars
}

func (s *podSummary) containers(p *v1.Pod) {
	running, failed := false, ""
	for i := len(p.Status.ContainerStatuses) - 1; i >= 0; i-- {
		c := &p.Status.ContainerStatuses[i]
		s.countRestarts(c)
		switch {
		case c.State.Waiting != nil && c.State.Waiting.Reason != "":
			s.status = c.State.Waiting.Reason
		case c.State.Terminated != nil:
			s.status = endReason(c.State.Terminated)
			if c.State.Terminated.ExitCode != 0 {
				failed = s.status
			}
		case c.Ready && c.State.Running != nil:
			running = true
			s.ready++
		}
	}
	if s.status != "Completed" {
		return
	}
	switch {
	case running && conditionTrue(p, v1.PodReady):
		s.status = "Running"
	case failed != "":
		s.status = failed
	case running:
		s.status = "NotReady"
	}
}

func endReason(t *v1.ContainerStateTerminated) string {
	switch {
	case t.Reason != "":
		return t.Reason
	case t.Signal != 0:
		return fmt.Sprintf("Signal:%d", t.Signal)
	}
	return fmt.Sprintf("ExitCode:%d", t.ExitCode)
}

func conditionTrue(p *v1.Pod, t v1.PodConditionType) bool {
	for i := range p.Status.Conditions {
		if c := &p.Status.Conditions[i]; c.Type == t {
			return c.Status == v1.ConditionTrue
		}
	}
	return false
}

func (t tables) event(e *v1.Event) metav1.TableRow {
	first, last, count := e.FirstTimestamp.Time, e.LastTimestamp.Time, e.Count
	if first.IsZero() {
		first = e.EventTime.Time
	}
	if last.IsZero() {
		last = first
	}
	if e.Series != nil {
		last, count = e.Series.LastObservedTime.Time, e.Series.Count
	}
	target := strings.ToLower(e.InvolvedObject.Kind)
	if e.InvolvedObject.Name != "" {
		target += "/" + e.InvolvedObject.Name
	}
	source, host := e.Source.Component, e.Source.Host
	if source == "" {
		source = e.ReportingController
	}
	if host == "" {
		host = e.ReportingInstance
	}
	if host != "" {
		source += ", " + host
	}
	return metav1.TableRow{
		Cells: []any{
			t.age(last), e.Type, e.Reason, target, e.InvolvedObject.FieldPath, source,
			strings.TrimSpace(e.Message), t.age(first), int64(max(count, 1)), e.Name,
		},
		Object: t.object(e, e.ObjectMeta),
	}
}
