package agent

import (
	"strings"

	v1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/podworker"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// objects are what pods refer to, as the store has it. What is returned is
// shared, and nobody changes it.
type objects struct{ store *store.Store }

// find is the object of a kind and name; one that is not there is
// errdefs.ErrNotFound, in kubelet's words.
func find[T manifest.Resource](o objects, kind, namespace, name string) (T, error) {
	if r, ok := o.store.Resource(kind, pod.Key{Namespace: namespace, Name: name}); ok {
		return r.Object.(T), nil
	}
	var none T
	return none, errdefs.Errorf(errdefs.ErrNotFound, "%s %q not found", strings.ToLower(kind), name)
}

func (o objects) ConfigMap(namespace, name string) (*v1.ConfigMap, error) {
	return find[*v1.ConfigMap](o, "ConfigMap", namespace, name)
}

func (o objects) Secret(namespace, name string) (*v1.Secret, error) {
	return find[*v1.Secret](o, "Secret", namespace, name)
}

func (o objects) PersistentVolumeClaim(namespace, name string) (*v1.PersistentVolumeClaim, error) {
	return find[*v1.PersistentVolumeClaim](o, "PersistentVolumeClaim", namespace, name)
}

func (o objects) PersistentVolume(name string) (*v1.PersistentVolume, error) {
	return find[*v1.PersistentVolume](o, "PersistentVolume", "", name)
}

// pullSecrets are what a pod's images may be pulled with: its own secrets, or, as
// an API server would have written them into the pod, those of its account.
func (o objects) pullSecrets(p *v1.Pod) (found []*v1.Secret, missing []string) {
	names := p.Spec.ImagePullSecrets
	if len(names) == 0 {
		if account, err := o.ServiceAccount(p.Namespace, pod.ServiceAccount(p)); err == nil {
			names = account.ImagePullSecrets
		}
	}
	for _, n := range names {
		if n.Name == "" {
			continue // the API lets them pass
		}
		s, err := o.Secret(p.Namespace, n.Name)
		if err != nil {
			missing = append(missing, n.Name)
			continue
		}
		found = append(found, s)
	}
	return found, missing
}

// Priority is the pod's, as an API server would have written it into the spec:
// its own, that of its class, or that of the class for all others.
func (o objects) Priority(p *v1.Pod) (int32, error) {
	switch name := p.Spec.PriorityClassName; {
	case p.Spec.Priority != nil:
		return *p.Spec.Priority, nil
	case name == pod.NodeCriticalClass:
		return manifest.NodeCriticalPriority, nil
	case name == pod.ClusterCriticalClass:
		return manifest.SystemCriticalPriority, nil
	case name != "":
		class, err := find[*schedulingv1.PriorityClass](o, "PriorityClass", "", name)
		if err != nil {
			return 0, err
		}
		return class.Value, nil
	}
	// Of several the API server takes the lowest.
	all, _ := o.store.Resources("PriorityClass")
	var best *schedulingv1.PriorityClass
	for _, r := range all {
		if c := r.Object.(*schedulingv1.PriorityClass); c.GlobalDefault && (best == nil || c.Value < best.Value) {
			best = c
		}
	}
	if best == nil {
		return 0, nil
	}
	return best.Value, nil
}

// Services are those of a namespace, sorted by name. One that is not served has
// no address that could be told.
func (o objects) Services(namespace string) (out []*v1.Service) {
	all, _ := o.store.Resources("Service")
	for _, r := range all {
		if r.Key().Namespace == namespace && r.Problem == "" {
			out = append(out, r.Object.(*v1.Service))
		}
	}
	return out
}

// changed tells the workers of an object that pods may name. What an account or
// a claim names in turn concerns the pods that name those.
func (o objects) changed(workers *podworker.Manager) func(kind string, key pod.Key) {
	return func(kind string, key pod.Key) {
		switch kind {
		case "ConfigMap", "PersistentVolumeClaim", "ServiceAccount", "RuntimeClass", "PriorityClass":
			workers.ObjectChanged(kind, key)
		case "Secret":
			workers.ObjectChanged(kind, key)
			accounts, _ := o.store.Resources("ServiceAccount")
			for _, r := range accounts {
				for _, s := range r.Object.(*v1.ServiceAccount).ImagePullSecrets {
					if s.Name == key.Name && r.Key().Namespace == key.Namespace {
						workers.ObjectChanged(r.Kind(), r.Key())
					}
				}
			}
		case "PersistentVolume":
			claims, _ := o.store.Resources("PersistentVolumeClaim")
			for _, r := range claims {
				if r.Object.(*v1.PersistentVolumeClaim).Spec.VolumeName == key.Name {
					workers.ObjectChanged(r.Kind(), r.Key())
				}
			}
		}
	}
}
