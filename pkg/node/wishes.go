package node

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"
)

// Wishes are what clients of the API want of the node beside what its
// configuration says; the state folder keeps them.
type Wishes struct {
	Labels        map[string]string
	Annotations   map[string]string
	Unschedulable bool
	Taints        []v1.Taint
}

// file is the form that wishes are kept in: a part of a Node.
type file struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        struct {
		Name        string            `json:"name"`
		Labels      map[string]string `json:"labels,omitempty"`
		Annotations map[string]string `json:"annotations,omitempty"`
	} `json:"metadata"`
	Spec struct {
		Unschedulable bool       `json:"unschedulable,omitempty"`
		Taints        []v1.Taint `json:"taints,omitempty"`
	} `json:"spec"`
}

// ReadWishes reads what was kept; without a file there are none.
func ReadWishes(path string) (Wishes, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Wishes{}, nil
	}
	var f file
	if err == nil {
		err = yaml.UnmarshalStrict(b, &f)
	}
	if err != nil {
		return Wishes{}, fmt.Errorf("labels, taints and whether the node is cordoned, as the API has set them: %w: correct the file %s or remove it", err, path)
	}
	return Wishes{Labels: f.Metadata.Labels, Annotations: f.Metadata.Annotations, Unschedulable: f.Spec.Unschedulable, Taints: f.Spec.Taints}, nil
}

// manifest is the readable form of w, for ReadWishes.
func (w Wishes) manifest(name string) ([]byte, error) {
	f := file{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}}
	f.Metadata.Name, f.Metadata.Labels, f.Metadata.Annotations = name, w.Labels, w.Annotations
	f.Spec.Unschedulable, f.Spec.Taints = w.Unschedulable, w.Taints
	return yaml.Marshal(f)
}

// on returns the node with the wishes granted; what the configuration says goes
// before them.
func (w Wishes) on(own *v1.Node, now time.Time) *v1.Node {
	n := own.DeepCopy()
	n.Labels = merged(w.Labels, own.Labels)
	n.Annotations = merged(w.Annotations, own.Annotations)
	n.Spec.Unschedulable = w.Unschedulable
	n.Spec.Taints = append(n.Spec.Taints, w.Taints...)
	if w.Unschedulable {
		// A cluster's controllers would add it; pods may tolerate it.
		at := metav1.NewTime(now.Truncate(time.Second))
		n.Spec.Taints = append(n.Spec.Taints, v1.Taint{Key: v1.TaintNodeUnschedulable, Effect: v1.TaintEffectNoSchedule, TimeAdded: &at})
	}
	return n
}

func merged(a, b map[string]string) map[string]string {
	if len(a)+len(b) == 0 {
		return nil
	}
	out := maps.Clone(a)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, b)
	return out
}

// wishesOf are those that make own, the node as its configuration has it, the
// node that somebody wants.
func wishesOf(want, own *v1.Node, now time.Time) (w Wishes, errs field.ErrorList) {
	meta, spec := field.NewPath("metadata"), field.NewPath("spec")
	var more field.ErrorList
	w.Labels, errs = beside(want.Labels, own.Labels, meta.Child("labels"))
	w.Annotations, more = beside(want.Annotations, own.Annotations, meta.Child("annotations"))
	errs = append(errs, more...)
	for k, v := range w.Labels {
		for _, msg := range slices.Concat(validation.IsQualifiedName(k), validation.IsValidLabelValue(v)) {
			errs = append(errs, field.Invalid(meta.Child("labels"), k+"="+v, msg))
		}
	}
	for k := range w.Annotations {
		for _, msg := range validation.IsQualifiedName(k) {
			errs = append(errs, field.Invalid(meta.Child("annotations"), k, msg))
		}
	}
	w.Unschedulable = want.Spec.Unschedulable
	w.Taints, more = taints(want.Spec.Taints, now, spec.Child("taints"))
	errs = append(errs, more...)
	rest, was := want.Spec.DeepCopy(), own.Spec.DeepCopy()
	for _, s := range []*v1.NodeSpec{rest, was} {
		s.Taints, s.Unschedulable = nil, false
	}
	if !apiequality.Semantic.DeepEqual(rest, was) {
		errs = append(errs, field.Forbidden(spec, "only taints and unschedulable may change: the rest is what the agent's configuration says"))
	}
	return w, errs
}

// beside are the entries that are not own; those that are stay as they are.
func beside(want, own map[string]string, p *field.Path) (out map[string]string, errs field.ErrorList) {
	for k, v := range own {
		if want[k] != v {
			errs = append(errs, field.Forbidden(p.Key(k), "the agent or its configuration (nodeLabels) says what it is: change it there"))
		}
	}
	for k, v := range want {
		if _, fixed := own[k]; !fixed {
			if out == nil {
				out = map[string]string{}
			}
			out[k] = v
		}
	}
	return out, errs
}

// taints checks a list of taints by the API server's rules. The one that says
// that the node is cordoned comes and goes with that.
func taints(list []v1.Taint, now time.Time, p *field.Path) (out []v1.Taint, errs field.ErrorList) {
	seen := map[string]bool{}
	for i, t := range list {
		at := p.Index(i)
		for _, msg := range validation.IsQualifiedName(t.Key) {
			errs = append(errs, field.Invalid(at.Child("key"), t.Key, msg))
		}
		for _, msg := range validation.IsValidLabelValue(t.Value) {
			errs = append(errs, field.Invalid(at.Child("value"), t.Value, msg))
		}
		if effects := []v1.TaintEffect{v1.TaintEffectNoExecute, v1.TaintEffectNoSchedule, v1.TaintEffectPreferNoSchedule}; !slices.Contains(effects, t.Effect) {
			errs = append(errs, field.NotSupported(at.Child("effect"), t.Effect, effects))
		}
		if id := t.Key + ":" + string(t.Effect); seen[id] {
			errs = append(errs, field.Duplicate(at, id))
		} else {
			seen[id] = true
		}
		if t.Key == v1.TaintNodeUnschedulable {
			continue
		}
		if t.Effect == v1.TaintEffectNoExecute && t.TimeAdded == nil {
			since := metav1.NewTime(now.Truncate(time.Second))
			t.TimeAdded = &since
		}
		out = append(out, t)
	}
	return out, errs
}

// Unschedulable says in a scheduler's words why a new pod would not be given to
// the node; empty: it would.
func Unschedulable(n *v1.Node, tolerations []v1.Toleration) string {
	for _, t := range n.Spec.Taints {
		if t.Effect == v1.TaintEffectPreferNoSchedule || tolerated(&t, tolerations) != nil {
			continue
		}
		if t.Key == v1.TaintNodeUnschedulable {
			return "0/1 nodes are available: 1 node(s) were unschedulable."
		}
		return fmt.Sprintf("0/1 nodes are available: 1 node(s) had untolerated taint(s) {%s}.", t.ToString())
	}
	return ""
}

// EndsAt says when a pod that runs has to leave the node for its taints.
func EndsAt(n *v1.Node, tolerations []v1.Toleration) (at time.Time, ends bool) {
	for _, t := range n.Spec.Taints {
		if t.Effect != v1.TaintEffectNoExecute {
			continue
		}
		end := time.Time{}
		if t.TimeAdded != nil {
			end = t.TimeAdded.Time
		}
		if by := tolerated(&t, tolerations); by != nil {
			if by.TolerationSeconds == nil {
				continue
			}
			end = end.Add(time.Duration(*by.TolerationSeconds) * time.Second)
		}
		if !ends || end.Before(at) {
			at, ends = end, true
		}
	}
	return at, ends
}

// tolerated is what tolerates a taint; nil: nothing does.
func tolerated(t *v1.Taint, by []v1.Toleration) *v1.Toleration {
	for i := range by {
		o := &by[i]
		if o.Effect != "" && o.Effect != t.Effect || o.Key != "" && o.Key != t.Key {
			continue
		}
		if o.Operator == v1.TolerationOpExists || (o.Operator == "" || o.Operator == v1.TolerationOpEqual) && o.Value == t.Value {
			return o
		}
	}
	return nil
}
