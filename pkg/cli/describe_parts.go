package cli

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// probeText is one probe on one line.
func probeText(p *v1.Probe) string {
	times := fmt.Sprintf("delay=%ds timeout=%ds period=%ds successThreshold=%d failureThreshold=%d",
		p.InitialDelaySeconds, p.TimeoutSeconds, p.PeriodSeconds, p.SuccessThreshold, p.FailureThreshold)
	switch {
	case p.Exec != nil:
		return fmt.Sprintf("exec [%s] %s", strings.Join(p.Exec.Command, " "), times)
	case p.HTTPGet != nil:
		h := p.HTTPGet
		u := url.URL{Scheme: strings.ToLower(string(h.Scheme)), Host: net.JoinHostPort(h.Host, h.Port.String()), Path: h.Path}
		return fmt.Sprintf("http-get %s %s", u.String(), times)
	case p.TCPSocket != nil:
		return fmt.Sprintf("tcp-socket %s:%s %s", p.TCPSocket.Host, p.TCPSocket.Port.String(), times)
	case p.GRPC != nil:
		service := ""
		if p.GRPC.Service != nil {
			service = *p.GRPC.Service
		}
		return fmt.Sprintf("grpc <pod>:%d %s %s", p.GRPC.Port, service, times)
	}
	return "unknown " + times
}

func (d page) volumes(volumes []v1.Volume) {
	if len(volumes) == 0 {
		d.line(0, "Volumes:\t<none>")
		return
	}
	d.line(0, "Volumes:")
	for i := range volumes {
		v := &volumes[i]
		d.line(1, "%s:", v.Name)
		d.volume(&v.VolumeSource)
	}
}

func (d page) volume(s *v1.VolumeSource) {
	switch {
	case s.EmptyDir != nil:
		limit := "<unset>"
		if l := s.EmptyDir.SizeLimit; l != nil && l.Sign() > 0 {
			limit = l.String()
		}
		d.line(2, "Type:\tEmptyDir (a temporary directory that shares a pod's lifetime)")
		d.line(2, "Medium:\t%s", s.EmptyDir.Medium)
		d.line(2, "SizeLimit:\t%s", limit)
	case s.HostPath != nil:
		kind := "<none>"
		if s.HostPath.Type != nil {
			kind = string(*s.HostPath.Type)
		}
		d.line(2, "Type:\tHostPath (bare host directory volume)")
		d.line(2, "Path:\t%s", s.HostPath.Path)
		d.line(2, "HostPathType:\t%s", kind)
	case s.ConfigMap != nil:
		d.line(2, "Type:\tConfigMap (a volume populated by a ConfigMap)")
		d.line(2, "Name:\t%s", s.ConfigMap.Name)
		d.line(2, "Optional:\t%s", isTrue(s.ConfigMap.Optional))
	case s.Secret != nil:
		d.line(2, "Type:\tSecret (a volume populated by a Secret)")
		d.line(2, "SecretName:\t%s", s.Secret.SecretName)
		d.line(2, "Optional:\t%s", isTrue(s.Secret.Optional))
	case s.DownwardAPI != nil:
		d.line(2, "Type:\tDownwardAPI (a volume populated by information about the pod)")
		d.downward(s.DownwardAPI.Items)
	case s.Projected != nil:
		d.line(2, "Type:\tProjected (a volume that contains injected data from multiple sources)")
		for _, from := range s.Projected.Sources {
			d.projection(from)
		}
	case s.PersistentVolumeClaim != nil:
		d.line(2, "Type:\tPersistentVolumeClaim (a reference to a PersistentVolumeClaim in the same namespace)")
		d.line(2, "ClaimName:\t%s", s.PersistentVolumeClaim.ClaimName)
		d.line(2, "ReadOnly:\t%s", s.PersistentVolumeClaim.ReadOnly)
	case s.Ephemeral != nil:
		d.line(2, "Type:\tEphemeralVolume (an inline specification for a volume that gets created and deleted with the pod)")
		if s.Ephemeral.VolumeClaimTemplate != nil {
			d.claim(s.Ephemeral.VolumeClaimTemplate)
		}
	case s.NFS != nil:
		d.line(2, "Type:\tNFS (an NFS mount that lasts the lifetime of a pod)")
		d.line(2, "Server:\t%s", s.NFS.Server)
		d.line(2, "Path:\t%s", s.NFS.Path)
		d.line(2, "ReadOnly:\t%s", s.NFS.ReadOnly)
	case s.Image != nil:
		d.line(2, "Type:\tImage (a container image or OCI artifact)")
		d.line(2, "Reference:\t%s", s.Image.Reference)
		d.line(2, "PullPolicy:\t%s", s.Image.PullPolicy)
	default:
		d.line(2, "Type:\t<unknown>")
	}
}

func (d page) projection(from v1.VolumeProjection) {
	switch {
	case from.ConfigMap != nil:
		d.line(2, "ConfigMapName:\t%s", from.ConfigMap.Name)
		d.line(2, "Optional:\t%s", isTrue(from.ConfigMap.Optional))
	case from.Secret != nil:
		d.line(2, "SecretName:\t%s", from.Secret.Name)
		d.line(2, "Optional:\t%s", isTrue(from.Secret.Optional))
	case from.DownwardAPI != nil:
		d.line(2, "DownwardAPI:\ttrue")
	}
}

func (d page) downward(items []v1.DownwardAPIVolumeFile) {
	d.line(2, "Items:")
	for _, i := range items {
		switch {
		case i.FieldRef != nil:
			d.line(3, "%s -> %s", i.FieldRef.FieldPath, i.Path)
		case i.ResourceFieldRef != nil:
			d.line(3, "%s -> %s", i.ResourceFieldRef.Resource, i.Path)
		}
	}
}

func isTrue(b *bool) bool { return b != nil && *b }

// claim is a claim that is yet to be made.
func (d page) claim(t *v1.PersistentVolumeClaimTemplate) {
	class := ""
	if t.Spec.StorageClassName != nil {
		class = *t.Spec.StorageClassName
	}
	d.line(2, "StorageClass:\t%s", class)
	d.line(2, "Volume:\t%s", t.Spec.VolumeName)
	d.wordsAt(2, "Labels", pairs(t.Labels, "="))
	d.wordsAt(2, "Annotations", pairs(t.Annotations, ": "))
	d.line(2, "Capacity:\t")
	d.line(2, "Access Modes:\t")
	if t.Spec.VolumeMode != nil {
		d.line(2, "VolumeMode:\t%s", *t.Spec.VolumeMode)
	}
}

func (d page) spread(list []v1.TopologySpreadConstraint) {
	var lines []string
	for _, c := range slices.SortedStableFunc(slices.Values(list), func(a, b v1.TopologySpreadConstraint) int { return strings.Compare(a.TopologyKey, b.TopologyKey) }) {
		line := fmt.Sprintf("%s:%s when max skew %d is exceeded", c.TopologyKey, c.WhenUnsatisfiable, c.MaxSkew)
		if c.LabelSelector != nil {
			line += " for selector " + metav1.FormatLabelSelector(c.LabelSelector)
		}
		lines = append(lines, line)
	}
	if len(lines) > 0 {
		d.words("Topology Spread Constraints", lines)
	}
}
