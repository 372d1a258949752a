package eviction

import (
	"fmt"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// What the metric of evictions calls a pod's own limits.
const (
	signalEmptyDir  = "emptydirfs.limit"
	signalPod       = "ephemeralpodfs.limit"
	signalContainer = "ephemeralcontainerfs.limit"
)

// maxOwnFiles is what the files that the agent gives to a pod may grow to, in
// bytes, whatever its limits are. Nothing that they are for comes near it.
const maxOwnFiles = 32 << 20

// limits says what has to be measured of a pod to know whether it keeps to its
// limits on disk.
func limits(p *v1.Pod) Need {
	limit := pod.Limits(p)[v1.ResourceEphemeralStorage]
	n := Need{Volumes: !limit.IsZero(), Layers: !limit.IsZero()}
	for i := range p.Spec.Volumes {
		n.Volumes = n.Volumes || sizeLimit(&p.Spec.Volumes[i]) > 0
	}
	return n
}

// sizeLimit is the limit of an emptyDir, in bytes, which nothing but eviction
// enforces: the kernel has no quota for a folder. A tmpfs is as large as its
// limit. 0: none.
func sizeLimit(v *v1.Volume) int64 {
	e := v.EmptyDir
	if e == nil || e.Medium == v1.StorageMediumMemory || e.SizeLimit == nil || e.SizeLimit.Sign() <= 0 {
		return 0
	}
	return e.SizeLimit.Value()
}

// exceeded says in kubelet's words which of its own limits a pod exceeds, the
// first of those of its volumes, of the whole pod and of its containers; empty
// when it keeps to all of them.
func exceeded(c Candidate, d disks) (signal, message string) {
	for i := range c.Pod.Spec.Volumes {
		v := &c.Pod.Spec.Volumes[i]
		if limit := sizeLimit(v); limit > 0 && c.Usage.Volumes[v.Name].Bytes > limit {
			return signalEmptyDir, fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, v.EmptyDir.SizeLimit.String())
		}
	}
	limit := pod.Limits(c.Pod)[v1.ResourceEphemeralStorage]
	if total := ephemeralStorage(c); !limit.IsZero() && total > limit.Value() {
		return signalPod, fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", limit.String())
	}
	for _, u := range c.Usage.Containers {
		spec, init, ok := pod.Container(c.Pod, u.Name)
		if !ok || init && !pod.IsSidecar(spec) {
			continue
		}
		used := u.Logs.Bytes
		if !d.imageFS {
			used += u.Layer.Bytes
		}
		if limit := spec.Resources.Limits.StorageEphemeral(); !limit.IsZero() && used > limit.Value() {
			return signalContainer, fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", u.Name, limit.String())
		}
	}
	// No volume counts them (CVE-2020-8557).
	if c.Usage.Own.Bytes > maxOwnFiles {
		return signalPod, fmt.Sprintf("Usage of /etc/hosts and termination messages exceeds the limit \"%dMi\". ", maxOwnFiles>>20)
	}
	return "", ""
}

// ephemeralStorage is all that a pod has on the node's disks, in bytes.
func ephemeralStorage(c Candidate) int64 {
	sum := c.Usage.Own.plus(localVolumes(c))
	for _, u := range c.Usage.Containers {
		sum = sum.plus(u.Layer).plus(u.Logs)
	}
	return sum.Bytes
}
