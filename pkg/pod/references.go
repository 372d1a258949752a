package pod

import (
	"cmp"
	"slices"

	v1 "k8s.io/api/core/v1"
)

// Reference is one object that a pod names.
type Reference struct {
	Kind string // "ConfigMap"
	// Key has no namespace when objects of the kind have none.
	Key
	// Optional says that the pod can do without the object, wherever it is named.
	Optional bool
}

// References are the objects that a pod names, each once, sorted by kind and
// name: ConfigMaps, Secrets and claims, its ServiceAccount, its RuntimeClass and
// its PriorityClass. What those name in turn is not among them.
func References(p *v1.Pod) []Reference {
	r := references{pod: p, found: map[Reference]bool{}}
	spec := &p.Spec
	r.add("ServiceAccount", ServiceAccount(p), true)
	for _, s := range spec.ImagePullSecrets {
		r.add("Secret", s.Name, true)
	}
	if spec.RuntimeClassName != nil {
		r.addGlobal("RuntimeClass", *spec.RuntimeClassName)
	}
	r.addGlobal("PriorityClass", spec.PriorityClassName)
	for i := range spec.Volumes {
		r.volume(&spec.Volumes[i])
	}
	for i := range spec.InitContainers {
		r.env(spec.InitContainers[i].EnvFrom, spec.InitContainers[i].Env)
	}
	for i := range spec.Containers {
		r.env(spec.Containers[i].EnvFrom, spec.Containers[i].Env)
	}
	for i := range spec.EphemeralContainers {
		r.env(spec.EphemeralContainers[i].EnvFrom, spec.EphemeralContainers[i].Env)
	}
	return r.sorted()
}

// Names says whether a pod names an object.
func Names(p *v1.Pod, kind string, key Key) bool {
	return slices.ContainsFunc(References(p), func(r Reference) bool { return r.Kind == kind && r.Key == key })
}

// ServiceAccount is the name of a pod's account: default, when it names none.
func ServiceAccount(p *v1.Pod) string { return cmp.Or(p.Spec.ServiceAccountName, "default") }

type references struct {
	pod   *v1.Pod
	found map[Reference]bool // without Optional, which is the value
}

func (r references) add(kind, name string, optional bool) {
	if name != "" {
		r.put(Reference{Kind: kind, Key: Key{Namespace: r.pod.Namespace, Name: name}}, optional)
	}
}

func (r references) addGlobal(kind, name string) {
	if name != "" {
		r.put(Reference{Kind: kind, Key: Key{Name: name}}, false)
	}
}

// put: what is needed once is needed.
func (r references) put(ref Reference, optional bool) {
	was, known := r.found[ref]
	r.found[ref] = optional && (was || !known)
}

func (r references) sorted() []Reference {
	out := make([]Reference, 0, len(r.found))
	for ref, optional := range r.found {
		ref.Optional = optional
		out = append(out, ref)
	}
	slices.SortFunc(out, func(a, b Reference) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return out
}

func isTrue(b *bool) bool { return b != nil && *b }

func (r references) env(from []v1.EnvFromSource, vars []v1.EnvVar) {
	for i := range from {
		if s := from[i].ConfigMapRef; s != nil {
			r.add("ConfigMap", s.Name, isTrue(s.Optional))
		}
		if s := from[i].SecretRef; s != nil {
			r.add("Secret", s.Name, isTrue(s.Optional))
		}
	}
	for i := range vars {
		from := vars[i].ValueFrom
		if from == nil {
			continue
		}
		if s := from.ConfigMapKeyRef; s != nil {
			r.add("ConfigMap", s.Name, isTrue(s.Optional))
		}
		if s := from.SecretKeyRef; s != nil {
			r.add("Secret", s.Name, isTrue(s.Optional))
		}
	}
}

func (r references) volume(v *v1.Volume) {
	if s := v.ConfigMap; s != nil {
		r.add("ConfigMap", s.Name, isTrue(s.Optional))
	}
	if s := v.Secret; s != nil {
		r.add("Secret", s.SecretName, isTrue(s.Optional))
	}
	if s := v.PersistentVolumeClaim; s != nil {
		r.add("PersistentVolumeClaim", s.ClaimName, false)
	}
	if v.Ephemeral != nil {
		r.add("PersistentVolumeClaim", EphemeralClaim(r.pod, v.Name), false)
	}
	if v.Projected == nil {
		return
	}
	for i := range v.Projected.Sources {
		if s := v.Projected.Sources[i].ConfigMap; s != nil {
			r.add("ConfigMap", s.Name, isTrue(s.Optional))
		}
		if s := v.Projected.Sources[i].Secret; s != nil {
			r.add("Secret", s.Name, isTrue(s.Optional))
		}
	}
}

// EphemeralClaim is the name of the claim that is made for an ephemeral volume.
func EphemeralClaim(p *v1.Pod, volume string) string { return p.Name + "-" + volume }
