package manifest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func validateContainers(spec *v1.PodSpec, volumes map[string]*v1.Volume, p *field.Path) (errs field.ErrorList) {
	cp, ip := p.Child("containers"), p.Child("initContainers")
	if len(spec.Containers) == 0 {
		errs = append(errs, field.Required(cp, "a pod has at least one container"))
	}
	names, ports := map[string]bool{}, map[string]bool{}
	for i := range spec.Containers {
		c, at := &spec.Containers[i], cp.Index(i)
		errs = append(errs, validateContainer(c, volumes, at)...)
		errs = append(errs, validateLives(spec, c, at)...)
		if names[c.Name] {
			errs = append(errs, field.Duplicate(at.Child("name"), c.Name))
		}
		names[c.Name] = true
		// All containers of a pod share its address, so host ports are counted
		// over all of them.
		errs = append(errs, claimHostPorts(c, ports, at.Child("ports"))...)
		if spec.HostNetwork {
			for j, port := range c.Ports {
				if port.HostPort != port.ContainerPort {
					errs = append(errs, field.Invalid(at.Child("ports").Index(j).Child("hostPort"), port.HostPort, "must be the containerPort, because hostNetwork is true"))
				}
			}
		}
	}
	for i := range spec.InitContainers {
		c, at := &spec.InitContainers[i], ip.Index(i)
		errs = append(errs, validateContainer(c, volumes, at)...)
		if names[c.Name] {
			errs = append(errs, field.Duplicate(at.Child("name"), c.Name))
		}
		if c.Name != "" {
			names[c.Name] = true
		}
		errs = append(errs, validateInitLives(spec, c, at)...)
		// Init containers run one after another: each counts alone. The API
		// server names the first one in the error, whichever it is.
		errs = append(errs, claimHostPorts(c, map[string]bool{}, ip.Index(0).Child("ports"))...)
	}
	return errs
}

func validateContainer(c *v1.Container, volumes map[string]*v1.Volume, p *field.Path) field.ErrorList {
	errs := dnsLabel(c.Name, p.Child("name"))
	if c.Image == "" {
		errs = append(errs, field.Required(p.Child("image"), ""))
	}
	if strings.TrimSpace(c.Image) != c.Image {
		errs = append(errs, field.Invalid(p.Child("image"), c.Image, "must not have leading or trailing white space"))
	}
	errs = append(errs, oneOf(c.TerminationMessagePolicy, p.Child("terminationMessagePolicy"),
		v1.TerminationMessageReadFile, v1.TerminationMessageFallbackToLogsOnError)...)
	errs = append(errs, oneOf(c.ImagePullPolicy, p.Child("imagePullPolicy"),
		v1.PullAlways, v1.PullIfNotPresent, v1.PullNever)...)
	errs = append(errs, validatePorts(c.Ports, p.Child("ports"))...)
	errs = append(errs, validateEnv(c.Env, p.Child("env"))...)
	errs = append(errs, validateEnvFrom(c.EnvFrom, p.Child("envFrom"))...)
	errs = append(errs, validateMounts(c, volumes, p.Child("volumeMounts"))...)
	errs = append(errs, validateDevices(c, volumes, p.Child("volumeDevices"))...)
	return append(errs, validateResources(&c.Resources, p.Child("resources"))...)
}

func validatePorts(ports []v1.ContainerPort, p *field.Path) (errs field.ErrorList) {
	names := map[string]bool{}
	for i, port := range ports {
		at := p.Index(i)
		if port.Name != "" {
			msgs := validation.IsValidPortName(port.Name)
			errs = append(errs, invalid(at.Child("name"), port.Name, msgs)...)
			if len(msgs) == 0 && names[port.Name] {
				errs = append(errs, field.Duplicate(at.Child("name"), port.Name))
			}
			names[port.Name] = true
		}
		if port.ContainerPort == 0 {
			errs = append(errs, field.Required(at.Child("containerPort"), ""))
		} else {
			errs = append(errs, invalid(at.Child("containerPort"), port.ContainerPort, validation.IsValidPortNum(int(port.ContainerPort)))...)
		}
		if port.HostPort != 0 {
			errs = append(errs, invalid(at.Child("hostPort"), port.HostPort, validation.IsValidPortNum(int(port.HostPort)))...)
		}
		errs = append(errs, oneOf(port.Protocol, at.Child("protocol"), v1.ProtocolSCTP, v1.ProtocolTCP, v1.ProtocolUDP)...)
	}
	return errs
}

// claimHostPorts reports host ports that are taken already and takes the rest.
func claimHostPorts(c *v1.Container, taken map[string]bool, p *field.Path) (errs field.ErrorList) {
	for i, port := range c.Ports {
		if port.HostPort == 0 {
			continue
		}
		key := fmt.Sprintf("%s/%s/%d", port.Protocol, port.HostIP, port.HostPort)
		if taken[key] {
			errs = append(errs, field.Duplicate(p.Index(i).Child("hostPort"), key))
		}
		taken[key] = true
	}
	return errs
}

func isPrivileged(c *v1.Container) bool {
	return c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
}

func validateResources(r *v1.ResourceRequirements, p *field.Path) (errs field.ErrorList) {
	limits, requests := p.Child("limits"), p.Child("requests")
	huge, base := false, false
	for _, list := range []struct {
		values v1.ResourceList
		path   *field.Path
	}{{r.Limits, limits}, {r.Requests, requests}} {
		for _, name := range slices.Sorted(maps.Keys(list.values)) {
			q, at := list.values[name], list.path.Key(string(name))
			errs = append(errs, validateResourceName(name, at)...)
			if q.Sign() < 0 {
				errs = append(errs, field.Invalid(at, q.String(), apivalidation.IsNegativeErrorMsg))
			}
			if isHugePages(name) {
				huge = true
				if !isWholePages(name, q) {
					errs = append(errs, field.Invalid(at, q.String(), "must be a whole number of pages of the size in its name"))
				}
			}
			base = base || name == v1.ResourceCPU || name == v1.ResourceMemory
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.Requests)) {
		request := r.Requests[name]
		limit, limited := r.Limits[name]
		switch {
		case isHugePages(name) && !limited:
			errs = append(errs, field.Required(limits, fmt.Sprintf("%s needs a limit: huge pages cannot be overcommitted", name)))
		case isHugePages(name) && request.Cmp(limit) != 0:
			errs = append(errs, field.Invalid(requests, request.String(), fmt.Sprintf("must equal the %s limit of %s", name, limit.String())))
		case limited && request.Cmp(limit) > 0:
			errs = append(errs, field.Invalid(requests, request.String(), fmt.Sprintf("must not exceed the %s limit of %s", name, limit.String())))
		}
	}
	if huge && !base {
		errs = append(errs, field.Forbidden(p, "huge pages need cpu or memory beside them"))
	}
	return errs
}

// validateResourceName accepts what a container can ask of a node without
// device plugins; names with a slash are refused before they come here.
func validateResourceName(name v1.ResourceName, p *field.Path) field.ErrorList {
	if errs := invalid(p, name, validation.IsQualifiedName(string(name))); len(errs) > 0 {
		return errs
	}
	switch name {
	case v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage:
		return nil
	}
	if isHugePages(name) {
		return nil
	}
	return field.ErrorList{field.Invalid(p, name, "must be cpu, memory, ephemeral-storage or hugepages-<size>")}
}

func isHugePages(name v1.ResourceName) bool {
	return strings.HasPrefix(string(name), v1.ResourceHugePagesPrefix)
}

func isWholePages(name v1.ResourceName, q resource.Quantity) bool {
	size, err := parseQuantity(strings.TrimPrefix(string(name), v1.ResourceHugePagesPrefix))
	if err != nil || size.Sign() <= 0 || size.MilliValue()%1000 != 0 {
		return false
	}
	return q.Value()%size.Value() == 0
}
