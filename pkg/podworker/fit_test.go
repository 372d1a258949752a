package podworker

import (
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/store"
)

func amounts(pairs ...string) v1.ResourceList {
	l := v1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		l[v1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

// sized is a pod that asks for amounts.
func sized(name string, pairs ...string) *v1.Pod {
	p := testPod(name, v1.RestartPolicyAlways, "c")
	p.Spec.Containers[0].Resources.Requests = amounts(pairs...)
	return p
}

func TestShortages(t *testing.T) {
	node := amounts("cpu", "2", "memory", "4Gi", "ephemeral-storage", "10Gi", "pods", "3", "hugepages-2Mi", "8Mi")
	overhead := sized("o", "cpu", "1500m")
	overhead.Spec.Overhead = amounts("cpu", "600m")
	whole := sized("w", "cpu", "1")
	whole.Spec.Resources = &v1.ResourceRequirements{Requests: amounts("cpu", "2500m")}
	for name, tc := range map[string]struct {
		pod    *v1.Pod
		others []*v1.Pod
		want   string // "reason: message" of each
	}{
		"fits":         {sized("a", "cpu", "2", "memory", "4Gi"), nil, ""},
		"nothing left": {sized("a"), []*v1.Pod{sized("b", "cpu", "3")}, ""},
		"cpu":          {sized("a", "cpu", "1500m"), []*v1.Pod{sized("b", "cpu", "1")}, "OutOfcpu: Pod was rejected: Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000"},
		"memory": {sized("a", "memory", "5Gi"), nil,
			"OutOfmemory: Pod was rejected: Node didn't have enough resource: memory, requested: 5368709120, used: 0, capacity: 4294967296"},
		"several, in order": {sized("a", "hugepages-2Mi", "10Mi", "ephemeral-storage", "20Gi", "cpu", "3"), []*v1.Pod{sized("b"), sized("c"), sized("d")},
			"OutOfpods, OutOfcpu, OutOfephemeral-storage, OutOfhugepages-2Mi"},
		"pods":                  {sized("a"), []*v1.Pod{sized("b"), sized("c"), sized("d")}, "OutOfpods: Pod was rejected: Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3"},
		"huge pages of no size": {sized("a", "hugepages-1Gi", "1Gi"), nil, "OutOfhugepages-1Gi"},
		"overhead":              {overhead, nil, "OutOfcpu"},
		"resources of its own":  {whole, nil, "OutOfcpu"},
	} {
		var got []string
		for _, s := range shortages(tc.pod, tc.others, node) {
			r := s.refusal()
			got = append(got, r.Reason)
			if strings.Contains(tc.want, ": ") {
				got[len(got)-1] += ": " + r.Message
			}
			if !IsRefusal(v1.PodStatus{Phase: v1.PodFailed, Reason: r.Reason}) {
				t.Errorf("%s: %s is for ever", name, r.Reason)
			}
		}
		if text := strings.Join(got, ", "); text != tc.want {
			t.Errorf("%s: %q, want %q", name, text, tc.want)
		}
	}
	if s := shortages(sized("a", "cpu", "99"), nil, nil); s != nil {
		t.Errorf("an unknown node lacks %v", s)
	}
}

func TestWhoComesFirst(t *testing.T) {
	at := func(name string, seconds int, phase v1.PodPhase) store.Record {
		p := sized(name)
		p.UID, p.Status.Phase = types.UID(name), phase
		return store.Record{Pod: p, Accepted: time.Unix(int64(seconds), 0)}
	}
	records := []store.Record{at("new", 1, v1.PodPending), at("b", 5, v1.PodUnknown), at("later", 9, v1.PodPending), at("a", 5, v1.PodUnknown), at("ran", 3, v1.PodUnknown)}
	slices.SortFunc(records, func(a, b store.Record) int {
		if comesFirst(a, b) {
			return -1
		}
		return 1
	})
	var names []string
	for _, r := range records {
		names = append(names, r.Pod.Name)
	}
	if got := strings.Join(names, " "); got != "web-ran web-a web-b web-new web-later" {
		t.Errorf("order %s", got)
	}
}

// TestPodsThatDoNotFit: a node of two CPUs, with a pod that has one, one that wants
// more than the other and one that wants that.
func TestPodsThatDoNotFit(t *testing.T) {
	n, dir := newNode(t), t.TempDir()
	size := func(cpu string) func(*Options) {
		return func(o *Options) { o.Allocatable = func() v1.ResourceList { return amounts("cpu", cpu, "pods", "110") } }
	}
	a := n.agent(dir, size("2"))
	start := func(p *v1.Pod, want v1.PodPhase) {
		t.Helper()
		n.want(p)
		a.Wake(p.UID)
		n.until(string(p.UID)+" is "+string(want), n.phase(p.UID, want))
	}
	start(sized("one", "cpu", "1"), v1.PodRunning)
	start(sized("big", "cpu", "1100m"), v1.PodFailed)
	if st := n.status("big"); st.Reason != "OutOfcpu" || !strings.Contains(st.Message, "requested: 1100, used: 1000, capacity: 2000") {
		t.Errorf("status %s: %s", st.Reason, st.Message)
	}
	start(sized("two", "cpu", "1"), v1.PodRunning)
	// A smaller node disturbs nobody who runs.
	a.stop()
	a = n.agent(dir, size("1"))
	start(sized("three", "cpu", "10m"), v1.PodFailed)
	for _, uid := range []types.UID{"one", "two"} {
		if st := n.status(uid); st.Phase != v1.PodRunning {
			t.Errorf("%s: %s %s", uid, st.Phase, st.Reason)
		}
	}
	// What ends makes room.
	n.edit("one", deletion(time.Minute))
	n.edit("two", deletion(time.Minute))
	n.want(sized("four", "cpu", "1"))
	for _, uid := range []types.UID{"four", "one", "two"} {
		a.Wake(uid)
	}
	n.until("four runs", n.phase("four", v1.PodRunning))
}

func TestPlace(t *testing.T) {
	port := func(uid string) *v1.Pod {
		p := sized(uid, "cpu", "1")
		p.Spec.Containers[0].Ports = []v1.ContainerPort{{HostPort: 80, Protocol: v1.ProtocolTCP}}
		return p
	}
	m := &Manager{Options: Options{
		Allocatable: func() v1.ResourceList { return amounts("cpu", "2", "pods", "110") },
		Admit:       Admission(func() map[string]string { return nil }, NodeSecurity{GroupsPolicy: func() bool { return true }}),
	}}
	for name, tc := range map[string]struct {
		pod  *v1.Pod
		all  []neighbour
		want string
	}{
		"fits":                            {sized("a", "cpu", "1"), []neighbour{{pod: sized("b", "cpu", "1")}}, ""},
		"too much":                        {sized("a", "cpu", "2"), []neighbour{{pod: sized("b", "cpu", "1")}}, "OutOfcpu"},
		"too much, and the port is taken": {port("a"), []neighbour{{pod: port("b")}, {pod: sized("c", "cpu", "1")}}, "OutOfcpu"},
		"the port is taken":               {port("a"), []neighbour{{pod: port("b")}}, "NodePorts"},
		"the port comes free":             {port("a"), []neighbour{{pod: port("b"), leaving: true}}, "waits"},
		"a CPU comes free":                {sized("a", "cpu", "1"), []neighbour{{pod: sized("b", "cpu", "2"), leaving: true}}, "waits"},
		"too little comes free":           {sized("a", "cpu", "2"), []neighbour{{pod: sized("b", "cpu", "1"), leaving: true}, {pod: sized("c", "cpu", "1")}}, "OutOfcpu"},
		"another one comes first":         {sized("a", "cpu", "1"), []neighbour{{pod: sized("b", "cpu", "2"), queued: true}}, "queued"},
		"another one fits beside it":      {sized("a", "cpu", "1"), []neighbour{{pod: sized("b", "cpu", "1"), queued: true}}, ""},
	} {
		v, got := m.place(store.Record{Pod: tc.pod, Source: store.SourcePush}, tc.all), ""
		switch {
		case v.refused != nil:
			got = v.refused.Reason
		case v.waits != "":
			got = "waits"
		case v.queued:
			got = "queued"
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

// TestOrderAfterAReboot: of what is judged at once, what ran before comes first,
// although another pod is older.
func TestOrderAfterAReboot(t *testing.T) {
	n := newNode(t)
	for _, p := range []*v1.Pod{sized("a", "cpu", "2"), sized("b", "cpu", "1"), sized("c", "cpu", "1")} {
		if p.Name != "web-a" {
			p.Status.Phase = v1.PodUnknown // as the store has those of an earlier agent
		}
		n.want(p)
	}
	n.agent(t.TempDir(), func(o *Options) { o.Allocatable = func() v1.ResourceList { return amounts("cpu", "2", "pods", "110") } })
	n.until("b runs", n.phase("b", v1.PodRunning))
	n.until("c runs", n.phase("c", v1.PodRunning))
	n.until("a is refused", n.phase("a", v1.PodFailed))
}

func TestVictims(t *testing.T) {
	class := func(uid string, priority int32, guaranteed bool, pairs ...string) neighbour {
		p := sized(uid, pairs...)
		p.Spec.Priority = &priority
		if guaranteed {
			p.Spec.Containers[0].Resources.Limits = p.Spec.Containers[0].Resources.Requests
		}
		return neighbour{pod: p}
	}
	both := []string{"cpu", "1", "memory", "1Gi"}
	static := class("static", 0, false, both...)
	static.static = true
	for name, tc := range map[string]struct {
		by   *v1.Pod
		all  []neighbour
		lack []shortage
		want string
	}{
		"the nearest one": {class("x", 2000000000, false).pod, []neighbour{class("a", 0, false, "cpu", "2"), class("b", 0, false, "cpu", "500m"), class("c", 0, false, "cpu", "1")},
			[]shortage{{"cpu", 700, 4000, 4000}}, "web-c"},
		"no Guaranteed one without need": {class("x", 2000000000, false).pod, []neighbour{class("a", 0, true, both...), class("b", 0, false, "cpu", "500m"), class("c", 0, false, "cpu", "500m")},
			[]shortage{{"cpu", 1000, 4000, 4000}}, "web-b web-c"},
		"a Guaranteed one at need": {class("x", 2000000000, false).pod, []neighbour{class("a", 0, true, both...), class("b", 0, false, "cpu", "500m")},
			[]shortage{{"cpu", 1000, 4000, 4000}}, "web-a"},
		"a best-effort one for its place":       {class("x", 2000000000, false).pod, []neighbour{class("a", 0, false, both...), class("b", 0, false)}, []shortage{{"pods", 1, 2, 2}}, "web-b"},
		"none, if it would not do":              {class("x", 2000000000, false).pod, []neighbour{class("a", 0, false, both...)}, []shortage{{"cpu", 2000, 4000, 4000}}, ""},
		"none that is as critical":              {class("x", 2000000000, false).pod, []neighbour{class("a", 2000000000, false, both...)}, []shortage{{"cpu", 1000, 4000, 4000}}, ""},
		"a static one of lower priority":        {class("x", 2000000000, false).pod, []neighbour{static}, []shortage{{"cpu", 1000, 4000, 4000}}, "web-static"},
		"no static one for another of its kind": {class("x", 0, false).pod, []neighbour{static}, []shortage{{"cpu", 1000, 4000, 4000}}, ""},
	} {
		var names []string
		for _, p := range victims(tc.by, tc.all, tc.lack) {
			names = append(names, p.Name)
		}
		slices.Sort(names)
		if got := strings.Join(names, " "); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

// TestPreemption: a critical pod has others end that it needs the room of, and
// begins when they have.
func TestPreemption(t *testing.T) {
	n := newNode(t)
	n.want(sized("plain", "cpu", "2"))
	a := n.agent(t.TempDir(), func(o *Options) { o.Allocatable = func() v1.ResourceList { return amounts("cpu", "2", "pods", "110") } })
	n.until("it runs", n.phase("plain", v1.PodRunning))
	p := sized("critical", "cpu", "1")
	p.Spec.Priority = new(int32(2000000000))
	n.want(p)
	a.Wake(p.UID)
	n.until("the critical one runs", n.phase("critical", v1.PodRunning))
	n.until("the other one has failed", n.phase("plain", v1.PodFailed))
	if st := n.status("plain"); st.Reason != "Preempting" || st.Message != "Preempted in order to admit critical pod" {
		t.Errorf("%s: %s", st.Reason, st.Message)
	}
}
