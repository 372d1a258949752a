package server

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/server/api"
)

// tables makes metav1.Tables, kubectl's printed form of lists.
type tables struct {
	now     time.Time
	include metav1.IncludeObjectPolicy
}

func (s *Server) tables(r *http.Request) (tables, error) {
	t := tables{now: s.o.Now(), include: metav1.IncludeObjectPolicy(r.URL.Query().Get("includeObject"))}
	switch t.include {
	case "", metav1.IncludeNone, metav1.IncludeMetadata, metav1.IncludeObject:
		return t, nil
	}
	return t, apierrors.NewBadRequest(fmt.Sprintf("unrecognized includeObject value: %q", t.include))
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
func (t tables) object(o manifest.Resource) runtime.RawExtension {
	switch t.include {
	case metav1.IncludeNone:
		return runtime.RawExtension{}
	case metav1.IncludeObject:
		return runtime.RawExtension{Object: o}
	}
	return runtime.RawExtension{Object: metadataOf(o)}
}

// age is how long ago something was, as kubectl prints it.
func (t tables) age(at time.Time) string {
	if at.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(t.now.Sub(at))
}

func (t tables) pod(o manifest.Resource) metav1.TableRow {
	p := o.(*v1.Pod)
	sum := pod.Summarise(p)
	ip := ""
	if len(p.Status.PodIPs) > 0 {
		ip = p.Status.PodIPs[0].IP
	}
	row := metav1.TableRow{
		Cells: []any{
			p.Name, fmt.Sprintf("%d/%d", sum.Ready, sum.Total), sum.Status, sum.RestartsText(t.now), t.age(p.CreationTimestamp.Time),
			orNone(ip), orNone(p.Spec.NodeName), orNone(p.Status.NominatedNodeName), pod.ReadinessGates(p),
		},
		Object: t.object(p),
	}
	if pod.IsTerminal(p.Status.Phase) {
		row.Conditions = []metav1.TableRowCondition{{
			Type: metav1.RowCompleted, Status: metav1.ConditionTrue, Reason: string(p.Status.Phase),
			Message: "The pod has ended and is not restarted.",
		}}
	}
	return row
}

// resourceColumns are kubectl's names of a kind's columns.
func resourceColumns(k servedKind) (out []metav1.TableColumnDefinition) {
	for i, c := range api.Columns(k.Name) {
		format, priority := "", int32(0)
		if i == 0 {
			format = "name"
		}
		if c.Wide {
			priority = 1
		}
		out = append(out, column(c.Name, format, priority))
	}
	return out
}

func (t tables) resource(o manifest.Resource) metav1.TableRow {
	var cells []any
	for _, c := range api.Cells(o, t.age(o.GetCreationTimestamp().Time)) {
		cells = append(cells, c)
	}
	return metav1.TableRow{Cells: cells, Object: t.object(o)}
}

func nodeColumns() []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		column("Name", "name", 0), column("Status", "", 0), column("Roles", "", 0), column("Age", "", 0), column("Version", "", 0),
		column("Internal-IP", "", 1), column("External-IP", "", 1), column("OS-Image", "", 1), column("Kernel-Version", "", 1),
		column("Container-Runtime", "", 1),
	}
}

func (t tables) node(o manifest.Resource) metav1.TableRow {
	n := o.(*v1.Node)
	status, internal := "NotReady", ""
	for _, c := range n.Status.Conditions {
		if c.Type == v1.NodeReady && c.Status == v1.ConditionTrue {
			status = "Ready"
		}
	}
	for _, a := range n.Status.Addresses {
		if a.Type == v1.NodeInternalIP && internal == "" {
			internal = a.Address
		}
	}
	var roles []string
	for _, label := range slices.Sorted(maps.Keys(n.Labels)) {
		if role, found := strings.CutPrefix(label, "node-role.kubernetes.io/"); found && role != "" {
			roles = append(roles, role)
		}
	}
	i := n.Status.NodeInfo
	return metav1.TableRow{
		Cells: []any{
			n.Name, status, orNone(strings.Join(roles, ",")), t.age(n.CreationTimestamp.Time), i.KubeletVersion,
			orNone(internal), "<none>", orUnknown(i.OSImage), orUnknown(i.KernelVersion), orUnknown(i.ContainerRuntimeVersion),
		},
		Object: t.object(n),
	}
}

func orUnknown(s string) string {
	if s == "" {
		return "<unknown>"
	}
	return s
}

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}

func (t tables) event(o manifest.Resource) metav1.TableRow {
	e := o.(*v1.Event)
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
		Object: t.object(e),
	}
}
