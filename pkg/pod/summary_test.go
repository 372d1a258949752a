package pod

import (
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// TestSummarise has what kubectl 1.37 prints for each of these. A pod has the
// containers that its status has, and one at least; the init container "side"
// is a sidecar.
func TestSummarise(t *testing.T) {
	now := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	const (
		running   = "state: {running: {}}, ready: true"
		completed = "state: {terminated: {exitCode: 0, reason: Completed}}"
		twoMin    = `lastState: {terminated: {exitCode: 1, finishedAt: "2026-03-04T11:58:00Z"}}`
		fiveMin   = `lastState: {terminated: {exitCode: 1, finishedAt: "2026-03-04T11:55:00Z"}}`
	)
	for _, tc := range []struct{ name, inits, containers, rest, want string }{
		{"accepted", "", "", "phase: Pending", "0/1 Pending 0"},
		{"being made", "", "{name: a, state: {waiting: {reason: ContainerCreating}}}", "phase: Pending", "0/1 ContainerCreating 0"},
		{"runs", "", "{name: a, " + running + "}", "phase: Running", "1/1 Running 0"},
		{"runs, not ready", "", "{name: a, state: {running: {}}}", "phase: Running", "0/1 Running 0"},
		{"restarted", "", "{name: a, " + running + ", restartCount: 3, " + twoMin + "}", "phase: Running", "1/1 Running 3 (2m ago)"},
		{"restarted, nobody knows when", "", "{name: a, " + running + ", restartCount: 3}", "phase: Running", "1/1 Running 3"},
		{"restarts add up, the last one counts", "",
			"{name: a, " + running + ", restartCount: 1, " + fiveMin + "}, {name: b, " + running + ", restartCount: 2, " + twoMin + "}", "phase: Running", "2/2 Running 3 (2m ago)"},
		{"crashes", "", "{name: a, state: {waiting: {reason: CrashLoopBackOff}}, restartCount: 5, " + fiveMin + "}", "phase: Running", "0/1 CrashLoopBackOff 5 (5m ago)"},
		{"one crashes", "", "{name: a, " + running + "}, {name: b, state: {waiting: {reason: CrashLoopBackOff}}}", "phase: Running", "1/2 CrashLoopBackOff 0"},
		{"no image", "", "{name: a, state: {waiting: {reason: ErrImagePull}}}", "phase: Pending", "0/1 ErrImagePull 0"},
		{"no image again", "", "{name: a, state: {waiting: {reason: ImagePullBackOff}}}", "phase: Pending", "0/1 ImagePullBackOff 0"},
		{"the first that says something", "", "{name: a, state: {waiting: {reason: ErrImagePull}}}, {name: b, state: {waiting: {reason: CrashLoopBackOff}}}", "phase: Pending", "0/2 ErrImagePull 0"},
		{"ended well", "", "{name: a, " + completed + "}", "phase: Succeeded", "0/1 Completed 0"},
		{"ended badly", "", "{name: a, state: {terminated: {exitCode: 3, reason: Error}}}", "phase: Failed", "0/1 Error 0"},
		{"no memory", "", "{name: a, state: {terminated: {exitCode: 137, reason: OOMKilled}}}", "phase: Running", "0/1 OOMKilled 0"},
		{"killed", "", "{name: a, state: {terminated: {exitCode: 137, signal: 9}}}", "phase: Failed", "0/1 Signal:9 0"},
		{"a code and no word", "", "{name: a, state: {terminated: {exitCode: 3}}}", "phase: Failed", "0/1 ExitCode:3 0"},
		{"one has ended, the pod is ready", "", "{name: a, " + completed + "}, {name: b, " + running + "}", "phase: Running, conditions: [{type: Ready, status: 'True'}]", "1/2 Running 0"},
		{"one has ended, the pod is not", "", "{name: a, " + completed + "}, {name: b, " + running + "}", "phase: Running", "1/2 NotReady 0"},
		{"one ended well, one badly", "", "{name: a, " + completed + "}, {name: b, state: {terminated: {exitCode: 3, reason: Error}}}", "phase: Failed", "0/2 Error 0"},

		{"at the first init container", "{name: i, state: {running: {}}}, {name: j, state: {waiting: {reason: PodInitializing}}}", "", "phase: Pending", "0/1 Init:0/2 0"},
		{"at the second", "{name: i, " + completed + "}, {name: j, state: {running: {}}}", "", "phase: Pending", "0/1 Init:1/2 0"},
		{"past them", "{name: i, " + completed + "}", "{name: a, state: {waiting: {reason: PodInitializing}}}", "phase: Pending", "0/1 PodInitializing 0"},
		{"an init container fails", "{name: i, state: {terminated: {exitCode: 1, reason: Error}}, restartCount: 1}", "", "phase: Pending", "0/1 Init:Error 1"},
		{"and again", "{name: i, state: {waiting: {reason: CrashLoopBackOff}}, restartCount: 4, " + twoMin + "}", "", "phase: Pending", "0/1 Init:CrashLoopBackOff 4 (2m ago)"},
		{"with a code", "{name: i, state: {terminated: {exitCode: 9}}}", "", "phase: Failed", "0/1 Init:ExitCode:9 0"},
		{"has no image", "{name: i, state: {waiting: {reason: ImagePullBackOff}}}", "", "phase: Pending", "0/1 Init:ImagePullBackOff 0"},
		{"their restarts are history", "{name: i, " + completed + ", restartCount: 7, " + twoMin + "}", "{name: a, " + running + "}", "phase: Running", "1/1 Running 0"},
		{"a sidecar", "{name: side, " + running + ", started: true, restartCount: 2, " + fiveMin + "}", "{name: a, " + running + ", restartCount: 1}", "phase: Running", "2/2 Running 3 (5m ago)"},
		{"a sidecar that starts", "{name: side, state: {running: {}}}", "", "phase: Pending", "0/2 Init:0/1 0"},

		{"evicted", "", "", "phase: Failed, reason: Evicted", "0/1 Evicted 0"},
		{"gated", "", "", "phase: Pending, conditions: [{type: PodScheduled, status: 'False', reason: SchedulingGated}]", "0/1 SchedulingGated 0"},
		{"is ending", "", "{name: a, " + running + "}", "phase: Running, deleted", "1/1 Terminating 0"},
		{"had ended before", "", "{name: a, " + completed + "}", "phase: Succeeded, deleted", "0/1 Completed 0"},
		{"on a node that is lost", "", "{name: a, " + running + "}", "phase: Running, reason: NodeLost, deleted", "1/1 Unknown 0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			deleted := ""
			rest, ends := strings.CutSuffix(tc.rest, ", deleted")
			if ends {
				deleted = `, deletionTimestamp: "2026-03-04T12:00:00Z"`
			}
			text := fmt.Sprintf("metadata: {name: p%s}\nstatus: {%s, initContainerStatuses: [%s], containerStatuses: [%s]}\n", deleted, rest, tc.inits, tc.containers)
			p := &v1.Pod{}
			if err := yaml.UnmarshalStrict([]byte(text), p); err != nil {
				t.Fatalf("%v in\n%s", err, text)
			}
			always := v1.ContainerRestartPolicyAlways
			for _, s := range p.Status.InitContainerStatuses {
				c := v1.Container{Name: s.Name}
				if s.Name == "side" {
					c.RestartPolicy = &always
				}
				p.Spec.InitContainers = append(p.Spec.InitContainers, c)
			}
			p.Spec.Containers = make([]v1.Container, max(1, len(p.Status.ContainerStatuses)))
			s := Summarise(p)
			if got := fmt.Sprintf("%d/%d %s %s", s.Ready, s.Total, s.Status, s.RestartsText(now)); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestReadinessGates(t *testing.T) {
	p := &v1.Pod{}
	if got := ReadinessGates(p); got != "<none>" {
		t.Errorf("without gates: %q", got)
	}
	p.Spec.ReadinessGates = []v1.PodReadinessGate{{ConditionType: "a"}, {ConditionType: "b"}, {ConditionType: "c"}}
	p.Status.Conditions = []v1.PodCondition{{Type: "a", Status: v1.ConditionTrue}, {Type: "b", Status: v1.ConditionFalse}}
	if got := ReadinessGates(p); got != "1/3" {
		t.Errorf("one of three: %q", got)
	}
}
