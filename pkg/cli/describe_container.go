package cli

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// maxAnnotation is what an annotation may take of a line; a longer one, and one
// of several lines, begins on a line of its own.
const maxAnnotation = 140

// annotations leaves out what kubectl notes down for itself.
func (d page) annotations(m map[string]string) {
	var lines []string
	for _, k := range sortedKeys(m) {
		value := strings.TrimSuffix(m[k], "\n")
		switch {
		case k == v1.LastAppliedConfigAnnotation:
		case len(k)+len(value)+2 <= maxAnnotation && !strings.Contains(value, "\n"):
			lines = append(lines, k+": "+value)
		default:
			lines = append(lines, k+":")
			for l := range strings.SplitSeq(value, "\n") {
				if len(l) > maxAnnotation-2 {
					l = l[:maxAnnotation-2] + "..."
				}
				lines = append(lines, "  "+l)
			}
		}
	}
	d.words("Annotations", lines)
}

func (d page) seccomp(level, below int, profile *v1.SeccompProfile) {
	if profile == nil {
		return
	}
	d.line(level, "SeccompProfile:\t%s", profile.Type)
	if profile.LocalhostProfile != nil {
		d.line(below, "LocalhostProfile:\t%s", *profile.LocalhostProfile)
	}
}

func (d page) gates(p *v1.Pod) {
	if len(p.Spec.ReadinessGates) == 0 {
		return
	}
	d.line(0, "Readiness Gates:\n  Type\tStatus")
	for _, g := range p.Spec.ReadinessGates {
		status := "<none>"
		if i := slices.IndexFunc(p.Status.Conditions, func(c v1.PodCondition) bool { return c.Type == g.ConditionType }); i >= 0 {
			status = string(p.Status.Conditions[i].Status)
		}
		d.line(1, "%s \t%s ", g.ConditionType, status)
	}
}

func (d page) environment(p *v1.Pod, c *v1.Container) {
	if len(c.EnvFrom) > 0 {
		d.line(2, "Environment Variables from:")
	}
	for _, e := range c.EnvFrom {
		with := ""
		if e.Prefix != "" {
			with = " with prefix '" + e.Prefix + "'"
		}
		switch {
		case e.ConfigMapRef != nil:
			d.line(3, "%s\tConfigMap%s\tOptional: %s", e.ConfigMapRef.Name, with, isTrue(e.ConfigMapRef.Optional))
		case e.SecretRef != nil:
			d.line(3, "%s\tSecret%s\tOptional: %s", e.SecretRef.Name, with, isTrue(e.SecretRef.Optional))
		}
	}
	if len(c.Env) == 0 {
		d.line(2, "Environment:\t<none>")
		return
	}
	d.line(2, "Environment:")
	for _, e := range c.Env {
		d.variable(p, c, e)
	}
}

func (d page) variable(p *v1.Pod, c *v1.Container, e v1.EnvVar) {
	switch f := e.ValueFrom; {
	case f == nil:
		for i, l := range strings.Split(e.Value, "\n") {
			if i == 0 {
				d.line(3, "%s:\t%s", e.Name, l)
				continue
			}
			d.line(3, "\t%s", l)
		}
	case f.FieldRef != nil:
		value, err := pod.Field(p, f.FieldRef.FieldPath)
		if err != nil {
			value = "" // it is known once the container starts
		}
		d.line(3, "%s:\t%s (%s:%s)", e.Name, value, f.FieldRef.APIVersion, f.FieldRef.FieldPath)
	case f.ResourceFieldRef != nil:
		value, err := pod.ResourceField(&v1.Pod{Spec: v1.PodSpec{Containers: []v1.Container{*c}}}, c.Name, f.ResourceFieldRef, nil)
		if err != nil {
			value = ""
		}
		if r := f.ResourceFieldRef.Resource; value == "0" && (r == "limits.cpu" || r == "limits.memory") {
			value = "node allocatable"
		}
		d.line(3, "%s:\t%s (%s)", e.Name, value, f.ResourceFieldRef.Resource)
	case f.SecretKeyRef != nil:
		d.line(3, "%s:\t<set to the key '%s' in secret '%s'>\tOptional: %s", e.Name, f.SecretKeyRef.Key, f.SecretKeyRef.Name, isTrue(f.SecretKeyRef.Optional))
	case f.ConfigMapKeyRef != nil:
		d.line(3, "%s:\t<set to the key '%s' of config map '%s'>\tOptional: %s", e.Name, f.ConfigMapKeyRef.Key, f.ConfigMapKeyRef.Name, isTrue(f.ConfigMapKeyRef.Optional))
	}
}

func (d page) mounts(c *v1.Container) {
	if len(c.VolumeMounts) == 0 {
		d.line(2, "Mounts:\t<none>")
	} else {
		d.line(2, "Mounts:")
	}
	for _, m := range slices.SortedFunc(slices.Values(c.VolumeMounts), func(a, b v1.VolumeMount) int { return strings.Compare(a.MountPath, b.MountPath) }) {
		flags := "rw"
		if m.ReadOnly {
			flags = "ro"
		}
		if m.SubPath != "" {
			flags += fmt.Sprintf(",path=%q", m.SubPath)
		}
		d.line(3, "%s from %s (%s)", m.MountPath, m.Name, flags)
	}
	if len(c.VolumeDevices) > 0 {
		d.line(2, "Devices:")
	}
	for _, v := range slices.SortedFunc(slices.Values(c.VolumeDevices), func(a, b v1.VolumeDevice) int { return strings.Compare(a.DevicePath, b.DevicePath) }) {
		d.line(3, "%s from %s", v.DevicePath, v.Name)
	}
}
