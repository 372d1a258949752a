package probe

import (
	"time"

	v1 "k8s.io/api/core/v1"
)

// state is what the probes of one container have come to.
type state struct {
	// good is the verdict: it changes when enough probes in a row say otherwise.
	good bool
	// last is what the latest probe said, run how many in a row have said so.
	last bool
	run  int32
}

// after is the state once another probe has said good or bad.
func (s state) after(good bool, spec *v1.Probe) state {
	if s.run == 0 || s.last != good {
		s.last, s.run = good, 0
	}
	threshold := spec.FailureThreshold
	if good {
		threshold = spec.SuccessThreshold
	}
	// It stays at the threshold: a container may be probed for years.
	if s.run = min(s.run+1, threshold); s.run >= threshold {
		s.good = good
	}
	return s
}

// wait is how long it is until the next probe begins: the first one as soon as
// the initial delay has passed since the container's start, each further one a
// period after the one before began. previous is zero before the first.
func wait(spec *v1.Probe, started, previous, now time.Time) time.Duration {
	if !previous.IsZero() {
		return previous.Add(seconds(spec.PeriodSeconds)).Sub(now)
	}
	delay := seconds(spec.InitialDelaySeconds)
	// A clock that was set back since the start must not hold the probe up.
	return min(started.Add(delay).Sub(now), delay)
}

func seconds(n int32) time.Duration { return time.Duration(n) * time.Second }
