package node

import (
	"slices"

	v1 "k8s.io/api/core/v1"
)

// pressure is a condition of a node that runs short of something: without and
// with it, in kubelet's words.
type pressure struct {
	of                v1.NodeConditionType
	reasons, messages [2]string
}

func pressures() []pressure {
	return []pressure{
		{v1.NodeMemoryPressure, [2]string{"HasSufficientMemory", "HasInsufficientMemory"},
			[2]string{"kubelet has sufficient memory available", "kubelet has insufficient memory available"}},
		{v1.NodeDiskPressure, [2]string{"HasNoDiskPressure", "HasDiskPressure"},
			[2]string{"kubelet has no disk pressure", "kubelet has disk pressure"}},
		{v1.NodePIDPressure, [2]string{"HasSufficientPID", "HasInsufficientPID"},
			[2]string{"kubelet has sufficient PID available", "kubelet has insufficient PID available"}},
	}
}

// Changes are the reasons of the events that tell of a change of pressure:
// NodeHasDiskPressure, …
func Changes(old, now []v1.NodeConditionType) (reasons []string) {
	for _, p := range pressures() {
		switch was, is := slices.Contains(old, p.of), slices.Contains(now, p.of); {
		case is && !was:
			reasons = append(reasons, "Node"+p.reasons[1])
		case was && !is:
			reasons = append(reasons, "Node"+p.reasons[0])
		}
	}
	return reasons
}
