package runtime

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/dump"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// Values of pod.AnnotationContainerKind.
const (
	kindInit = "init"
	kindApp  = "app"
)

// Annotations of kubelet that only this file writes.
const (
	annotationDeletionGrace = "io.kubernetes.pod.deletionGracePeriod"
)

// translator turns core/v1 into CRI. It is pure: everything it needs of the
// host was read when it was made, so that equal input gives equal output.
type translator struct {
	owner       string
	seccompRoot string
	host        hostFacts
	policy      Policy
}

// sandbox translates what a pod needs as a whole.
func (t *translator) sandbox(p *v1.Pod, o SandboxOptions) (*cri.PodSandboxConfig, error) {
	sec, err := t.sandboxSecurity(p, o.FirstUser)
	if err != nil {
		return nil, err
	}
	cfg := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{
			Name: p.Name, Namespace: p.Namespace, Uid: string(p.UID), Attempt: o.Attempt,
		},
		LogDirectory: o.LogDir,
		DnsConfig:    &cri.DNSConfig{Servers: o.DNS.Servers, Searches: o.DNS.Searches, Options: o.DNS.Options},
		Labels:       t.podLabels(p),
		Annotations:  maps.Clone(p.Annotations),
		PortMappings: portMappings(p),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    o.CgroupParent,
			SecurityContext: sec,
			Sysctls:         sysctls(p),
			Overhead:        &cri.LinuxContainerResources{},
		},
	}
	if !p.Spec.HostNetwork {
		cfg.Hostname = o.Hostname
	}
	bare := pod.WithoutOverhead(p)
	cfg.Linux.Resources = t.resources(pod.Requests(bare), pod.Limits(bare))
	if len(o.Overhead) > 0 {
		cfg.Linux.Overhead = t.resources(o.Overhead, o.Overhead)
	}
	return cfg, nil
}

// podLabels are the pod's own with kubelet's and the owner's over them.
func (t *translator) podLabels(p *v1.Pod) map[string]string {
	m := make(map[string]string, len(p.Labels)+4)
	maps.Copy(m, p.Labels)
	m[pod.LabelPodName] = p.Name
	m[pod.LabelPodNamespace] = p.Namespace
	m[pod.LabelPodUID] = string(p.UID)
	m[pod.LabelOwner] = t.owner
	return m
}

func sysctls(p *v1.Pod) map[string]string {
	m := map[string]string{}
	if sc := p.Spec.SecurityContext; sc != nil {
		for _, s := range sc.Sysctls {
			m[s.Name] = s.Value
		}
	}
	return m
}

// portMappings are the host ports. Under host network the process binds the
// host's port itself, and a mapping would send the port to nowhere.
func portMappings(p *v1.Pod) []*cri.PortMapping {
	if p.Spec.HostNetwork {
		return nil
	}
	var out []*cri.PortMapping
	seen := map[string]bool{}
	add := func(c *v1.Container) {
		for _, cp := range c.Ports {
			if cp.HostPort <= 0 {
				continue
			}
			m := &cri.PortMapping{HostIp: cp.HostIP, HostPort: cp.HostPort, ContainerPort: cp.ContainerPort, Protocol: protocolOf(cp.Protocol)}
			// The same mapping twice makes the portmap plugin fail the pod.
			key := fmt.Sprintf("%s|%d|%d", m.HostIp, m.HostPort, m.Protocol)
			if !seen[key] {
				seen[key] = true
				out = append(out, m)
			}
		}
	}
	for i := range p.Spec.InitContainers {
		if pod.IsSidecar(&p.Spec.InitContainers[i]) {
			add(&p.Spec.InitContainers[i])
		}
	}
	for i := range p.Spec.Containers {
		add(&p.Spec.Containers[i])
	}
	return out
}

func protocolOf(p v1.Protocol) cri.Protocol {
	switch p {
	case v1.ProtocolUDP:
		return cri.Protocol_UDP
	case v1.ProtocolSCTP:
		return cri.Protocol_SCTP
	default:
		return cri.Protocol_TCP
	}
}

// container translates one container; Command, Args and Env come expanded.
func (t *translator) container(p *v1.Pod, c *v1.Container, o ContainerOptions) (*cri.ContainerConfig, error) {
	sec, err := t.containerSecurity(p, c, o.Sandbox.FirstUser)
	if err != nil {
		return nil, err
	}
	if o.Target != "" {
		sec.NamespaceOptions.Pid, sec.NamespaceOptions.TargetId = cri.NamespaceMode_TARGET, o.Target
	}
	for _, g := range o.Groups {
		if !slices.Contains(sec.SupplementalGroups, g) {
			sec.SupplementalGroups = append(sec.SupplementalGroups, g)
		}
	}
	anns, err := containerAnnotations(p, c, o)
	if err != nil {
		return nil, err
	}
	res := t.containerResources(p, c)
	res.OomScoreAdj = o.OOMScore
	cfg := &cri.ContainerConfig{
		Metadata:   &cri.ContainerMetadata{Name: c.Name, Attempt: o.Attempt},
		Image:      &cri.ImageSpec{Image: o.ImageRef, UserSpecifiedImage: c.Image},
		Command:    o.Command,
		Args:       o.Args,
		WorkingDir: c.WorkingDir,
		LogPath:    o.LogPath,
		Stdin:      c.Stdin,
		StdinOnce:  c.StdinOnce,
		Tty:        c.TTY,
		Labels: map[string]string{
			pod.LabelPodName:       p.Name,
			pod.LabelPodNamespace:  p.Namespace,
			pod.LabelPodUID:        string(p.UID),
			pod.LabelContainerName: c.Name,
			pod.LabelOwner:         t.owner,
		},
		Annotations: anns,
		Linux:       &cri.LinuxContainerConfig{Resources: res, SecurityContext: sec},
	}
	for _, e := range o.Env {
		cfg.Envs = append(cfg.Envs, &cri.KeyValue{Key: e.Name, Value: []byte(e.Value)})
	}
	if cfg.Mounts, err = mounts(o.Mounts); err != nil {
		return nil, err
	}
	if users := sec.NamespaceOptions.UsernsOptions; users != nil {
		for _, m := range cfg.Mounts {
			m.UidMappings, m.GidMappings = users.Uids, users.Gids
		}
	}
	for _, d := range o.Devices {
		if err := addDevice(cfg, d); err != nil {
			return nil, err
		}
	}
	if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		n, ok := cri.Signal_value["SIGNAL_"+string(*c.Lifecycle.StopSignal)]
		if !ok {
			return nil, fmt.Errorf("%w: stop signal %q", errdefs.ErrInvalid, *c.Lifecycle.StopSignal)
		}
		cfg.StopSignal = cri.Signal(n)
	}
	return cfg, nil
}

func containerAnnotations(p *v1.Pod, c *v1.Container, o ContainerOptions) (map[string]string, error) {
	kind := kindApp
	if o.Init {
		kind = kindInit
	}
	m := make(map[string]string, len(o.Annotations)+10)
	maps.Copy(m, o.Annotations) // the caller's notes, the back-off level among them
	maps.Copy(m, map[string]string{
		pod.AnnotationContainerHash:            kubeletHash(c),
		pod.AnnotationRestartCount:             strconv.FormatUint(uint64(o.Attempt), 10),
		pod.AnnotationTerminationMessagePath:   c.TerminationMessagePath,
		pod.AnnotationTerminationMessagePolicy: string(c.TerminationMessagePolicy),
		pod.AnnotationContainerImage:           c.Image,
		pod.AnnotationContainerKind:            kind,
	})
	if s := p.DeletionGracePeriodSeconds; s != nil {
		m[annotationDeletionGrace] = strconv.FormatInt(*s, 10)
	}
	if s := p.Spec.TerminationGracePeriodSeconds; s != nil {
		m[pod.AnnotationPodTerminationGracePeriod] = strconv.FormatInt(*s, 10)
	}
	if c.Lifecycle != nil && c.Lifecycle.PreStop != nil {
		if err := annotateJSON(m, pod.AnnotationPreStop, c.Lifecycle.PreStop); err != nil {
			return nil, err
		}
	}
	if len(c.Ports) > 0 {
		if err := annotateJSON(m, pod.AnnotationContainerPorts, c.Ports); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func annotateJSON(m map[string]string, key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("%w: annotation %s: %w", errdefs.ErrInvalid, key, err)
	}
	m[key] = string(b)
	return nil
}

// kubeletHash is what kubelet 1.31 and newer writes for a container, so that a
// kubelet that takes the node back does not restart it. Nothing of ours reads it.
func kubeletHash(c *v1.Container) string {
	b, err := json.Marshal(map[string]string{"name": c.Name, "image": c.Image})
	if err != nil { // a map of strings always marshals
		return "0"
	}
	h := fnv.New32a()
	_, _ = fmt.Fprintf(h, "%v", dump.ForHash(b))
	return strconv.FormatUint(uint64(h.Sum32()), 16)
}

func mounts(in []Mount) ([]*cri.Mount, error) {
	out := make([]*cri.Mount, 0, len(in))
	for _, m := range in {
		c := &cri.Mount{
			ContainerPath: m.ContainerPath, HostPath: m.HostPath,
			Readonly: m.ReadOnly, RecursiveReadOnly: m.RecursiveReadOnly, SelinuxRelabel: m.SELinux,
		}
		if m.Image != "" {
			c.HostPath, c.Image, c.ImageSubPath = "", &cri.ImageSpec{Image: m.Image}, m.ImageSubPath
		}
		switch v1.MountPropagationMode(m.Propagation) {
		case "", v1.MountPropagationNone:
			c.Propagation = cri.MountPropagation_PROPAGATION_PRIVATE
		case v1.MountPropagationHostToContainer:
			c.Propagation = cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		case v1.MountPropagationBidirectional:
			c.Propagation = cri.MountPropagation_PROPAGATION_BIDIRECTIONAL
		default:
			return nil, fmt.Errorf("%w: mount propagation %q of volume %s", errdefs.ErrInvalid, m.Propagation, m.Name)
		}
		if !path.IsAbs(c.ContainerPath) {
			// Windows left aside, the API takes a path relative to the root.
			c.ContainerPath = "/" + c.ContainerPath
		}
		out = append(out, c)
	}
	return out, nil
}

// addDevice takes HOST[:CONTAINER[:rwm]] or the name of a CDI device,
// vendor/class=name.
func addDevice(cfg *cri.ContainerConfig, d string) error {
	if !strings.HasPrefix(d, "/") {
		if !strings.Contains(d, "=") {
			return fmt.Errorf("%w: device %q is neither a path nor a CDI name", errdefs.ErrInvalid, d)
		}
		cfg.CDIDevices = append(cfg.CDIDevices, &cri.CDIDevice{Name: d})
		return nil
	}
	f := strings.Split(d, ":")
	dev := &cri.Device{HostPath: f[0], ContainerPath: f[0], Permissions: "rwm"}
	if len(f) > 1 && f[1] != "" {
		dev.ContainerPath = f[1]
	}
	if len(f) > 2 {
		dev.Permissions = f[2]
	}
	if len(f) > 3 || strings.Trim(dev.Permissions, "rwm") != "" || dev.Permissions == "" {
		return fmt.Errorf("%w: device %q: want HOST[:CONTAINER[:rwm]]", errdefs.ErrInvalid, d)
	}
	cfg.Devices = append(cfg.Devices, dev)
	return nil
}
