package probe

import (
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// state is what the probes of one kind and container have come to.
type state struct {
	// good is the verdict: it changes when enough probes in a row say otherwise.
	good bool
	// settled is true when the latest probe was the last of enough.
	settled bool
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
	s.run = min(s.run+1, threshold)
	if s.settled = s.run >= threshold; s.settled {
		s.good = good
	}
	return s
}

// wait is how long it is until the next probe begins: the first one as soon as
// the initial delay has passed since the container's start, each further one a
// period after the one before began. previous is zero before the first, and
// period is 0 when it is the one of the spec.
func wait(spec *v1.Probe, period time.Duration, started, previous, now time.Time) time.Duration {
	if !previous.IsZero() {
		if period == 0 {
			period = seconds(spec.PeriodSeconds)
		}
		return previous.Add(period).Sub(now)
	}
	delay := seconds(spec.InitialDelaySeconds)
	// A clock that was set back since the start must not hold the probe up.
	return min(started.Add(delay).Sub(now), delay)
}

// Period is what an annotation of the pod says between two probes of that kind;
// 0 when it says nothing.
func Period(p *v1.Pod, container string, k Kind) time.Duration {
	d, err := time.ParseDuration(p.Annotations[pod.ProbePeriodKey(strings.ToLower(string(k)), container)])
	if err != nil {
		return 0 // validation has refused it, or there is none
	}
	return max(d, pod.MinProbePeriod)
}

func seconds(n int32) time.Duration { return time.Duration(n) * time.Second }
