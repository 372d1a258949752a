package server

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const acceptTable = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"

// row is a row of a Table as people read it.
func row(r metav1.TableRow, cells int) string {
	var out []string
	for _, c := range r.Cells[:cells] {
		out = append(out, fmt.Sprint(c))
	}
	return strings.Join(out, " | ")
}

func ago(d time.Duration) metav1.Time { return metav1.NewTime(epoch.Add(time.Hour - d)) }

func waiting(reason string) v1.ContainerState {
	return v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: reason}}
}

func ended(code int32, reason string) v1.ContainerState {
	return v1.ContainerState{Terminated: &v1.ContainerStateTerminated{ExitCode: code, Reason: reason, FinishedAt: ago(5 * time.Minute)}}
}

func running() v1.ContainerState {
	return v1.ContainerState{Running: &v1.ContainerStateRunning{}}
}

func containerIs(name string, st v1.ContainerState, restarts int32) v1.ContainerStatus {
	return v1.ContainerStatus{Name: name, State: st, Ready: st.Running != nil, RestartCount: restarts}
}

// TestPodRow pins kubectl's READY, STATUS and RESTARTS.
func TestPodRow(t *testing.T) {
	always := v1.ContainerRestartPolicyAlways
	restarted := containerIs("app", running(), 3)
	restarted.LastTerminationState = ended(1, "Error")
	signalled := ended(137, "")
	signalled.Terminated.Signal = 9
	started := containerIs("side", running(), 1)
	started.Started = new(true)
	done := containerIs("init", ended(0, "Completed"), 2)
	ready := []v1.PodCondition{{Type: v1.PodReady, Status: v1.ConditionTrue}}
	initialized := []v1.PodCondition{{Type: v1.PodInitialized, Status: v1.ConditionTrue}}
	for _, tt := range []struct {
		want         string // ready | status | restarts
		phase        v1.PodPhase
		init, app    []v1.ContainerStatus
		conditions   []v1.PodCondition
		reason       string
		deleted      bool
		second, side bool // the spec has a second container, a sidecar
	}{
		{want: "0/1 | Pending | 0", phase: v1.PodPending},
		{want: "0/1 | ContainerCreating | 0", phase: v1.PodPending, app: []v1.ContainerStatus{containerIs("app", waiting("ContainerCreating"), 0)}},
		{want: "1/1 | Running | 0", phase: v1.PodRunning, app: []v1.ContainerStatus{containerIs("app", running(), 0)}},
		{want: "1/1 | Running | 3 (5m ago)", phase: v1.PodRunning, app: []v1.ContainerStatus{restarted}},
		{want: "0/1 | CrashLoopBackOff | 4", phase: v1.PodRunning, app: []v1.ContainerStatus{containerIs("app", waiting("CrashLoopBackOff"), 4)}},
		{want: "0/1 | Completed | 0", phase: v1.PodSucceeded, app: []v1.ContainerStatus{containerIs("app", ended(0, "Completed"), 0)}},
		{want: "0/1 | ExitCode:3 | 0", phase: v1.PodFailed, app: []v1.ContainerStatus{containerIs("app", ended(3, ""), 0)}},
		{want: "0/1 | Signal:9 | 0", phase: v1.PodFailed, app: []v1.ContainerStatus{containerIs("app", signalled, 0)}},
		{want: "0/1 | Evicted | 0", phase: v1.PodFailed, reason: "Evicted"},
		{want: "1/1 | Terminating | 0", phase: v1.PodRunning, deleted: true, app: []v1.ContainerStatus{containerIs("app", running(), 0)}},
		{want: "0/1 | Completed | 0", phase: v1.PodSucceeded, deleted: true, app: []v1.ContainerStatus{containerIs("app", ended(0, "Completed"), 0)}},
		{want: "1/2 | NotReady | 0", phase: v1.PodRunning, second: true,
			app: []v1.ContainerStatus{containerIs("app", ended(0, "Completed"), 0), containerIs("second", running(), 0)}},
		{want: "1/2 | Running | 0", phase: v1.PodRunning, second: true, conditions: ready,
			app: []v1.ContainerStatus{containerIs("app", ended(0, "Completed"), 0), containerIs("second", running(), 0)}},
		{want: "0/2 | Error | 0", phase: v1.PodFailed, second: true,
			app: []v1.ContainerStatus{containerIs("app", ended(0, "Completed"), 0), containerIs("second", ended(1, "Error"), 0)}},
		{want: "0/1 | Init:0/1 | 0", phase: v1.PodPending, init: []v1.ContainerStatus{containerIs("init", running(), 0)}},
		{want: "0/1 | Init:0/1 | 0", phase: v1.PodPending, init: []v1.ContainerStatus{containerIs("init", waiting("PodInitializing"), 0)}},
		{want: "0/1 | Init:ErrImagePull | 0", phase: v1.PodPending, init: []v1.ContainerStatus{containerIs("init", waiting("ErrImagePull"), 0)}},
		{want: "0/1 | Init:ExitCode:7 | 1", phase: v1.PodPending, init: []v1.ContainerStatus{containerIs("init", ended(7, ""), 1)}},
		{want: "1/1 | Running | 0", phase: v1.PodRunning, init: []v1.ContainerStatus{done}, app: []v1.ContainerStatus{containerIs("app", running(), 0)}},
		{want: "1/2 | Init:1/2 | 3", phase: v1.PodPending, side: true, init: []v1.ContainerStatus{started, containerIs("init", running(), 2)}},
		{want: "2/2 | Running | 1", phase: v1.PodRunning, side: true, init: []v1.ContainerStatus{started, done}, conditions: initialized,
			app: []v1.ContainerStatus{containerIs("app", running(), 0)}},
	} {
		p := &v1.Pod{Spec: v1.PodSpec{Containers: []v1.Container{{Name: "app"}}, InitContainers: []v1.Container{{Name: "init"}}}}
		p.Status = v1.PodStatus{Phase: tt.phase, Reason: tt.reason, InitContainerStatuses: tt.init, ContainerStatuses: tt.app, Conditions: tt.conditions}
		if tt.second {
			p.Spec.Containers = append(p.Spec.Containers, v1.Container{Name: "second"})
		}
		if tt.side {
			p.Spec.InitContainers = append([]v1.Container{{Name: "side", RestartPolicy: &always}}, p.Spec.InitContainers...)
		}
		if tt.deleted {
			p.DeletionTimestamp = new(ago(0))
		}
		p.Name, p.CreationTimestamp = "web", ago(time.Hour)
		if got, want := row(tables{now: epoch.Add(time.Hour)}.pod(p), 5), "web | "+tt.want+" | 60m"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func TestTables(t *testing.T) {
	s := start(t, nil)
	p := s.create(t, "web", "")
	table := func(path string) metav1.Table {
		t.Helper()
		var tab metav1.Table
		s.call(t, "GET", path, "", "Accept", acceptTable).code(200).into(&tab)
		if tab.Kind != "Table" || tab.APIVersion != "meta.k8s.io/v1" || tab.ResourceVersion == "" {
			t.Errorf("%s: %+v of version %q", path, tab.TypeMeta, tab.ResourceVersion)
		}
		for _, r := range tab.Rows {
			if len(r.Cells) != len(tab.ColumnDefinitions) {
				t.Errorf("%s: %d cells in %d columns", path, len(r.Cells), len(tab.ColumnDefinitions))
			}
		}
		return tab
	}
	for _, path := range []string{podsPath, podsPath + "/web"} {
		tab := table(path)
		if len(tab.Rows) != 1 || !strings.HasPrefix(row(tab.Rows[0], 4), "web | 0/1 | Pending | 0") {
			t.Fatalf("%s: %+v", path, tab.Rows)
		}
		if got := row(metav1.TableRow{Cells: tab.Rows[0].Cells[5:]}, 4); got != "<none> | "+nodeName+" | <none> | <none>" {
			t.Errorf("the wide columns are %s", got)
		}
	}
	if tab := table("/api/v1/namespaces/empty/pods"); tab.Rows == nil || len(tab.Rows) != 0 || len(tab.ColumnDefinitions) == 0 {
		t.Errorf("nothing to show is %+v", tab)
	}
	// What a row carries of its object.
	for include, want := range map[string]string{"": "PartialObjectMetadata", "Metadata": "PartialObjectMetadata", "Object": "Pod", "None": ""} {
		raw := table(podsPath + "?includeObject=" + include).Rows[0].Object.Raw
		var o object
		if len(raw) > 0 {
			if err := json.Unmarshal(raw, &o); err != nil {
				t.Fatal(err)
			}
		}
		if o.Kind != want || (want != "" && o.Metadata.UID != p.UID) {
			t.Errorf("includeObject=%s: a %q of UID %s, want a %q", include, o.Kind, o.Metadata.UID, want)
		}
	}
	for _, path := range []string{podsPath, podsPath + "/web"} {
		s.call(t, "GET", path+"?includeObject=Everything", "", "Accept", acceptTable).status(400, metav1.StatusReasonBadRequest)
	}

	w := s.watch(t, podsPath+"?watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan", "Accept", acceptTable)
	s.status(t, "web", phase(v1.PodSucceeded))
	for i, want := range []string{"ADDED", "BOOKMARK", "MODIFIED"} {
		x := w.next()
		var tab metav1.Table
		if err := json.Unmarshal(x.Object, &tab); err != nil || x.Type != want || tab.Kind != "Table" {
			t.Fatalf("%s %s, want a Table that is %s", x.Type, x.Object, want)
		}
		if columns := len(tab.ColumnDefinitions); (columns > 0) != (i == 0) {
			t.Errorf("frame %d has %d columns; the first alone has them", i, columns)
		}
		if want == "MODIFIED" && (len(tab.Rows[0].Conditions) != 1 || tab.Rows[0].Conditions[0].Type != metav1.RowCompleted) {
			t.Errorf("the row of a pod that has ended: %+v", tab.Rows[0].Conditions)
		}
	}
}

func TestEventRow(t *testing.T) {
	tab := tables{now: epoch.Add(time.Hour)}
	e := &v1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: "web.1"}, Type: "Warning", Reason: "BackOff", Message: "again\n", Count: 3,
		InvolvedObject: v1.ObjectReference{Kind: "Pod", Name: "web", FieldPath: "spec.containers{app}"},
		Source:         v1.EventSource{Component: "nodeagent", Host: "n1"}, FirstTimestamp: ago(time.Hour), LastTimestamp: ago(time.Minute),
	}
	if got, want := row(tab.event(e), 10), "60s | Warning | BackOff | pod/web | spec.containers{app} | nodeagent, n1 | again | 60m | 3 | web.1"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	// The newer form of the API.
	e = &v1.Event{EventTime: metav1.NewMicroTime(ago(time.Hour).Time), ReportingController: "c", ReportingInstance: "i",
		Series: &v1.EventSeries{Count: 9, LastObservedTime: metav1.NewMicroTime(ago(time.Second).Time)}}
	if got, want := row(tab.event(e), 9), "1s |  |  |  |  | c, i |  | 60m | 9"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if got, want := row(tab.event(&v1.Event{}), 9), "<unknown> |  |  |  |  |  |  | <unknown> | 1"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	s := start(t, nil)
	s.events.PodEvent(s.create(t, "web", ""), "", v1.EventTypeNormal, "Started", "it runs")
	for _, path := range []string{"/api/v1/events", "/api/v1/events?watch=1"} {
		var got metav1.Table
		if strings.Contains(path, "watch") {
			if err := json.Unmarshal(s.watch(t, path, "Accept", acceptTable).next().Object, &got); err != nil {
				t.Fatal(err)
			}
		} else {
			s.call(t, "GET", path, "", "Accept", acceptTable).code(200).into(&got)
		}
		if got.Kind != "Table" || len(got.Rows) != 1 || len(got.Rows[0].Cells) != len(got.ColumnDefinitions) || got.Rows[0].Cells[2] != "Started" {
			t.Errorf("%s: %+v", path, got)
		}
	}
	list, _ := s.events.List()
	var got metav1.Table
	s.call(t, "GET", "/api/v1/namespaces/default/events/"+list[0].Name, "", "Accept", acceptTable).code(200).into(&got)
	if len(got.Rows) != 1 || got.Rows[0].Cells[9] != list[0].Name {
		t.Errorf("one event: %+v", got.Rows)
	}
}
