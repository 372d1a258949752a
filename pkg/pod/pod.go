// Package pod holds what everybody needs to know about a core/v1 Pod and
// nobody should write twice: keys, label and annotation names, stable
// identity, and pure helpers. It does no I/O.
package pod

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Key names a pod on this node: at most one pod of a key runs at a time.
type Key struct {
	Namespace string
	Name      string
}

// String is "namespace/name", or "name" of what is in no namespace.
func (k Key) String() string {
	if k.Namespace == "" {
		return k.Name
	}
	return k.Namespace + "/" + k.Name
}

// KeyOf returns the key of any namespaced object.
func KeyOf(o metav1.Object) Key { return Key{Namespace: o.GetNamespace(), Name: o.GetName()} }

// Describe is how log lines and errors name a pod: "namespace/name (uid)".
func Describe(p *v1.Pod) string { return fmt.Sprintf("%s/%s (%s)", p.Namespace, p.Name, p.UID) }

// Labels and annotations on sandboxes and containers. The io.kubernetes.* ones
// are kubelet's, so that crictl, cAdvisor and log collectors work unchanged;
// the nodeagent.dev/* ones are ours.
const (
	LabelPodName       = "io.kubernetes.pod.name"
	LabelPodNamespace  = "io.kubernetes.pod.namespace"
	LabelPodUID        = "io.kubernetes.pod.uid"
	LabelContainerName = "io.kubernetes.container.name"

	AnnotationContainerHash             = "io.kubernetes.container.hash"
	AnnotationRestartCount              = "io.kubernetes.container.restartCount"
	AnnotationTerminationMessagePath    = "io.kubernetes.container.terminationMessagePath"
	AnnotationTerminationMessagePolicy  = "io.kubernetes.container.terminationMessagePolicy"
	AnnotationContainerPorts            = "io.kubernetes.container.ports"
	AnnotationPreStop                   = "io.kubernetes.container.preStopHandler"
	AnnotationPodTerminationGracePeriod = "io.kubernetes.pod.terminationGracePeriod"

	// AnnotationConfigSource, …Hash and …Seen stand on pods and sandboxes,
	// as kubelet writes them.
	AnnotationConfigSource = "kubernetes.io/config.source"
	AnnotationConfigHash   = "kubernetes.io/config.hash"
	AnnotationConfigSeen   = "kubernetes.io/config.seen"
	// AnnotationConfigMirror stands on pods that the API cannot end, which
	// "kubectl drain" passes over.
	AnnotationConfigMirror = "kubernetes.io/config.mirror"

	// LabelOwner marks every sandbox and container that an agent made; its
	// value is the agent's instance name. On a shared runtime nothing
	// without it is touched.
	LabelOwner = "nodeagent.dev/owner"
	// AnnotationContainerImage is the image as the spec wrote it, so that an
	// image change is seen without hashing Go structs.
	AnnotationContainerImage = "nodeagent.dev/image"
	// AnnotationContainerKind is "init" or "app".
	AnnotationContainerKind = "nodeagent.dev/container-kind"
	// AnnotationBackoffLevel is how many crashes in a row a container follows,
	// so that a restarted agent goes on with the same crash back-off.
	AnnotationBackoffLevel = "nodeagent.dev/backoff-level"
	// AnnotationReset is the container whose exit had all of the pod restarted
	// before this one was made.
	AnnotationReset = "nodeagent.dev/reset-by"
	// AnnotationOrigin is the file, URL or "api" a pod came from; set on pods
	// that the store hands out.
	AnnotationOrigin = "nodeagent.dev/origin"
	// AnnotationProblem is why an object cannot be served; set on objects that
	// are shown.
	AnnotationProblem = "nodeagent.dev/problem"
)

// DefaultNamespace is where a pod goes when the manifest names none.
const DefaultNamespace = metav1.NamespaceDefault

// IsTerminal says that the phase never changes again.
func IsTerminal(phase v1.PodPhase) bool {
	return phase == v1.PodSucceeded || phase == v1.PodFailed
}

// IsSidecar says that an init container goes on beside the others.
func IsSidecar(c *v1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways
}

// HasResetRule says that the exit of one of the pod's containers may have all of
// them begin anew.
func HasResetRule(p *v1.Pod) bool {
	for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			for _, r := range list[i].RestartPolicyRules {
				if r.Action == v1.ContainerRestartRuleActionRestartAllContainers {
					return true
				}
			}
		}
	}
	return false
}

// Container finds a container by name, be it an init container (sidecars among
// them), an app container or an ephemeral one.
func Container(p *v1.Pod, name string) (c *v1.Container, init bool, ok bool) {
	for i := range p.Spec.InitContainers {
		if p.Spec.InitContainers[i].Name == name {
			return &p.Spec.InitContainers[i], true, true
		}
	}
	for i := range p.Spec.Containers {
		if p.Spec.Containers[i].Name == name {
			return &p.Spec.Containers[i], false, true
		}
	}
	for i := range p.Spec.EphemeralContainers {
		if e := &p.Spec.EphemeralContainers[i]; e.Name == name {
			return (*v1.Container)(&e.EphemeralContainerCommon), false, true
		}
	}
	return nil, false, false
}

// ReadsOnly says that a volume is mounted, and by nobody to write to it.
func ReadsOnly(p *v1.Pod, volume string) bool {
	mounted := false
	for i := range p.Spec.Volumes {
		if v := &p.Spec.Volumes[i]; v.Name == volume && neverWritten(v) {
			return true
		}
	}
	for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			for _, m := range list[i].VolumeMounts {
				if m.Name == volume && !m.ReadOnly {
					return false
				}
				mounted = mounted || m.Name == volume
			}
		}
	}
	return mounted
}

// neverWritten says that a volume is read-only whoever mounts it.
func neverWritten(v *v1.Volume) bool {
	return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil || v.Image != nil ||
		v.NFS != nil && v.NFS.ReadOnly || v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ReadOnly
}

// GracePeriod is how long a pod gets to end.
func GracePeriod(p *v1.Pod) time.Duration {
	if p.DeletionGracePeriodSeconds != nil {
		return Grace(*p.DeletionGracePeriodSeconds)
	}
	if p.Spec.TerminationGracePeriodSeconds != nil {
		return Grace(*p.Spec.TerminationGracePeriodSeconds)
	}
	return Grace(v1.DefaultTerminationGracePeriodSeconds)
}

// maxGrace is ten years.
const maxGrace = 10 * 365 * 24 * time.Hour

// Grace is a grace period in seconds as a duration. Kubernetes takes any number
// of seconds; one that overflows must not end a pod at once.
func Grace(seconds int64) time.Duration {
	if seconds > int64(maxGrace/time.Second) {
		return maxGrace
	}
	return time.Duration(max(0, seconds)) * time.Second
}

// UIDSet is a set of pod UIDs.
type UIDSet map[types.UID]struct{}
