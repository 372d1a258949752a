package config

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
)

// Signal is what is watched of the node, and runs short when there is little of
// it. The names are kubelet's.
type Signal string

// The signals.
const (
	MemoryAvailable            Signal = "memory.available"
	AllocatableMemoryAvailable Signal = "allocatableMemory.available"
	NodeFSAvailable            Signal = "nodefs.available"
	NodeFSInodesFree           Signal = "nodefs.inodesFree"
	ImageFSAvailable           Signal = "imagefs.available"
	ImageFSInodesFree          Signal = "imagefs.inodesFree"
	ContainerFSAvailable       Signal = "containerfs.available"
	ContainerFSInodesFree      Signal = "containerfs.inodesFree"
	PIDAvailable               Signal = "pid.available"
)

// Signals are all of them, in the order in which what is short is reclaimed.
func Signals() []Signal {
	return []Signal{
		MemoryAvailable, AllocatableMemoryAvailable, NodeFSAvailable, NodeFSInodesFree, ImageFSAvailable, ImageFSInodesFree,
		ContainerFSAvailable, ContainerFSInodesFree, PIDAvailable,
	}
}

// Amount is a quantity, or a part of what there is.
type Amount struct {
	Quantity resource.Quantity
	Percent  float64 // counts when it is not 0
}

// Of is the amount where the capacity is known.
func (a Amount) Of(capacity resource.Quantity) resource.Quantity {
	if a.Percent == 0 {
		return a.Quantity.DeepCopy()
	}
	return *resource.NewQuantity(int64(float64(capacity.Value())*a.Percent/100), capacity.Format)
}

// Threshold is what begins an eviction: less of the signal's resource than this
// is left.
type Threshold struct {
	Signal Signal
	Value  Amount
	// Reclaim is how much more than Value there has to be before it is enough.
	Reclaim Amount
	// Grace is how long it may be so; 0 with a hard threshold.
	Grace time.Duration
}

// Thresholds are those of the configuration, which is valid, in the order of
// Signals, a hard one before a soft one. A hard one for the node's memory holds
// for what pods may have of it, too.
func (c *NodeAgentConfiguration) Thresholds() []Threshold {
	hard, reclaim := maps.Clone(c.EvictionHard), maps.Clone(c.EvictionMinimumReclaim)
	for _, m := range []map[string]string{hard, reclaim} {
		if v, ok := m[string(MemoryAvailable)]; ok && m[string(AllocatableMemoryAvailable)] == "" {
			m[string(AllocatableMemoryAvailable)] = v
		}
	}
	var out []Threshold
	for _, signal := range Signals() {
		more, _ := parseAmount(reclaim[string(signal)]) // all of it was validated
		if t, ok := threshold(signal, hard); ok {
			t.Reclaim = more
			out = append(out, t)
		}
		if t, ok := threshold(signal, c.EvictionSoft); ok {
			t.Reclaim = more
			t.Grace, _ = time.ParseDuration(c.EvictionSoftGracePeriod[string(signal)])
			out = append(out, t)
		}
	}
	return out
}

// threshold is a signal's, if it has one: 0% and 100% turn it off.
func threshold(signal Signal, values map[string]string) (Threshold, bool) {
	text := values[string(signal)]
	if text == "" || text == "0%" || text == "100%" {
		return Threshold{}, false
	}
	value, err := parseAmount(text)
	return Threshold{Signal: signal, Value: value}, err == nil
}

// parseAmount reads 100Mi or 10%; empty is nothing.
func parseAmount(text string) (Amount, error) {
	if text == "" {
		return Amount{}, nil
	}
	if number, ok := strings.CutSuffix(text, "%"); ok {
		p, err := strconv.ParseFloat(number, 64)
		if err != nil || !(p >= 0 && p <= 100) {
			return Amount{}, fmt.Errorf("%q is no percentage from 0%% to 100%%", text)
		}
		return Amount{Percent: p}, nil
	}
	q, err := resource.ParseQuantity(text)
	if err != nil {
		return Amount{}, fmt.Errorf("%q is neither a quantity such as 100Mi nor a percentage such as 10%%", text)
	}
	if q.Sign() < 0 {
		return Amount{}, fmt.Errorf("%s is below 0", text)
	}
	return Amount{Quantity: q}, nil
}

func defaultEviction(c *NodeAgentConfiguration) {
	if len(c.EvictionHard) == 0 || c.MergeDefaultEvictionSettings {
		all := map[string]string{
			string(MemoryAvailable): "100Mi", string(NodeFSAvailable): "10%", string(NodeFSInodesFree): "5%",
			string(ImageFSAvailable): "15%", string(ImageFSInodesFree): "5%",
		}
		maps.Copy(all, c.EvictionHard)
		c.EvictionHard = all
	}
	dur(&c.EvictionPressureTransitionPeriod, 5*time.Minute)
	num(&c.ImageGCHighThresholdPercent, 85)
	num(&c.ImageGCLowThresholdPercent, min(80, max(1, c.ImageGCHighThresholdPercent-1)))
	dur(&c.ImageMinimumGCAge, 2*time.Minute)
}

func (k *checker) eviction(c *NodeAgentConfiguration) {
	for _, list := range []struct {
		field  string
		values map[string]string
	}{{"evictionHard", c.EvictionHard}, {"evictionSoft", c.EvictionSoft}, {"evictionMinimumReclaim", c.EvictionMinimumReclaim}} {
		for _, name := range slices.Sorted(maps.Keys(list.values)) {
			field := list.field + "." + name
			a, err := parseAmount(list.values[name])
			switch {
			case k.signal(field, name):
			case err != nil:
				k.bad(field, "%v", err)
			case list.values[name] == "", a.Percent == 0 && a.Quantity.IsZero() && list.values[name] != "0%" && list.field != "evictionMinimumReclaim":
				k.bad(field, "must be more than 0; 0%% turns a threshold off")
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.EvictionSoftGracePeriod)) {
		field := "evictionSoftGracePeriod." + name
		d, err := time.ParseDuration(c.EvictionSoftGracePeriod[name])
		switch {
		case k.signal(field, name):
		case err != nil:
			k.bad(field, "must be a duration such as 30s or 1m30s, is %q", c.EvictionSoftGracePeriod[name])
		case d < 0:
			k.bad(field, "%s is below 0", d)
		case c.EvictionSoft[name] == "":
			k.bad(field, "set without evictionSoft.%s", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.EvictionSoft)) {
		if c.EvictionSoftGracePeriod[name] == "" {
			k.bad("evictionSoft."+name, "needs evictionSoftGracePeriod.%s: how long it may last before pods are evicted", name)
		}
	}
	k.collection(c)
}

// signal says that a name is none.
func (k *checker) signal(field, name string) (bad bool) {
	bad = !slices.Contains(Signals(), Signal(name))
	if bad {
		k.bad(field, "is no signal; there are %s", strings.Trim(fmt.Sprint(Signals()), "[]"))
	}
	return bad
}

func (k *checker) collection(c *NodeAgentConfiguration) {
	high, low := c.ImageGCHighThresholdPercent, c.ImageGCLowThresholdPercent
	for field, n := range map[string]int{"imageGCHighThresholdPercent": high, "imageGCLowThresholdPercent": low} {
		if n < 0 || n > 100 {
			k.bad(field, "%d is not between 0 and 100", n)
		}
	}
	if high != 0 && low >= high {
		k.bad("imageGCLowThresholdPercent", "%d must be less than imageGCHighThresholdPercent, %d", low, high)
	}
	if least, most := c.ImageMinimumGCAge.Duration, c.ImageMaximumGCAge.Duration; most != 0 && most <= least {
		k.bad("imageMaximumGCAge", "%s must be greater than imageMinimumGCAge, %s", most, least)
	}
}
