package cgroup

import (
	"reflect"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// list reads "cpu", "1", "memory", "2Gi", …
func list(pairs ...string) v1.ResourceList {
	l := v1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		l[v1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

func container(requests, limits v1.ResourceList) v1.Container {
	return v1.Container{Name: "c", Resources: v1.ResourceRequirements{Requests: requests, Limits: limits}}
}

func sidecar(requests, limits v1.ResourceList) v1.Container {
	c := container(requests, limits)
	c.Name = "sidecar"
	always := v1.ContainerRestartPolicyAlways
	c.RestartPolicy = &always
	return c
}

func newPod(uid string, containers ...v1.Container) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: types.UID(uid)},
		Spec:       v1.PodSpec{Containers: containers},
	}
}

func TestQOS(t *testing.T) {
	both := list("cpu", "1", "memory", "1Gi")
	for name, tc := range map[string]struct {
		pod  *v1.Pod
		want v1.PodQOSClass
	}{
		"nothing":            {newPod("u", container(nil, nil)), v1.PodQOSBestEffort},
		"no containers":      {newPod("u"), v1.PodQOSBestEffort},
		"all equal":          {newPod("u", container(both, both)), v1.PodQOSGuaranteed},
		"equal, other unit":  {newPod("u", container(list("cpu", "1000m", "memory", "1024Mi"), both)), v1.PodQOSGuaranteed},
		"request only":       {newPod("u", container(both, nil)), v1.PodQOSBurstable},
		"limit only memory":  {newPod("u", container(list("memory", "1Gi"), list("memory", "1Gi"))), v1.PodQOSBurstable},
		"one of two":         {newPod("u", container(both, both), container(nil, nil)), v1.PodQOSBurstable},
		"other resources":    {newPod("u", container(list("ephemeral-storage", "1Gi"), nil)), v1.PodQOSBestEffort},
		"zero is nothing":    {newPod("u", container(list("cpu", "0"), list("cpu", "0"))), v1.PodQOSBestEffort},
		"pod level replaces": {withPodLevel(newPod("u", container(both, nil)), both, both), v1.PodQOSGuaranteed},
		"pod level empty":    {withPodLevel(newPod("u", container(both, both)), nil, nil), v1.PodQOSGuaranteed},
	} {
		if got := QOS(tc.pod); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
	init := newPod("u", container(both, both))
	init.Spec.InitContainers = []v1.Container{container(nil, nil)}
	if got := QOS(init); got != v1.PodQOSBurstable {
		t.Errorf("an init container without resources: %s", got)
	}
}

func withPodLevel(p *v1.Pod, requests, limits v1.ResourceList) *v1.Pod {
	p.Spec.Resources = &v1.ResourceRequirements{Requests: requests, Limits: limits}
	return p
}

func TestPodLimits(t *testing.T) {
	m := &Manager{pidsLimit: 77, period: defaultPeriod.Microseconds()}
	withInit := newPod("u", container(list("cpu", "100m"), list("cpu", "200m", "memory", "1Gi")))
	withInit.Spec.InitContainers = []v1.Container{
		sidecar(list("cpu", "50m"), list("cpu", "100m", "memory", "100Mi")),
		container(list("cpu", "500m"), list("cpu", "1", "memory", "10Mi")),
	}
	overhead := newPod("u", container(list("cpu", "1", "memory", "1Gi"), list("cpu", "1", "memory", "1Gi")))
	overhead.Spec.Overhead = list("cpu", "500m", "memory", "512Mi")
	for name, tc := range map[string]struct {
		pod  *v1.Pod
		want limits
	}{
		"best effort": {newPod("u", container(nil, nil)), limits{shares: 2}},
		"guaranteed": {newPod("u", container(list("cpu", "1", "memory", "1Gi"), list("cpu", "1", "memory", "1Gi"))),
			limits{shares: 1024, quota: 100000, memory: 1 << 30}},
		"burstable without limits": {newPod("u", container(list("cpu", "250m"), nil)), limits{shares: 256}},
		"a limit is missing": {newPod("u",
			container(list("cpu", "1"), list("cpu", "2", "memory", "1Gi")),
			container(list("cpu", "1"), list("cpu", "1"))), limits{shares: 2048, quota: 300000}},
		"least quota": {newPod("u", container(list("cpu", "1m"), list("cpu", "1m"))), limits{shares: 2, quota: 1000}},
		"init and sidecar": {withInit,
			// The init container peaks with the sidecar before it: 500m+50m; the
			// limit's peak is 1+0.1 CPU; memory's is the running set.
			limits{shares: 563, quota: 110000, memory: 1<<30 + 100<<20}},
		"overhead": {overhead, limits{shares: 1536, quota: 150000, memory: 1<<30 + 512<<20}},
		"huge pages": {newPod("u", container(list("hugepages-2Mi", "4Mi", "hugepages-1Gi", "1Gi", "memory", "1Gi"), nil)),
			limits{shares: 2, huge: map[string]int64{"2MB": 4 << 20, "1GB": 1 << 30}}},
		"pod level": {withPodLevel(newPod("u", container(nil, nil)), list("cpu", "1"), list("cpu", "2", "memory", "1Gi")),
			limits{shares: 1024, quota: 200000, memory: 1 << 30}},
	} {
		if tc.want.huge == nil {
			tc.want.huge = map[string]int64{}
		}
		tc.want.pids = 77
		if got := m.podLimits(tc.pod); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
}

func TestOOMScoreAdj(t *testing.T) {
	const node = int64(8) << 30
	both := list("cpu", "1", "memory", "1Gi")
	critical := newPod("u", container(nil, nil))
	priority := int32(2000001000)
	critical.Spec.Priority, critical.Spec.PriorityClassName = &priority, "system-node-critical"
	helped := newPod("u", container(list("memory", "4Gi"), nil))
	helped.Spec.InitContainers = []v1.Container{sidecar(list("memory", "1Gi"), nil)}
	for name, tc := range map[string]struct {
		pod    *v1.Pod
		c      *v1.Container
		memory int64
		want   int64
	}{
		"guaranteed":      {pod: newPod("u", container(both, both)), memory: node, want: -997},
		"best effort":     {pod: newPod("u", container(nil, nil)), memory: node, want: 1000},
		"a quarter":       {pod: newPod("u", container(list("memory", "2Gi"), nil)), memory: node, want: 750},
		"cpu only":        {pod: newPod("u", container(list("cpu", "1"), nil)), memory: node, want: 999},
		"more than all":   {pod: newPod("u", container(list("memory", "9Gi"), nil)), memory: node, want: 3},
		"node critical":   {pod: critical, memory: node, want: -997},
		"memory unknown":  {pod: newPod("u", container(list("memory", "2Gi"), nil)), want: 999},
		"a sidecar":       {pod: helped, c: &helped.Spec.InitContainers[0], memory: node, want: 500},
		"pod level share": {pod: withPodLevel(newPod("u", container(list("memory", "1Gi"), nil), container(nil, nil)), list("memory", "5Gi"), nil), memory: node, want: 625},
	} {
		c := tc.c
		if c == nil {
			c = &tc.pod.Spec.Containers[0]
		}
		if got := OOMScoreAdj(tc.pod, c, tc.memory); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
}

func TestWeight(t *testing.T) {
	for s, want := range map[uint64]uint64{0: 1, 2: 1, 1024: 39, 262144: 10000, 1 << 40: 10000} {
		if got := weight(s); got != want {
			t.Errorf("weight(%d) = %d, want %d", s, got, want)
		}
	}
	for w := uint64(1); w <= 10000; w++ {
		if d := int64(weight(sharesOfWeight(w))) - int64(w); d < -1 || d > 0 {
			t.Fatalf("weight %d comes back as %d", w, weight(sharesOfWeight(w)))
		}
	}
}

func TestNames(t *testing.T) {
	uid := types.UID("6b1c-42")
	for name, tc := range map[string]struct {
		n                  names
		class              string
		path, parent, leaf string
	}{
		"cgroupfs":            {newNames("/", false), "burstable", "/kubepods/burstable/pod6b1c-42", "/kubepods/burstable/pod6b1c-42", "pod6b1c-42"},
		"cgroupfs guaranteed": {newNames("", false), "", "/kubepods/pod6b1c-42", "/kubepods/pod6b1c-42", "pod6b1c-42"},
		"cgroupfs root":       {newNames("/a/b/", false), "besteffort", "/a/b/kubepods/besteffort/pod6b1c-42", "/a/b/kubepods/besteffort/pod6b1c-42", "pod6b1c-42"},
		"systemd": {newNames("/", true), "burstable",
			"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod6b1c_42.slice", "kubepods-burstable-pod6b1c_42.slice", "kubepods-burstable-pod6b1c_42.slice"},
		"systemd guaranteed": {newNames("/", true), "", "/kubepods.slice/kubepods-pod6b1c_42.slice", "kubepods-pod6b1c_42.slice", "kubepods-pod6b1c_42.slice"},
		"systemd root": {newNames("/na-x", true), "",
			"/na_x.slice/na_x-kubepods.slice/na_x-kubepods-pod6b1c_42.slice", "na_x-kubepods-pod6b1c_42.slice", "na_x-kubepods-pod6b1c_42.slice"},
	} {
		chain := tc.n.chain(tc.class, podName(uid))
		if got := tc.n.fsPath(chain); got != tc.path {
			t.Errorf("%s: path %s, want %s", name, got, tc.path)
		}
		if got := tc.n.parent(chain); got != tc.parent {
			t.Errorf("%s: parent %s, want %s", name, got, tc.parent)
		}
		if got, ok := tc.n.uidOf(tc.leaf, tc.class); !ok || got != uid {
			t.Errorf("%s: %s reads back as %q %v", name, tc.leaf, got, ok)
		}
		for _, other := range []string{"burstable", "pod", "kubepods-burstable.slice", "system.slice"} {
			if got, ok := tc.n.uidOf(other, tc.class); ok {
				t.Errorf("%s: %s is taken for pod %q", name, other, got)
			}
		}
	}
}
