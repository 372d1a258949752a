package config

import (
	"time"

	"github.com/nodeagent/nodeagent/pkg/manifest"
)

// ShutdownPeriod is what pods have to end before the host goes down, from a
// priority up to the next period's.
type ShutdownPeriod struct {
	Priority                   int32 `json:"priority"`
	ShutdownGracePeriodSeconds int64 `json:"shutdownGracePeriodSeconds"`
}

// ShutdownPeriods are those of the configuration, which is valid; none: the
// host's shutdown does not wait for pods.
func (c *NodeAgentConfiguration) ShutdownPeriods() []ShutdownPeriod {
	if len(c.ShutdownGracePeriodByPodPriority) > 0 {
		return c.ShutdownGracePeriodByPodPriority
	}
	all, critical := c.ShutdownGracePeriod.Duration, c.ShutdownGracePeriodCriticalPods.Duration
	if all == 0 {
		return nil
	}
	return []ShutdownPeriod{
		{Priority: 0, ShutdownGracePeriodSeconds: int64((all - critical) / time.Second)},
		{Priority: manifest.SystemCriticalPriority, ShutdownGracePeriodSeconds: int64(critical / time.Second)},
	}
}

func (k *checker) shutdown(c *NodeAgentConfiguration) {
	all, critical := c.ShutdownGracePeriod.Duration, c.ShutdownGracePeriodCriticalPods.Duration
	if critical > all {
		k.bad("shutdownGracePeriodCriticalPods", "%s must not be above shutdownGracePeriod, %s", critical, all)
	}
	if len(c.ShutdownGracePeriodByPodPriority) > 0 && (all != 0 || critical != 0) {
		k.bad("shutdownGracePeriodByPodPriority", "cannot be set together with shutdownGracePeriod or shutdownGracePeriodCriticalPods")
	}
	seen := map[int32]bool{}
	for _, p := range c.ShutdownGracePeriodByPodPriority {
		if p.ShutdownGracePeriodSeconds < 0 {
			k.bad("shutdownGracePeriodByPodPriority", "%ds of priority %d is below 0", p.ShutdownGracePeriodSeconds, p.Priority)
		}
		if seen[p.Priority] {
			k.bad("shutdownGracePeriodByPodPriority", "priority %d is there twice", p.Priority)
		}
		seen[p.Priority] = true
	}
}
