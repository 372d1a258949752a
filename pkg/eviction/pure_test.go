package eviction

import (
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/config"
)

var began = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func amount(text string) config.Amount {
	if p, ok := strings.CutSuffix(text, "%"); ok {
		var n float64
		fmt.Sscan(p, &n)
		return config.Amount{Percent: n}
	}
	return config.Amount{Quantity: resource.MustParse(text)}
}

// seen reads "memory.available 1Gi/4Gi, …".
func seen(text string) Observations {
	out := Observations{}
	for part := range strings.SplitSeq(text, ", ") {
		name, amounts, ok := strings.Cut(part, " ")
		if !ok {
			continue
		}
		left, all, _ := strings.Cut(amounts, "/")
		out[config.Signal(name)] = Observation{resource.MustParse(left), resource.MustParse(all)}
	}
	return out
}

// TestPressure goes through looks at a node, one after another.
func TestPressure(t *testing.T) {
	thresholds := []config.Threshold{
		{Signal: config.MemoryAvailable, Value: amount("100Mi"), Reclaim: amount("50Mi")},
		{Signal: config.MemoryAvailable, Value: amount("500Mi"), Grace: 30 * time.Second},
		{Signal: config.NodeFSAvailable, Value: amount("10%"), Reclaim: amount("5%")},
		{Signal: config.PIDAvailable, Value: amount("100")},
	}
	const fine = "memory.available 2Gi/4Gi, nodefs.available 50Gi/100Gi, pid.available 9k/10k"
	var p pressure
	for i, look := range []struct {
		after                     time.Duration
		seen, starved, conditions string
	}{
		{0, fine, "", "[]"},
		{0, "memory.available 499Mi/4Gi", "", "[MemoryPressure]"}, // soft: not yet
		{29 * time.Second, "memory.available 499Mi/4Gi", "", "[MemoryPressure]"},
		{time.Second, "memory.available 499Mi/4Gi", "memory.available 30s", "[MemoryPressure]"},
		{time.Second, fine, "", "[MemoryPressure]"}, // the condition outlasts its cause
		{time.Second, "memory.available 400Mi/4Gi", "", "[MemoryPressure]"},
		{59 * time.Second, fine, "", "[MemoryPressure]"},
		{time.Second, fine, "", "[]"},
		{0, "nodefs.available 10Gi/100Gi", "", "[]"},                                  // as much as is wanted
		{0, "nodefs.available 9999Mi/100Gi", "nodefs.available 0s", "[DiskPressure]"}, // less
		{0, "nodefs.available 14Gi/100Gi", "nodefs.available 0s", "[DiskPressure]"},   // and 5 % more are wanted back
		{0, "nodefs.available 15Gi/100Gi", "", "[DiskPressure]"},
		{0, "nodefs.available 14Gi/100Gi", "", "[DiskPressure]"},
		{0, "nodefs.available 1Gi/100Gi, memory.available 99Mi/4Gi, pid.available 1/10k", "memory.available 0s", "[MemoryPressure DiskPressure PIDPressure]"},
		{0, "", "", "[MemoryPressure DiskPressure PIDPressure]"}, // what cannot be seen is not short
		{time.Minute, "pid.available 99/10k", "pid.available 0s", "[PIDPressure]"},
	} {
		began = began.Add(look.after)
		p = p.next(thresholds, seen(look.seen), began)
		starved := ""
		if s, ok := p.starved(thresholds); ok {
			starved = fmt.Sprintf("%s %s", s.Signal, s.Grace)
		}
		if got := fmt.Sprint(p.conditions(time.Minute, began)); starved != look.starved || got != look.conditions {
			t.Errorf("look %d (%s): starved of %q, %s; want %q, %s", i, look.seen, starved, got, look.starved, look.conditions)
		}
	}
}

func TestWakeAtTheEndOfGrace(t *testing.T) {
	thresholds := []config.Threshold{{Signal: config.MemoryAvailable, Value: amount("1Gi"), Grace: 2 * time.Second}}
	p := pressure{}.next(thresholds, seen("memory.available 1Mi/4Gi"), began)
	if at := p.wake(thresholds); !at.Equal(began.Add(2 * time.Second)) {
		t.Errorf("%s", at)
	}
	if at := p.next(thresholds, seen("memory.available 1Mi/4Gi"), began.Add(2*time.Second)).wake(thresholds); !at.IsZero() {
		t.Errorf("it has ended, and still: %s", at)
	}
}

func TestHeadroom(t *testing.T) {
	thresholds := []config.Threshold{{Signal: config.MemoryAvailable, Value: amount("100Mi")}, {Signal: config.MemoryAvailable, Value: amount("500Mi"), Grace: time.Second}}
	for text, want := range map[string]string{
		"memory.available 1000Mi/4Gi": "524288000 true", "memory.available 400Mi/4Gi": "314572800 true",
		"memory.available 50Mi/4Gi": "0 false", "": "0 false",
	} {
		n, ok := headroom(config.MemoryAvailable, thresholds, seen(text))
		if got := fmt.Sprint(n, ok); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

// try is a pod "name priority memoryRequest diskRequest" with one container "c".
func try(text string, u *Usage) Candidate {
	var name, memory, disk string
	var priority int32
	fmt.Sscan(text, &name, &priority, &memory, &disk)
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}, Spec: v1.PodSpec{Priority: &priority, Containers: []v1.Container{{Name: "c"}}}}
	p.Spec.Containers[0].Resources.Requests = v1.ResourceList{v1.ResourceMemory: resource.MustParse(memory), v1.ResourceEphemeralStorage: resource.MustParse(disk)}
	p.Spec.Volumes = []v1.Volume{{Name: "dir", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}, {Name: "mem", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory}}}}
	return Candidate{p, u}
}

func TestRank(t *testing.T) {
	memory := func(n int64) *Usage { return &Usage{Memory: n << 20, Processes: n} }
	disk := func(layer, logs, dir int64) *Usage {
		return &Usage{Containers: []ContainerUsage{{Name: "c", Layer: Space{layer, layer}, Logs: Space{logs, logs}}},
			Volumes: map[string]Space{"dir": {dir, dir}, "mem": {1 << 40, 1 << 40}}}
	}
	for name, tc := range map[string]struct {
		signal config.Signal
		d      disks
		pods   []Candidate
		want   string
	}{
		"memory": {config.MemoryAvailable, disks{}, []Candidate{
			try("modest 0 200Mi 0", memory(100)), try("less 0 100Mi 0", memory(150)), try("more 0 100Mi 0", memory(180)),
			try("important 5 0 0", memory(900)), try("tiny -1 200Mi 0", memory(1)), try("unknown 9 0 0", nil),
		}, "unknown more less important tiny modest"},
		"pids": {config.PIDAvailable, disks{}, []Candidate{
			try("many 1 0 0", memory(100)), try("few 0 0 0", memory(2)), try("some 0 0 0", memory(3)),
		}, "some few many"},
		"one disk": {config.NodeFSAvailable, disks{}, []Candidate{
			try("asked 0 0 100", disk(40, 30, 20)), try("logs 0 0 0", disk(0, 60, 0)), try("layer 0 0 0", disk(70, 0, 0)), try("dir 0 0 0", disk(0, 0, 80)),
		}, "dir layer logs asked"},
		"a disk for images, the node's": {config.NodeFSAvailable, disks{imageFS: true}, []Candidate{
			try("layer 0 0 0", disk(70, 1, 0)), try("logs 0 0 0", disk(0, 60, 0)), try("dir 0 0 0", disk(0, 0, 80)),
		}, "dir logs layer"},
		"a disk for images": {config.ImageFSAvailable, disks{imageFS: true}, []Candidate{
			try("logs 0 0 0", disk(1, 60, 90)), try("layer 0 0 0", disk(70, 0, 0)),
		}, "layer logs"},
		"inodes go by use": {config.NodeFSInodesFree, disks{}, []Candidate{
			try("few 0 0 0", disk(1, 1, 1)), try("many 0 0 10Gi", disk(9, 9, 9)),
		}, "many few"},
	} {
		var got []string
		for _, c := range rank(tc.signal, tc.pods, tc.d) {
			got = append(got, c.Pod.Name)
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%s: %s, want %s", name, strings.Join(got, " "), tc.want)
		}
	}
}

func TestExceeded(t *testing.T) {
	limited := func(limits string, sizeLimit string) *v1.Pod {
		p := try("p 0 0 0", nil).Pod
		p.Spec.Containers = nil
		for i, l := range strings.Fields(limits) {
			c := v1.Container{Name: fmt.Sprintf("c%d", i)}
			if l != "-" {
				c.Resources.Limits = v1.ResourceList{v1.ResourceEphemeralStorage: resource.MustParse(l)}
			}
			p.Spec.Containers = append(p.Spec.Containers, c)
		}
		if sizeLimit != "" {
			p.Spec.Volumes[0].EmptyDir.SizeLimit = new(resource.MustParse(sizeLimit))
			p.Spec.Volumes[1].EmptyDir.SizeLimit = new(resource.MustParse(sizeLimit))
		}
		return p
	}
	containers := func(sizes ...int64) (out []ContainerUsage) {
		for i := 0; i < len(sizes); i += 2 {
			out = append(out, ContainerUsage{Name: fmt.Sprintf("c%d", i/2), Layer: Space{Bytes: sizes[i]}, Logs: Space{Bytes: sizes[i+1]}})
		}
		return out
	}
	for name, tc := range map[string]struct {
		pod  *v1.Pod
		u    Usage
		d    disks
		want string
	}{
		"within":           {limited("1Ki -", "1Ki"), Usage{Containers: containers(512, 0, 512, 0)}, disks{}, ""},
		"no limit":         {limited("-", ""), Usage{Containers: containers(1<<40, 0)}, disks{}, ""},
		"a volume":         {limited("-", "1Ki"), Usage{Volumes: map[string]Space{"dir": {Bytes: 1025}}}, disks{}, signalEmptyDir + `: Usage of EmptyDir volume "dir" exceeds the limit "1Ki". `},
		"a tmpfs is not":   {limited("-", "1Ki"), Usage{Volumes: map[string]Space{"mem": {Bytes: 1025}}}, disks{}, ""},
		"a container":      {limited("1Ki 1Mi", ""), Usage{Containers: containers(1000, 100)}, disks{}, signalContainer + `: Container c0 exceeded its local ephemeral storage limit "1Ki". `},
		"not on its disk":  {limited("1Ki 1Mi", ""), Usage{Containers: containers(1000, 100)}, disks{imageFS: true}, ""},
		"all together":     {limited("1Ki 1Ki", ""), Usage{Containers: containers(1000, 0, 1000, 0), Volumes: map[string]Space{"dir": {Bytes: 100}}}, disks{}, signalPod + ": Pod ephemeral local storage usage exceeds the total limit of containers 2Ki. "},
		"one without":      {limited("1Ki -", ""), Usage{Containers: containers(0, 0, 2000, 0)}, disks{}, signalPod + ": Pod ephemeral local storage usage exceeds the total limit of containers 1Ki. "},
		"its hosts file":   {limited("1Ki", ""), Usage{Own: Space{Bytes: 2000}}, disks{}, signalPod + ": Pod ephemeral local storage usage exceeds the total limit of containers 1Ki. "},
		"without a limit":  {limited("-", ""), Usage{Own: Space{Bytes: 33 << 20}}, disks{}, signalPod + `: Usage of /etc/hosts and termination messages exceeds the limit "32Mi". `},
		"of an ended init": {limited("-", ""), Usage{Containers: []ContainerUsage{{Name: "gone", Layer: Space{Bytes: 1 << 40}}}}, disks{}, ""},
	} {
		signal, message := exceeded(Candidate{tc.pod, &tc.u}, tc.d)
		if got := strings.TrimPrefix(signal+": "+message, ": "); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

func TestMessage(t *testing.T) {
	c := try("web 0 100Mi 0", &Usage{Memory: 300 << 20, Containers: []ContainerUsage{{Name: "c", Memory: 200 << 20, Layer: Space{Bytes: 5 << 10}, Logs: Space{Bytes: 1 << 10}}, {Name: "gone", Memory: 1 << 30}}})
	for _, tc := range []struct {
		t    config.Threshold
		seen string
		want string
	}{
		{config.Threshold{Signal: config.MemoryAvailable, Value: amount("1G")}, "memory.available 900Mi/4Gi",
			"The node was low on resource: memory. Threshold quantity: 1G, available: 900Mi. Container c was using 200Mi, request is 100Mi, has larger consumption of memory. "},
		{config.Threshold{Signal: config.NodeFSAvailable, Value: amount("10%")}, "nodefs.available 1Gi/20Gi",
			"The node was low on resource: ephemeral-storage. Threshold quantity: 2Gi, available: 1Gi. Container c was using 6Ki, request is 0, has larger consumption of ephemeral-storage. "},
		{config.Threshold{Signal: config.PIDAvailable, Value: amount("10%")}, "pid.available 5/100",
			"The node was low on resource: pids. Threshold quantity: 10, available: 5. "},
	} {
		if got := message(tc.t, seen(tc.seen), c); got != tc.want {
			t.Errorf("got  %q\nwant %q", got, tc.want)
		}
	}
	own := try("web 0 100Mi 0", &Usage{Memory: 300 << 20})
	own.Pod.Spec.Resources = &v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceMemory: resource.MustParse("250Mi")}}
	if got := message(config.Threshold{Signal: config.MemoryAvailable, Value: amount("1Gi")}, seen("memory.available 900Mi/4Gi"), own); !strings.HasSuffix(got, "Pod web was using 300Mi, request is 250Mi, has larger consumption of memory. ") {
		t.Errorf("%q", got)
	}
}

func TestRefusal(t *testing.T) {
	bestEffort := &v1.Pod{Spec: v1.PodSpec{Containers: []v1.Container{{}}}}
	burstable := try("p 0 1Mi 0", nil).Pod
	critical := try("p 2000000000 0 0", nil).Pod
	byName := bestEffort.DeepCopy()
	byName.Spec.PriorityClassName = "system-node-critical"
	tolerant := bestEffort.DeepCopy()
	tolerant.Spec.Tolerations = []v1.Toleration{{Key: v1.TaintNodeMemoryPressure, Operator: v1.TolerationOpExists}}
	other := bestEffort.DeepCopy()
	other.Spec.Tolerations = []v1.Toleration{{Key: v1.TaintNodeDiskPressure, Operator: v1.TolerationOpExists}}
	memory, disk := []v1.NodeConditionType{v1.NodeMemoryPressure}, []v1.NodeConditionType{v1.NodeDiskPressure}
	for name, tc := range map[string]struct {
		pod        *v1.Pod
		conditions []v1.NodeConditionType
		want       string
	}{
		"none":              {bestEffort, nil, ""},
		"best effort":       {bestEffort, memory, "Pod was rejected: The node had condition: [MemoryPressure]. "},
		"burstable":         {burstable, memory, ""},
		"tolerant":          {tolerant, memory, ""},
		"of something else": {other, memory, "Pod was rejected: The node had condition: [MemoryPressure]. "},
		"critical":          {critical, disk, ""},
		"critical by name":  {byName, disk, ""},
		"disk":              {burstable, disk, "Pod was rejected: The node had condition: [DiskPressure]. "},
		"tolerant of disk":  {other, disk, "Pod was rejected: The node had condition: [DiskPressure]. "},
		"both":              {tolerant, append(memory, disk...), "Pod was rejected: The node had condition: [MemoryPressure DiskPressure]. "},
	} {
		if got := refusal(tc.pod, tc.conditions); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}
