package pod

import v1 "k8s.io/api/core/v1"

// ComputedCondition says that the agent computes a condition of a pod; all
// others are set from outside.
func ComputedCondition(t v1.PodConditionType) bool {
	switch t {
	case v1.PodReadyToStartContainers, v1.PodInitialized, v1.PodReady, v1.ContainersReady, v1.PodScheduled,
		v1.DisruptionTarget, v1.PodResizePending, v1.PodResizeInProgress, v1.AllContainersRestarting:
		return true
	}
	return false
}
