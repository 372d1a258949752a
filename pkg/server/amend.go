package server

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"github.com/nodeagent/nodeagent/pkg/cgroup"
	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// Amender changes running pods beside their source, whatever that is.
type Amender interface {
	// Amend is errdefs.ErrConflict when the pod is not of that revision any more.
	Amend(key pod.Key, uid types.UID, resourceVersion string, change func(*store.Amendment)) (store.Record, error)
}

// amendPod is what may be done below a pod with what of it may change while it
// runs: its status' conditions, its containers for debugging, resources.
func (s *Server) amendPod(w http.ResponseWriter, r *http.Request, v *view, key pod.Key, sub string) error {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		return s.getObject(w, r, v, key)
	case http.MethodPut, http.MethodPatch:
	default:
		return notAllowed("pods/"+sub, r.Method)
	}
	f, mode, raw, err := s.writeRequest(w, r)
	if err != nil {
		return err
	}
	next := func([]byte) ([]byte, error) { return raw, nil }
	if r.Method == http.MethodPatch {
		media, err := bodyMedia(r)
		if err != nil {
			return err
		}
		if next, err = patcher(media, raw, v1.Pod{}); err != nil {
			return err
		}
	}
	for try := 1; ; try++ {
		p, err := s.amend(v, key, sub, mode, next)
		if err == nil {
			write(w, f, http.StatusOK, podKind.typed(p))
			return nil
		}
		if !errors.Is(err, errdefs.ErrConflict) || try == changeTries {
			return err
		}
	}
}

// amend makes one try: the pod's new form must be of the current one.
func (s *Server) amend(v *view, key pod.Key, sub string, mode writeMode, next func([]byte) ([]byte, error)) (*v1.Pod, error) {
	rec, err := v.find(key)
	if err != nil {
		return nil, err
	}
	old := rec.object.(*v1.Pod)
	current, err := json.Marshal(old)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	raw, err := next(current)
	if err != nil {
		return nil, err
	}
	now, err := decodeAmended(raw)
	if err != nil {
		return nil, err
	}
	if now.UID == "" {
		now.UID = old.UID
	}
	if now.Namespace == "" {
		now.Namespace = old.Namespace
	}
	if err := v.sameObject(now, now.ResourceVersion, old); err != nil {
		return nil, err
	}
	change, errs := amendment(sub, now, old)
	if len(errs) > 0 {
		return nil, apierrors.NewInvalid(podKind.gvk().GroupKind(), key.Name, errs)
	}
	if mode.dry {
		return now, nil
	}
	changed, err := s.o.Amend.Amend(key, old.UID, old.ResourceVersion, change)
	return changed.Pod, err
}

// decodeAmended reads a pod whose status counts, as clients send it back.
func decodeAmended(raw []byte) (*v1.Pod, error) {
	p := &v1.Pod{}
	return p, strictly(raw, p)
}

func amendment(sub string, now, old *v1.Pod) (func(*store.Amendment), field.ErrorList) {
	if sub == "status" {
		errs := manifest.ValidateConditions(now.Status.Conditions, field.NewPath("status", "conditions"))
		return func(a *store.Amendment) { a.Conditions = foreignConditions(now, old) }, errs
	}
	if sub == "resize" {
		errs := manifest.ValidateResize(now, old)
		if len(errs) == 0 && cgroup.QOS(now) != cgroup.QOS(old) {
			errs = append(errs, field.Invalid(field.NewPath("spec"), cgroup.QOS(now), "Pod QOS Class may not change as a result of resizing"))
		}
		return func(a *store.Amendment) { resize(a, now, old) }, errs
	}
	manifest.DefaultEphemeral(now)
	errs := manifest.ValidateEphemeral(now, old)
	return func(a *store.Amendment) { a.Ephemeral = now.Spec.EphemeralContainers }, errs
}

// resize notes down the resources that have changed.
func resize(a *store.Amendment, now, old *v1.Pod) {
	for _, l := range []struct{ now, was []v1.Container }{{now.Spec.InitContainers, old.Spec.InitContainers}, {now.Spec.Containers, old.Spec.Containers}} {
		for i := range l.now {
			if apiequality.Semantic.DeepEqual(l.now[i].Resources, l.was[i].Resources) {
				continue
			}
			if a.Resources == nil {
				a.Resources = map[string]v1.ResourceRequirements{}
			}
			a.Resources[l.now[i].Name] = l.now[i].Resources
		}
	}
}

// foreignConditions are those that the agent does not compute; what the client
// says of the others is dropped, as it would be overwritten at once.
func foreignConditions(now, old *v1.Pod) (out []v1.PodCondition) {
	for _, c := range now.Status.Conditions {
		if pod.ComputedCondition(c.Type) {
			continue
		}
		i := slices.IndexFunc(old.Status.Conditions, func(o v1.PodCondition) bool { return o.Type == c.Type })
		if c.LastTransitionTime.IsZero() && (i < 0 || old.Status.Conditions[i].Status != c.Status) {
			c.LastTransitionTime = metav1.Now()
		}
		out = append(out, c)
	}
	return out
}

// withoutEphemeral takes out of a pod's new form the containers for debugging
// that only come back with it; what is different stays, to be refused.
func withoutEphemeral(raw []byte, old *v1.Pod) ([]byte, error) {
	if len(old.Spec.EphemeralContainers) == 0 {
		return raw, nil
	}
	text, err := yaml.YAMLToJSON(raw)
	if err != nil {
		return raw, nil // the decoder says what is wrong, and where
	}
	var now struct {
		Spec struct {
			EphemeralContainers []v1.EphemeralContainer `json:"ephemeralContainers"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(text, &now); err != nil || !apiequality.Semantic.DeepEqual(now.Spec.EphemeralContainers, old.Spec.EphemeralContainers) {
		return raw, nil
	}
	doc, err := document(text)
	if err != nil {
		return nil, err
	}
	spec, _ := doc["spec"].(map[string]any)
	delete(spec, "ephemeralContainers")
	return json.Marshal(doc)
}
