package podworker

import (
	"errors"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// Objects are what a container's environment is made of. One that is not there
// is errdefs.ErrNotFound; what is returned is never changed.
type Objects interface {
	ConfigMap(namespace, name string) (*v1.ConfigMap, error)
	Secret(namespace, name string) (*v1.Secret, error)
	// Services are those of a namespace.
	Services(namespace string) []*v1.Service
}

// environment is one container's, as it is at its start. A variable has the place
// where it was named first, and the value that it was given last.
type environment struct {
	objects     Objects
	pod         *v1.Pod
	podIPs      []string
	hostIPs     []string
	allocatable v1.ResourceList

	names    []string
	vars     map[string]string
	services map[string]string
}

// environ makes the environment of a container: what envFrom has, then env, then
// the Services that env does not override. An error is runtime.ErrConfig.
func (e *environment) environ(c *v1.Container) ([]runtime.EnvVar, error) {
	e.vars, e.services = map[string]string{}, e.serviceVars()
	for i := range c.EnvFrom {
		if err := e.from(&c.EnvFrom[i]); err != nil {
			return nil, errdefs.Errorf(runtime.ErrConfig, "%w", err)
		}
	}
	for i := range c.Env {
		value, found, err := e.value(c, &c.Env[i])
		if err != nil {
			return nil, errdefs.Errorf(runtime.ErrConfig, "%w", err)
		}
		if found {
			e.set(c.Env[i].Name, value)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(e.services)) {
		if _, own := e.vars[name]; !own {
			e.set(name, e.services[name])
		}
	}
	out := make([]runtime.EnvVar, 0, len(e.names))
	for _, name := range e.names {
		if strings.Contains(e.vars[name], "\x00") {
			return nil, errdefs.Errorf(runtime.ErrConfig, "the value of variable %s has a NUL byte in it, which no process can be given", name)
		}
		out = append(out, runtime.EnvVar{Name: name, Value: e.vars[name]})
	}
	return out, nil
}

func (e *environment) set(name, value string) {
	if _, known := e.vars[name]; !known {
		e.names = append(e.names, name)
	}
	e.vars[name] = value
}

// lookup is what $(NAME) stands for.
func (e *environment) lookup(name string) (string, bool) {
	if v, ok := e.vars[name]; ok {
		return v, true
	}
	v, ok := e.services[name]
	return v, ok
}

// absent says that an object is not there and need not be.
func absent(err error, optional *bool) bool {
	return errors.Is(err, errdefs.ErrNotFound) && optional != nil && *optional
}

// from takes all that an object has.
func (e *environment) from(s *v1.EnvFromSource) error {
	if ref := s.ConfigMapRef; ref != nil {
		m, err := e.objects.ConfigMap(e.pod.Namespace, ref.Name)
		if err != nil {
			if absent(err, ref.Optional) {
				return nil
			}
			return err
		}
		for _, key := range slices.Sorted(maps.Keys(m.Data)) {
			e.set(s.Prefix+key, m.Data[key])
		}
		return nil
	}
	if ref := s.SecretRef; ref != nil {
		m, err := e.objects.Secret(e.pod.Namespace, ref.Name)
		if err != nil {
			if absent(err, ref.Optional) {
				return nil
			}
			return err
		}
		for _, key := range slices.Sorted(maps.Keys(m.Data)) {
			e.set(s.Prefix+key, string(m.Data[key]))
		}
	}
	return nil
}

// value is what a variable is to be; found is false for one that is optional and
// not there.
func (e *environment) value(c *v1.Container, v *v1.EnvVar) (value string, found bool, err error) {
	from := v.ValueFrom
	switch {
	case v.Value != "" || from == nil:
		return pod.Expand(v.Value, e.lookup), true, nil
	case from.FieldRef != nil:
		value, err = e.field(from.FieldRef.FieldPath)
		return value, true, err
	case from.ResourceFieldRef != nil:
		container := from.ResourceFieldRef.ContainerName
		if container == "" {
			container = c.Name
		}
		value, err = pod.ResourceField(e.pod, container, from.ResourceFieldRef, e.allocatable)
		return value, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		m, err := e.objects.ConfigMap(e.pod.Namespace, ref.Name)
		if err == nil {
			if value, found = m.Data[ref.Key]; !found {
				err = errdefs.Errorf(errdefs.ErrNotFound, "couldn't find key %v in ConfigMap %v/%v", ref.Key, e.pod.Namespace, ref.Name)
			}
		}
		return value, found, unlessOptional(err, ref.Optional)
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		m, err := e.objects.Secret(e.pod.Namespace, ref.Name)
		if err == nil {
			var data []byte
			if data, found = m.Data[ref.Key]; !found {
				err = errdefs.Errorf(errdefs.ErrNotFound, "couldn't find key %v in Secret %v/%v", ref.Key, e.pod.Namespace, ref.Name)
			}
			value = string(data)
		}
		return value, found, unlessOptional(err, ref.Optional)
	}
	return "", true, nil
}

func unlessOptional(err error, optional *bool) error {
	if absent(err, optional) {
		return nil
	}
	return err
}

// field is one of the pod, with those that only its node knows.
func (e *environment) field(path string) (string, error) {
	first := func(list []string) string {
		if len(list) == 0 {
			return ""
		}
		return list[0]
	}
	switch path {
	case "spec.nodeName", "spec.host":
		return e.pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.ServiceAccount(e.pod), nil
	case "status.hostIP":
		return first(e.hostIPs), nil
	case "status.hostIPs":
		return strings.Join(e.hostIPs, ","), nil
	case "status.podIP":
		return first(e.podIPs), nil
	case "status.podIPs":
		return strings.Join(e.podIPs, ","), nil
	}
	return pod.Field(e.pod, path)
}

// serviceVars are the variables for the Services of the pod's namespace, and for
// the API server's, which every pod gets.
func (e *environment) serviceVars() map[string]string {
	out := map[string]string{}
	own := e.pod.Spec.EnableServiceLinks == nil || *e.pod.Spec.EnableServiceLinks
	for _, s := range e.objects.Services(v1.NamespaceDefault) {
		if s.Name == "kubernetes" {
			addServiceVars(out, s)
		}
	}
	if !own {
		return out
	}
	for _, s := range e.objects.Services(e.pod.Namespace) {
		if _, first := out["KUBERNETES_SERVICE_HOST"]; s.Name == "kubernetes" && first {
			continue
		}
		addServiceVars(out, s)
	}
	return out
}

func addServiceVars(out map[string]string, s *v1.Service) {
	ip := s.Spec.ClusterIP
	if ip == "" || ip == v1.ClusterIPNone || len(s.Spec.Ports) == 0 {
		return
	}
	name := func(s string) string { return strings.ToUpper(strings.ReplaceAll(s, "-", "_")) }
	prefix := name(s.Name)
	out[prefix+"_SERVICE_HOST"] = ip
	out[prefix+"_SERVICE_PORT"] = strconv.Itoa(int(s.Spec.Ports[0].Port))
	for i, p := range s.Spec.Ports {
		port, protocol := strconv.Itoa(int(p.Port)), strings.ToLower(string(p.Protocol))
		if p.Name != "" {
			out[prefix+"_SERVICE_PORT_"+name(p.Name)] = port
		}
		// What docker's links once set.
		address := protocol + "://" + net.JoinHostPort(ip, port)
		if i == 0 {
			out[prefix+"_PORT"] = address
		}
		link := prefix + "_PORT_" + port + "_" + strings.ToUpper(protocol)
		out[link], out[link+"_PROTO"], out[link+"_PORT"], out[link+"_ADDR"] = address, protocol, port, ip
	}
}
