package store

import (
	"fmt"
	"maps"
	"slices"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// Amendment is what was changed of a pod while it runs, beside what its source
// wants: it is kept with the pod, whatever its source is, and goes with it.
type Amendment struct {
	// Ephemeral are the containers for debugging.
	Ephemeral []v1.EphemeralContainer `json:"ephemeralContainers,omitempty"`
	// Resources are what containers and init containers have instead of what
	// their manifest says, by name.
	Resources map[string]v1.ResourceRequirements `json:"resources,omitempty"`
	// Conditions are those that the agent does not compute itself.
	Conditions []v1.PodCondition `json:"conditions,omitempty"`
}

func (a *Amendment) clone() *Amendment {
	if a == nil {
		return &Amendment{}
	}
	return &Amendment{Ephemeral: slices.Clone(a.Ephemeral), Resources: maps.Clone(a.Resources), Conditions: slices.Clone(a.Conditions)}
}

// spec is what the pod's spec is with the amendment.
func (a *Amendment) spec(wanted v1.PodSpec) v1.PodSpec {
	if a == nil {
		return wanted
	}
	if len(a.Ephemeral) > 0 {
		wanted.EphemeralContainers = a.Ephemeral
	}
	if len(a.Resources) > 0 {
		wanted.InitContainers, wanted.Containers = a.resized(wanted.InitContainers), a.resized(wanted.Containers)
	}
	return wanted
}

func (a *Amendment) resized(list []v1.Container) []v1.Container {
	list = slices.Clone(list)
	for i := range list {
		if r, ok := a.Resources[list[i].Name]; ok {
			list[i].Resources = r
		}
	}
	return list
}

// status has the conditions of the amendment before those that were computed.
func (a *Amendment) status(st v1.PodStatus) v1.PodStatus {
	if a == nil {
		return st
	}
	own := slices.DeleteFunc(slices.Clone(st.Conditions), func(c v1.PodCondition) bool { return !pod.ComputedCondition(c.Type) })
	st.Conditions = append(slices.Clone(a.Conditions), own...)
	return st
}

// Amend changes a pod beside its source; change must not keep what it is
// handed. A uid or resourceVersion that is not empty must be the current one,
// else it is errdefs.ErrConflict.
func (s *Store) Amend(key pod.Key, uid types.UID, resourceVersion string, change func(*Amendment)) (Record, error) {
	s.write.Lock()
	defer s.write.Unlock()
	e, err := s.current(key, uid, resourceVersion)
	if err != nil {
		return Record{}, err
	}
	next := *e
	next.amended = e.amended.clone()
	change(next.amended)
	if old := e.amended.clone(); len(next.amended.Ephemeral) != len(old.Ephemeral) ||
		!apiequality.Semantic.DeepEqual(next.amended.Resources, old.Resources) {
		next.generation++
	}
	if err := s.checkpoint(&next, nil); err != nil {
		return Record{}, fmt.Errorf("keep the change of pod %s: %w: %w", key, errdefs.ErrTransient, err)
	}
	s.publish(Modified, &next)
	s.wake(e.uid)
	rec, _ := s.Get(key)
	return rec, nil
}
