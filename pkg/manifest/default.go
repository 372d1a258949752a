package manifest

import (
	"github.com/distribution/reference"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Default fills in what kube-apiserver v1.37 fills into a Pod on creation, for
// the fields of the support table. It changes pod in place and is idempotent.
// What admission plugins or the scheduler add (tolerations, a service account,
// a priority, a node) is not a default.
func Default(pod *v1.Pod) {
	spec := &pod.Spec
	defaultPodSpec(spec)
	for i := range spec.Volumes {
		defaultVolume(&spec.Volumes[i])
	}
	for _, containers := range [][]v1.Container{spec.InitContainers, spec.Containers} {
		for i := range containers {
			defaultContainer(&containers[i], spec.HostNetwork)
		}
	}
	defaultPodResources(pod)
	defaultAppArmor(pod)
}

func defaultPodSpec(spec *v1.PodSpec) {
	orDefault(&spec.DNSPolicy, v1.DNSClusterFirst)
	orDefault(&spec.RestartPolicy, v1.RestartPolicyAlways)
	orDefault(&spec.SchedulerName, v1.DefaultSchedulerName)
	// serviceAccount is the old name of serviceAccountName; both always agree.
	orDefault(&spec.ServiceAccountName, spec.DeprecatedServiceAccount)
	spec.DeprecatedServiceAccount = spec.ServiceAccountName
	switch grace := spec.TerminationGracePeriodSeconds; {
	case grace == nil:
		spec.TerminationGracePeriodSeconds = new(int64(v1.DefaultTerminationGracePeriodSeconds))
	case *grace < 0:
		spec.TerminationGracePeriodSeconds = new(int64(1))
	}
	if spec.EnableServiceLinks == nil {
		spec.EnableServiceLinks = new(v1.DefaultEnableServiceLinks)
	}
	if spec.SecurityContext == nil {
		spec.SecurityContext = &v1.PodSecurityContext{}
	}
	roundUp(spec.Overhead)
}

func defaultContainer(c *v1.Container, hostNetwork bool) {
	orDefault(&c.ImagePullPolicy, defaultPullPolicy(c.Image))
	orDefault(&c.TerminationMessagePath, v1.TerminationMessagePathDefault)
	orDefault(&c.TerminationMessagePolicy, v1.TerminationMessageReadFile)
	for _, probe := range []*v1.Probe{c.StartupProbe, c.LivenessProbe, c.ReadinessProbe} {
		if probe != nil {
			defaultProbe(probe)
		}
	}
	if l := c.Lifecycle; l != nil {
		for _, h := range []*v1.LifecycleHandler{l.PostStart, l.PreStop} {
			if h != nil && h.HTTPGet != nil {
				defaultHTTPGet(h.HTTPGet)
			}
		}
	}
	defaultEnv(c)
	for i := range c.Ports {
		port := &c.Ports[i]
		orDefault(&port.Protocol, v1.ProtocolTCP)
		if hostNetwork {
			orDefault(&port.HostPort, port.ContainerPort)
		}
	}
	if limits := c.Resources.Limits; limits != nil {
		if c.Resources.Requests == nil {
			c.Resources.Requests = v1.ResourceList{}
		}
		for name, limit := range limits {
			if _, set := c.Resources.Requests[name]; !set {
				c.Resources.Requests[name] = limit.DeepCopy()
			}
		}
	}
	roundUp(c.Resources.Limits)
	roundUp(c.Resources.Requests)
}

func defaultProbe(p *v1.Probe) {
	orDefault(&p.TimeoutSeconds, 1)
	orDefault(&p.PeriodSeconds, 10)
	orDefault(&p.SuccessThreshold, 1)
	orDefault(&p.FailureThreshold, 3)
	if p.HTTPGet != nil {
		defaultHTTPGet(p.HTTPGet)
	}
	if p.GRPC != nil && p.GRPC.Service == nil {
		p.GRPC.Service = new("")
	}
}

func defaultHTTPGet(h *v1.HTTPGetAction) {
	orDefault(&h.Path, "/")
	orDefault(&h.Scheme, v1.URISchemeHTTP)
}

// roundUp brings quantities to the precision of the API: thousandths.
func roundUp(list v1.ResourceList) {
	for name, q := range list {
		q.RoundUp(resource.Milli)
		list[name] = q
	}
}

// defaultPullPolicy is Always for an image that may move: tag latest, or no tag
// and no digest. A name that does not parse is the runtime's to refuse.
func defaultPullPolicy(image string) v1.PullPolicy {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return v1.PullIfNotPresent
	}
	if tagged, ok := named.(reference.Tagged); ok {
		if tagged.Tag() == "latest" {
			return v1.PullAlways
		}
		return v1.PullIfNotPresent
	}
	if _, ok := named.(reference.Digested); ok {
		return v1.PullIfNotPresent
	}
	return v1.PullAlways
}

// orDefault gives a field that is unset a value.
func orDefault[T comparable](field *T, value T) {
	var unset T
	if *field == unset {
		*field = value
	}
}
