package status

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/podworker/lifecycle"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

var began = time.Date(2026, 3, 1, 12, 0, 0, 123, time.UTC)

func testPod(policy v1.RestartPolicy, init, app string) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "u"}}
	p.Spec.RestartPolicy = policy
	for _, name := range strings.Fields(init) {
		p.Spec.InitContainers = append(p.Spec.InitContainers, v1.Container{Name: name, Image: "img"})
	}
	for _, name := range strings.Fields(app) {
		p.Spec.Containers = append(p.Spec.Containers, v1.Container{Name: name, Image: "img"})
	}
	return p
}

// observe reads "name=state[:code][#attempt]" words, newest first.
func observe(ready bool, init string, words ...string) runtime.Pod {
	o := runtime.Pod{UID: "u", Sandboxes: []runtime.Sandbox{{ID: "s", Ready: ready}}}
	if ready {
		o.Sandboxes[0].IPs = []string{"10.88.0.7", "fd00::7"}
	}
	for _, w := range words {
		w, attempt, _ := strings.Cut(w, "#")
		name, state, _ := strings.Cut(w, "=")
		c := runtime.Container{Name: name, SandboxID: "s", Init: strings.Contains(" "+init+" ", " "+name+" "), ImageRef: "img@sha256:1"}
		fmt.Sscan(attempt, &c.Attempt)
		c.ID = fmt.Sprintf("%s-%d", name, c.Attempt)
		state, code, exited := strings.Cut(state, ":")
		c.State = runtime.ContainerState(state)
		if c.State != runtime.StateCreated {
			c.StartedAt = began.Add(time.Second)
		}
		if exited {
			fmt.Sscan(code, &c.ExitCode)
			c.FinishedAt = began.Add(2 * time.Second)
		}
		o.Containers = append(o.Containers, c)
	}
	return o
}

// brief is a status in one line: phase, ready condition, containers.
func brief(st v1.PodStatus) string {
	b := []string{string(st.Phase)}
	if st.Reason != "" {
		b = append(b, st.Reason)
	}
	for _, c := range st.Conditions {
		if c.Status == v1.ConditionTrue && c.Type != v1.PodScheduled && c.Type != v1.ContainersReady {
			b = append(b, "+"+string(c.Type))
		}
	}
	for _, c := range append(append([]v1.ContainerStatus{}, st.InitContainerStatuses...), st.ContainerStatuses...) {
		s := c.Name + "="
		switch {
		case c.State.Running != nil:
			s += "running"
		case c.State.Terminated != nil:
			s += fmt.Sprintf("%s:%d", c.State.Terminated.Reason, c.State.Terminated.ExitCode)
		case c.State.Waiting != nil:
			s += "waits:" + c.State.Waiting.Reason
		}
		if l := c.LastTerminationState.Terminated; l != nil {
			s += fmt.Sprintf(",last:%d", l.ExitCode)
		}
		if c.RestartCount > 0 {
			s += fmt.Sprintf("#%d", c.RestartCount)
		}
		if c.Ready {
			s += "*"
		}
		b = append(b, s)
	}
	return strings.Join(b, " ")
}

const (
	up   = "+PodReadyToStartContainers "
	all3 = "+PodReadyToStartContainers +Initialized +Ready "
)

func TestPhaseAndContainers(t *testing.T) {
	crash := map[string]v1.ContainerStateWaiting{"a": {Reason: ReasonCrashLoopBackOff}}
	cannot := map[string]v1.ContainerStateWaiting{"a": {Reason: "RunContainerError"}}
	for name, tc := range map[string]struct {
		policy    v1.RestartPolicy
		init, app string
		observed  runtime.Pod
		waiting   map[string]v1.ContainerStateWaiting
		want      string
	}{
		"nothing yet":            {app: "a", want: "Pending +Initialized a=waits:ContainerCreating"},
		"nothing yet, with init": {init: "i", app: "a", want: "Pending i=waits:PodInitializing a=waits:PodInitializing"},
		"image missing":          {app: "a", observed: observe(true, ""), waiting: map[string]v1.ContainerStateWaiting{"a": {Reason: "ErrImagePull"}}, want: "Pending " + up + "+Initialized a=waits:ErrImagePull"},
		"init runs":              {init: "i", app: "a", observed: observe(true, "i", "i=running"), want: "Pending " + up + "i=running a=waits:PodInitializing"},
		"init done":              {init: "i", app: "a", observed: observe(true, "i", "i=exited:0"), want: "Pending " + up + "+Initialized i=Completed:0* a=waits:PodInitializing"},
		"init failed for good":   {policy: v1.RestartPolicyNever, init: "i", app: "a", observed: observe(true, "i", "i=exited:3"), want: "Failed " + up + "i=Error:3 a=waits:PodInitializing"},
		"init backs off":         {init: "a", app: "b", observed: observe(true, "a", "a=exited:3#2"), waiting: crash, want: "Pending " + up + "a=waits:CrashLoopBackOff,last:3#2 b=waits:PodInitializing"},
		"runs":                   {app: "a b", observed: observe(true, "", "a=running", "b=running"), want: "Running " + all3 + "a=running* b=running*"},
		"one of two":             {app: "a b", observed: observe(true, "", "a=running", "b=created"), want: "Pending " + up + "+Initialized a=running* b=waits:ContainerCreating"},
		"one crashed":            {app: "a b", observed: observe(true, "", "a=exited:1", "b=running"), waiting: crash, want: "Running " + up + "+Initialized a=waits:CrashLoopBackOff,last:1 b=running*"},
		"restarted":              {app: "a", observed: observe(true, "", "a=running#2", "a=exited:7#1"), want: "Running " + all3 + "a=running,last:7#2*"},
		"init gone, app runs":    {init: "i", app: "a", observed: observe(true, "i", "a=running"), want: "Running " + all3 + "i=waits:PodInitializing a=running*"},
		"succeeded":              {policy: v1.RestartPolicyNever, app: "a b", observed: observe(false, "", "a=exited:0", "b=exited:0"), want: "Succeeded +Initialized a=Completed:0 b=Completed:0"},
		"failed":                 {policy: v1.RestartPolicyNever, app: "a b", observed: observe(false, "", "a=exited:0", "b=exited:137"), want: "Failed +Initialized a=Completed:0 b=Error:137"},
		"cannot start, for good": {policy: v1.RestartPolicyNever, app: "a", observed: observe(true, "", "a=exited:128"), waiting: cannot, want: "Failed " + up + "+Initialized a=Error:128"},
		"cannot start":           {app: "a", observed: observe(true, "", "a=exited:128"), waiting: cannot, want: "Running " + up + "+Initialized a=waits:RunContainerError,last:128"},
		"one still runs":         {policy: v1.RestartPolicyNever, app: "a b", observed: observe(true, "", "a=exited:1", "b=running"), want: "Running " + up + "+Initialized a=Error:1 b=running*"},
		"on failure, ok":         {policy: v1.RestartPolicyOnFailure, app: "a", observed: observe(true, "", "a=exited:0#1", "a=exited:1#0"), want: "Succeeded " + up + "+Initialized a=Completed:0,last:1#1"},
		"on failure, again":      {policy: v1.RestartPolicyOnFailure, app: "a", observed: observe(true, "", "a=exited:1"), want: "Running " + up + "+Initialized a=Error:1"},
	} {
		t.Run(name, func(t *testing.T) {
			policy := tc.policy
			if policy == "" {
				policy = v1.RestartPolicyAlways
			}
			got := brief(Compute(Input{
				Pod: testPod(policy, tc.init, tc.app), Observed: tc.observed, Waiting: tc.waiting, RuntimeName: "containerd", Accepted: began, Now: began,
			}))
			if got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestRefusedPod(t *testing.T) {
	st := Compute(Input{Pod: testPod(v1.RestartPolicyAlways, "", "a"), Refused: &Refusal{"NodePorts", "taken"}, NodeIPs: []string{"192.0.2.1"}, Accepted: began, Now: began})
	if st.Phase != v1.PodFailed || st.Reason != "NodePorts" || st.Message != "taken" || st.HostIP != "192.0.2.1" || st.ContainerStatuses != nil {
		t.Errorf("%+v", st)
	}
}

func TestEvictedPod(t *testing.T) {
	in := Input{Pod: testPod(v1.RestartPolicyAlways, "", "a"), Observed: observe(true, "", "a=running"),
		Evicted: &Refusal{"Evicted", "too large"}, Accepted: began, Now: began}
	disrupted := func(st v1.PodStatus) bool {
		return slices.ContainsFunc(st.Conditions, func(c v1.PodCondition) bool {
			return c.Type == v1.DisruptionTarget && c.Status == v1.ConditionTrue && c.Reason == "TerminationByKubelet" && c.Message == "too large"
		})
	}
	if disrupted(Compute(in)) {
		t.Error("it was its own fault")
	}
	in.Disrupted = true
	st := Compute(in)
	if !disrupted(st) {
		t.Errorf("%+v", st.Conditions)
	}
	if st.Phase != v1.PodFailed || st.Reason != "Evicted" || st.Message != "too large" || len(st.ContainerStatuses) != 1 {
		t.Errorf("%+v", st)
	}
	in.Pod.Status, in.Evicted = st, nil // a restarted agent knows it from the status only
	in.Observed = observe(false, "", "a=exited:137")
	if got := Compute(in); got.Phase != v1.PodFailed || got.Reason != "Evicted" || got.Message != "too large" || !disrupted(got) {
		t.Errorf("after a restart: %+v", got)
	}
}

func TestAddresses(t *testing.T) {
	in := Input{Pod: testPod(v1.RestartPolicyNever, "", "a"), Observed: observe(true, "", "a=running"), NodeIPs: []string{"192.0.2.1", "2001:db8::1"}, Accepted: began, Now: began}
	st := Compute(in)
	if st.PodIP != "10.88.0.7" || len(st.PodIPs) != 2 || st.HostIP != "192.0.2.1" || len(st.HostIPs) != 2 {
		t.Errorf("pod network: %+v", st)
	}
	in.Pod.Spec.HostNetwork = true
	if st := Compute(in); st.PodIP != "192.0.2.1" || len(st.PodIPs) != 2 {
		t.Errorf("host network: %+v", st.PodIPs)
	}
	in.Pod.Spec.HostNetwork = false
	in.Pod.Status = st
	in.Observed = observe(false, "", "a=exited:0")
	if end := Compute(in); end.Phase != v1.PodSucceeded || end.PodIP != "10.88.0.7" {
		t.Errorf("a finished pod shows the address it had: %+v", end)
	}
	in.Pod.Spec.RestartPolicy = v1.RestartPolicyAlways
	if lost := Compute(in); lost.PodIP != "" {
		t.Errorf("a pod whose sandbox is being made anew has no address: %q", lost.PodIP)
	}
}

// TestWhatIsKept: a final phase never changes back, a condition keeps its time
// while it does not change, and the runtime forgetting a container does not
// make it not have happened.
func TestWhatIsKept(t *testing.T) {
	in := Input{Pod: testPod(v1.RestartPolicyNever, "", "a"), Observed: observe(true, "", "a=running"), RuntimeName: "containerd", Accepted: began, Now: began}
	in.Pod.Status = Compute(in)
	in.Now = began.Add(time.Hour)
	in.Observed = observe(false, "", "a=exited:0")
	in.Messages = map[string]string{"a-0": "bye"}
	done := Compute(in)
	for _, c := range done.Conditions {
		moved := c.LastTransitionTime.Equal(&metav1.Time{Time: in.Now.Truncate(time.Second)})
		changed := c.Type == v1.PodReady || c.Type == v1.ContainersReady || c.Type == v1.PodReadyToStartContainers
		if moved != changed {
			t.Errorf("%s moved: %t, want %t", c.Type, moved, changed)
		}
	}
	if m := done.ContainerStatuses[0].State.Terminated; m == nil || m.Message != "bye" || m.ContainerID != "containerd://a-0" {
		t.Errorf("%+v", m)
	}
	in.Pod.Status = done
	in.Observed = runtime.Pod{UID: "u"}
	if got, want := brief(Compute(in)), brief(done); got != want {
		t.Errorf("after collection: %s, want %s", got, want)
	}
	in.Observed = observe(true, "", "a=running")
	if st := Compute(in); st.Phase != v1.PodSucceeded {
		t.Errorf("phase %s", st.Phase)
	}
}

// TestUnready: a probed container runs and has started, and is not ready; the
// transition has a time of its own.
func TestUnready(t *testing.T) {
	p := testPod(v1.RestartPolicyAlways, "", "a b")
	in := Input{Pod: p, Observed: observe(true, "", "a=running", "b=running"), Now: began, Known: map[string]lifecycle.Known{
		"a-0": {Hooked: true, Started: true}, "b-0": {Hooked: true, Started: true, Ready: true}}}
	p.Status = Compute(in)
	if got, want := brief(p.Status), "Running "+up+"+Initialized a=running b=running*"; got != want || !*p.Status.ContainerStatuses[0].Started {
		t.Errorf("%s, want %s", got, want)
	}
	in.Known, in.Now = nil, began.Add(time.Minute)
	st := Compute(in)
	for _, c := range st.Conditions {
		changed := c.Type == v1.PodReady || c.Type == v1.ContainersReady
		if changed != c.LastTransitionTime.Time.Equal(in.Now.Truncate(time.Second)) || changed && c.Status != v1.ConditionTrue {
			t.Errorf("condition %+v", c)
		}
	}
}

// TestReadinessGates: a pod whose containers are ready is, once the conditions
// that it names are True; what others have set stays.
func TestReadinessGates(t *testing.T) {
	p := testPod(v1.RestartPolicyAlways, "", "a")
	p.Generation = 3
	p.Spec.ReadinessGates = []v1.PodReadinessGate{{ConditionType: "example.com/open"}}
	in := Input{Pod: p, Observed: observe(true, "", "a=running"), Now: began}
	ready := func() (c v1.PodCondition) {
		p.Status = Compute(in)
		for _, c = range p.Status.Conditions {
			if c.Type == v1.PodReady {
				break
			}
		}
		return c
	}
	if c := ready(); c.Status != v1.ConditionFalse || c.Reason != "ReadinessGatesNotReady" || c.ObservedGeneration != 3 ||
		c.Message != `corresponding condition of pod readiness gate "example.com/open" does not exist.` {
		t.Errorf("no condition: %+v", c)
	}
	p.Status.Conditions = append(p.Status.Conditions, v1.PodCondition{Type: "example.com/open", Status: v1.ConditionFalse})
	if c := ready(); c.Status != v1.ConditionFalse || c.Message != `the status of pod readiness gate "example.com/open" is not "True", but False` {
		t.Errorf("closed: %+v", c)
	}
	p.Status.Conditions[0].Status = v1.ConditionTrue
	if c := ready(); c.Status != v1.ConditionTrue || p.Status.Conditions[0].Type != "example.com/open" || len(p.Status.Conditions) != 6 {
		t.Errorf("open: %+v", p.Status.Conditions)
	}
}

// TestSidecarsAndEphemeralContainers: sidecars count for readiness and hold the
// pod's end up, containers for debugging do neither.
func TestSidecarsAndEphemeralContainers(t *testing.T) {
	always := v1.ContainerRestartPolicyAlways
	p := testPod(v1.RestartPolicyNever, "side", "a")
	p.Spec.InitContainers[0].RestartPolicy = &always
	p.Spec.EphemeralContainers = []v1.EphemeralContainer{{EphemeralContainerCommon: v1.EphemeralContainerCommon{Name: "debug", Image: "img"}}}
	for name, tc := range map[string]struct {
		observed runtime.Pod
		known    map[string]lifecycle.Known
		want     string
	}{
		"the sidecar starts":    {observe(true, "side", "side=running"), map[string]lifecycle.Known{"side-0": {Hooked: true}}, "Pending " + up + "side=running a=waits:PodInitializing"},
		"it has started":        {observe(true, "side", "side=running"), map[string]lifecycle.Known{"side-0": {Hooked: true, Started: true}}, "Pending " + up + "+Initialized side=running a=waits:PodInitializing"},
		"it is not ready":       {observe(true, "side", "a=running", "side=running"), map[string]lifecycle.Known{"side-0": {Hooked: true, Started: true}}, "Running " + up + "+Initialized side=running a=running*"},
		"all are":               {observe(true, "side", "debug=running", "a=running", "side=running"), nil, "Running " + all3 + "side=running* a=running*"},
		"the others have ended": {observe(true, "side", "a=exited:0", "side=running"), nil, "Running " + up + "+Initialized side=running* a=Completed:0"},
		"all have":              {observe(false, "side", "a=exited:0", "side=exited:137"), nil, "Succeeded +Initialized side=Error:137 a=Completed:0"},
		"its hook runs":         {observe(true, "side", "a=running", "side=running"), map[string]lifecycle.Known{"a-0": {}}, "Pending " + up + "+Initialized side=running* a=waits:PodInitializing"},
	} {
		st := Compute(Input{Pod: p, Observed: tc.observed, Known: tc.known, Now: began})
		if got := brief(st); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
		if d := st.EphemeralContainerStatuses; len(d) != 1 || d[0].Ready || (d[0].State.Running != nil) != (name == "all are") {
			t.Errorf("%s: debug %+v", name, d)
		}
	}
}

// TestMessagesHaveALimit: what containers leave to say has a limit per pod.
func TestMessagesHaveALimit(t *testing.T) {
	names := strings.Fields("a b c d e f g h")
	p := testPod(v1.RestartPolicyNever, "", strings.Join(names, " "))
	in := Input{Pod: p, Observed: observe(false, "", "a=exited:0"), Messages: map[string]string{"a-0": strings.Repeat("é", 2000)}, Now: began}
	if got := Compute(in).ContainerStatuses[0].State.Terminated.Message; got != strings.Repeat("é", maxMessages/8/2) {
		t.Errorf("%d bytes", len(got))
	}
}

func TestVolumeMountsAndResources(t *testing.T) {
	p := testPod(v1.RestartPolicyAlways, "", "a")
	enabled := v1.RecursiveReadOnlyEnabled
	p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "w", MountPath: "/w"}, {Name: "r", MountPath: "/r", ReadOnly: true}, {Name: "rr", MountPath: "/rr", ReadOnly: true, RecursiveReadOnly: &enabled}}
	p.Spec.Containers[0].Resources.Requests = v1.ResourceList{v1.ResourceCPU: resource.MustParse("2")}
	before := v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse("1")}}
	observed := observe(true, "", "a=running")
	observed.Containers[0].User = &v1.LinuxContainerUser{UID: 7}
	st := Compute(Input{Pod: p, Observed: observed, Now: began,
		Known: map[string]lifecycle.Known{"a-0": {Hooked: true, Started: true, Ready: true, Applied: &before}}})
	c := st.ContainerStatuses[0]
	if m := c.VolumeMounts; len(m) != 3 || m[0].RecursiveReadOnly != nil || *m[1].RecursiveReadOnly != v1.RecursiveReadOnlyDisabled || *m[2].RecursiveReadOnly != enabled {
		t.Errorf("%+v", m)
	}
	if c.Resources.Requests.Cpu().String() != "1" || c.AllocatedResources.Cpu().String() != "2" {
		t.Errorf("%+v", c)
	}
	if c.User == nil || c.User.Linux.UID != 7 {
		t.Errorf("user %+v", c.User)
	}
	if last := st.Conditions[len(st.Conditions)-1]; last.Type != v1.PodResizeInProgress || last.Status != v1.ConditionTrue {
		t.Errorf("%+v", st.Conditions)
	}
}

// TestRestartingCondition: a pod that begins anew says so until it has.
func TestRestartingCondition(t *testing.T) {
	p := testPod(v1.RestartPolicyNever, "", "a b")
	never := v1.ContainerRestartPolicyNever
	p.Spec.Containers[0].RestartPolicy = &never
	p.Spec.Containers[0].RestartPolicyRules = []v1.ContainerRestartRule{{Action: v1.ContainerRestartRuleActionRestartAllContainers,
		ExitCodes: &v1.ContainerRestartRuleOnExitCodes{Operator: v1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{88}}}}
	for what, want := range map[string]v1.ConditionStatus{"a=exited:88 b=running": v1.ConditionTrue, "a=running b=running": v1.ConditionFalse, "a=exited:1 b=running": v1.ConditionFalse} {
		st := Compute(Input{Pod: p, Observed: observe(true, "", strings.Fields(what)...), Now: began})
		if last := st.Conditions[len(st.Conditions)-1]; last.Type != v1.AllContainersRestarting || last.Status != want {
			t.Errorf("%s: %+v", what, last)
		}
		if st.Phase != v1.PodRunning {
			t.Errorf("%s: phase %s", what, st.Phase)
		}
	}
}
