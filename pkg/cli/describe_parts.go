package cli

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// probeText is one probe on one line.
func probeText(p *v1.Probe) string {
	times := fmt.Sprintf("delay=%ds timeout=%ds period=%ds #success=%d #failure=%d",
		p.InitialDelaySeconds, p.TimeoutSeconds, p.PeriodSeconds, p.SuccessThreshold, p.FailureThreshold)
	switch {
	case p.Exec != nil:
		return fmt.Sprintf("exec [%s] %s", strings.Join(p.Exec.Command, " "), times)
	case p.HTTPGet != nil:
		h := p.HTTPGet
		return fmt.Sprintf("http-get %s://%s:%s%s %s", strings.ToLower(string(h.Scheme)), h.Host, h.Port.String(), h.Path, times)
	case p.TCPSocket != nil:
		return fmt.Sprintf("tcp-socket %s:%s %s", p.TCPSocket.Host, p.TCPSocket.Port.String(), times)
	case p.GRPC != nil:
		return fmt.Sprintf("grpc <pod>:%d %s", p.GRPC.Port, times)
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
		kind := ""
		if s.HostPath.Type != nil {
			kind = string(*s.HostPath.Type)
		}
		d.line(2, "Type:\tHostPath (bare host directory volume)")
		d.line(2, "Path:\t%s", s.HostPath.Path)
		d.line(2, "HostPathType:\t%s", kind)
	case s.ConfigMap != nil:
		d.line(2, "Type:\tConfigMap (a volume populated by a ConfigMap)")
		d.line(2, "Name:\t%s", s.ConfigMap.Name)
		d.line(2, "Optional:\t%s", s.ConfigMap.Optional != nil && *s.ConfigMap.Optional)
	case s.Secret != nil:
		d.line(2, "Type:\tSecret (a volume populated by a Secret)")
		d.line(2, "SecretName:\t%s", s.Secret.SecretName)
		d.line(2, "Optional:\t%s", s.Secret.Optional != nil && *s.Secret.Optional)
	default:
		d.line(2, "Type:\t<unknown>")
	}
}
