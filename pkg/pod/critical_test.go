package pod

import (
	"testing"

	v1 "k8s.io/api/core/v1"
)

// TestCritical: no API server has written the number of a class into the pods of
// a lone node.
func TestCritical(t *testing.T) {
	for _, tt := range []struct {
		spec v1.PodSpec
		want bool
	}{
		{v1.PodSpec{}, false},
		{v1.PodSpec{PriorityClassName: NodeCriticalClass}, true},
		{v1.PodSpec{PriorityClassName: ClusterCriticalClass}, true},
		{v1.PodSpec{PriorityClassName: "high"}, false},
		{v1.PodSpec{Priority: new(int32(2000000000))}, true},
		{v1.PodSpec{Priority: new(int32(7)), PriorityClassName: NodeCriticalClass}, false},
	} {
		if got := Critical(&v1.Pod{Spec: tt.spec}); got != tt.want {
			t.Errorf("%q, %v: %t", tt.spec.PriorityClassName, tt.spec.Priority, got)
		}
	}
}
