package lifecycle

import (
	"strconv"
	"time"

	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// Backoff is the crash back-off: the first restart is at once, the next after
// Base, doubling to Max; a container that ran for Reset starts over.
type Backoff struct {
	Base, Max, Reset time.Duration
}

// Delay is the pause before a container that follows level crashes in a row.
func (b Backoff) Delay(level int) time.Duration {
	if level <= 0 {
		return 0
	}
	d := b.Base
	for i := 1; i < level && d < b.Max; i++ {
		d *= 2
	}
	return min(d, b.Max)
}

// level is the number of crashes in a row up to and with the exit of c.
func (b Backoff) level(c *runtime.Container) int {
	if !c.StartedAt.IsZero() && c.FinishedAt.Sub(c.StartedAt) >= b.Reset {
		return 0
	}
	n, err := strconv.Atoi(c.Annotations[pod.AnnotationBackoffLevel])
	if err != nil || n < 0 {
		return 0
	}
	return n
}
