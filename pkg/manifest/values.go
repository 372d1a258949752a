package manifest

import (
	"net/netip"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// valueCheck refuses a value that Kubernetes accepts and this agent does not
// do. It returns "" or a message; at is the path the message belongs to when it
// is not the field itself (a key of a map).
type valueCheck func(n *node, p *path) (at *path, msg string)

// valueChecks are the rows of the support table that concern values, by Go type
// and JSON name.
var valueChecks = map[string]valueCheck{
	"ObjectMeta.annotations": checkAnnotations,

	"PodSpec.overhead": checkResources,

	"PodOS.name": onlyValues("runs pods of Linux only", "", string(v1.Linux)),

	"ContainerPort.hostIP": checkHostIP,

	"ResourceRequirements.limits":   checkResources,
	"ResourceRequirements.requests": checkResources,

	"Overhead.podFixed": checkResources,

	"EmptyDirVolumeSource.medium": checkMedium,
}

// onlyValues accepts nothing but the listed values of a field.
func onlyValues(why string, accepted ...string) valueCheck {
	quoted := make([]string, 0, len(accepted))
	for _, a := range accepted {
		if a != "" {
			quoted = append(quoted, a)
		}
	}
	return func(n *node, p *path) (*path, string) {
		if slices.Contains(accepted, n.text) {
			return p, ""
		}
		return p, n.describe() + " is not supported: this version of nodeagent " + why +
			"; use " + strings.Join(quoted, " or ") + ", or remove the field"
	}
}

// checkAnnotations refuses the annotations that once were the field for a
// seccomp profile: a profile that nobody applies is a hole.
func checkAnnotations(n *node, p *path) (*path, string) {
	for _, e := range n.entries {
		if e.key == v1.SeccompPodAnnotationKey || strings.HasPrefix(e.key, v1.SeccompContainerAnnotationKeyPrefix) {
			return p.mapKey(e.key), "no kubelet since v1.27 applies it, and neither does nodeagent: remove it and use securityContext.seccompProfile"
		}
	}
	return nil, ""
}

// checkMedium refuses what the API server lets through and nothing can be
// mounted for.
func checkMedium(n *node, p *path) (*path, string) {
	size, huge := strings.CutPrefix(n.text, string(v1.StorageMediumHugePagesPrefix))
	if q, err := parseQuantity(size); huge && err == nil && q.Sign() > 0 {
		return p, ""
	}
	return onlyValues("knows no other media", "", string(v1.StorageMediumMemory), string(v1.StorageMediumHugePages), "HugePages-2Mi")(n, p)
}

// checkHostIP refuses what the API server lets through and no runtime can
// bind: kubelet's behaviour then is to bind every address.
func checkHostIP(n *node, p *path) (*path, string) {
	if n.text == "" {
		return p, ""
	}
	if _, err := netip.ParseAddr(n.text); err != nil {
		return p, n.describe() + " is not an IP address; the port cannot be bound to it"
	}
	return p, ""
}

// checkResources refuses resources that nothing on this node counts or
// enforces. Names that Kubernetes itself refuses are left to Validate.
func checkResources(n *node, p *path) (*path, string) {
	for _, e := range n.entries {
		if strings.Contains(e.key, "/") {
			return p.mapKey(e.key), notSupported
		}
	}
	return nil, ""
}
