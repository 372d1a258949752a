package eviction

import (
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/nodeagent/nodeagent/pkg/config"
)

// The resources that are no resources of the API.
const (
	resourceInodes v1.ResourceName = "inodes"
	resourcePIDs   v1.ResourceName = "pids"
)

// Observation is what is left of a signal's resource.
type Observation struct {
	Available, Capacity resource.Quantity
}

// Observations are those that could be made, by signal.
type Observations map[config.Signal]Observation

// resourceOf is what a signal is about.
func resourceOf(s config.Signal) v1.ResourceName {
	switch s {
	case config.MemoryAvailable, config.AllocatableMemoryAvailable:
		return v1.ResourceMemory
	case config.NodeFSInodesFree, config.ImageFSInodesFree, config.ContainerFSInodesFree:
		return resourceInodes
	case config.PIDAvailable:
		return resourcePIDs
	default:
		return v1.ResourceEphemeralStorage
	}
}

// conditionOf is the node's condition while a signal's resource is short.
func conditionOf(s config.Signal) v1.NodeConditionType {
	switch resourceOf(s) {
	case v1.ResourceMemory:
		return v1.NodeMemoryPressure
	case resourcePIDs:
		return v1.NodePIDPressure
	default:
		return v1.NodeDiskPressure
	}
}

// pressure is what a look at the node has to remember for the next one. It is a
// value: next makes a new one.
type pressure struct {
	// since is when a threshold was first not met, zero while it is; it goes by
	// the index of the threshold. driving are those that have lasted for their
	// grace period, until there is as much more as they want back.
	since   []time.Time
	driving []bool
	// pressed is when a condition was last seen to hold.
	pressed map[v1.NodeConditionType]time.Time
}

// next is what follows from a look at the node.
func (p pressure) next(thresholds []config.Threshold, seen Observations, now time.Time) pressure {
	n := pressure{
		since: make([]time.Time, len(thresholds)), driving: make([]bool, len(thresholds)),
		pressed: map[v1.NodeConditionType]time.Time{},
	}
	for c, at := range p.pressed {
		n.pressed[c] = at
	}
	for i, t := range thresholds {
		was := len(p.driving) == len(thresholds) && p.driving[i]
		if !short(t, seen, was) {
			continue
		}
		n.since[i] = now
		if len(p.since) == len(thresholds) && !p.since[i].IsZero() {
			n.since[i] = p.since[i]
		}
		n.driving[i] = now.Sub(n.since[i]) >= t.Grace
		n.pressed[conditionOf(t.Signal)] = now
	}
	return n
}

// short says that there is less than a threshold wants, or less than it wants
// back. What could not be observed is not short.
func short(t config.Threshold, seen Observations, back bool) bool {
	o, ok := seen[t.Signal]
	if !ok {
		return false
	}
	want := t.Value.Of(o.Capacity)
	if back {
		want.Add(t.Reclaim.Of(o.Capacity))
	}
	return o.Available.Cmp(want) < 0
}

// enough says that nothing is short any more, what is wanted back included.
func enough(thresholds []config.Threshold, seen Observations) bool {
	return !slices.ContainsFunc(thresholds, func(t config.Threshold) bool { return short(t, seen, true) })
}

// starved is the first threshold that has to be acted on: memory before all
// else. False: none has.
func (p pressure) starved(thresholds []config.Threshold) (config.Threshold, bool) {
	for i, t := range thresholds {
		if p.driving[i] {
			return t, true
		}
	}
	return config.Threshold{}, false
}

// conditions are the node's, each of which outlasts its cause for a while, so
// that pods do not come and go.
func (p pressure) conditions(transition time.Duration, now time.Time) []v1.NodeConditionType {
	var out []v1.NodeConditionType
	for _, c := range []v1.NodeConditionType{v1.NodeMemoryPressure, v1.NodeDiskPressure, v1.NodePIDPressure} {
		if at, ok := p.pressed[c]; ok && now.Sub(at) < transition {
			out = append(out, c)
		}
	}
	return out
}

// wake is when to look again at the latest for a grace period that ends before
// the next round; zero: none does.
func (p pressure) wake(thresholds []config.Threshold) (at time.Time) {
	for i, t := range thresholds {
		if !p.since[i].IsZero() && !p.driving[i] {
			if end := p.since[i].Add(t.Grace); at.IsZero() || end.Before(at) {
				at = end
			}
		}
	}
	return at
}
