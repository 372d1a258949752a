package pod

import (
	"strings"
	"time"
)

// probePeriodSuffix ends the prefix of the annotations that say how often a
// container is probed: KIND.probe-period.nodeagent.dev/CONTAINER: 200ms.
const probePeriodSuffix = ".probe-period.nodeagent.dev"

// MinProbePeriod is the shortest time between two probes.
const MinProbePeriod = 10 * time.Millisecond

// ProbePeriodKey is the annotation for a probe of that kind ("startup",
// "liveness", "readiness") of a container.
func ProbePeriodKey(kind, container string) string { return kind + probePeriodSuffix + "/" + container }

// ProbeOfPeriodKey says what such an annotation is for.
func ProbeOfPeriodKey(key string) (kind, container string, ok bool) {
	prefix, container, _ := strings.Cut(key, "/")
	kind, ok = strings.CutSuffix(prefix, probePeriodSuffix)
	return kind, container, ok
}

// MaxFQDN is the longest name that the kernel takes for a host.
const MaxFQDN = 64
