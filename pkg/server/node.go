package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	v1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// nodeWriter changes what clients may say of the node: there is one, which
// nobody makes or removes.
type nodeWriter struct{ s *Server }

func (n nodeWriter) create(context.Context, manifest.Object) (manifest.Resource, error) {
	return nil, notAllowed(nodeKind.Resource, http.MethodPost)
}

func (n nodeWriter) remove(context.Context, record, metav1.DeleteOptions) (manifest.Resource, error) {
	return nil, notAllowed(nodeKind.Resource, http.MethodDelete)
}

func (n nodeWriter) replace(_ context.Context, rec record, raw []byte, mode writeMode) (manifest.Resource, error) {
	old := rec.object.(*v1.Node)
	want := &v1.Node{}
	if err := strictly(raw, want); err != nil {
		return nil, err
	}
	if want.UID == "" {
		want.UID = old.UID
	}
	v := n.s.viewOf(nodeKind.APIVersion, nodeKind.Resource)
	if err := v.sameObject(want, want.ResourceVersion, old); err != nil {
		return nil, err
	}
	now, errs, err := n.s.o.NodeObject.Wish(want, old.ResourceVersion, mode.dry)
	switch {
	case len(errs) > 0:
		return nil, apierrors.NewInvalid(nodeKind.gvk().GroupKind(), old.Name, errs)
	case err != nil:
		return nil, err
	}
	return now, nil
}

// strictly decodes an object of which every field has to be known.
func strictly(raw []byte, into manifest.Resource) error {
	kind := fmt.Sprintf("%T", into)[len("*v1."):]
	text, err := yaml.YAMLToJSON(raw)
	if err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	strict, err := kjson.UnmarshalStrict(text, into)
	if err = errors.Join(append(strict, err)...); err != nil {
		return apierrors.NewBadRequest(fmt.Sprintf("%s in version \"v1\" cannot be handled as a %[1]s: strict decoding error: %v", kind, err))
	}
	if gvk := into.GetObjectKind().GroupVersionKind(); gvk.Kind != kind || gvk.Version != "v1" {
		return apierrors.NewBadRequest(fmt.Sprintf("the object provided is unrecognized (must be of type %s)", kind))
	}
	return nil
}

// evictPod is POST to a pod's eviction, which drains a node: the pod is deleted,
// as nothing here has a budget of disruptions.
func (s *Server) evictPod(w http.ResponseWriter, r *http.Request, v *view, key pod.Key) error {
	if r.Method != http.MethodPost {
		return notAllowed("pods/eviction", r.Method)
	}
	f, err := negotiate(r, false, false)
	if err != nil {
		return err
	}
	body, err := s.readObject(w, r)
	if err != nil {
		return err
	}
	e := &policyv1.Eviction{}
	if err := strictly(body, e); err != nil {
		return err
	}
	if e.Name != "" && e.Name != key.Name {
		return apierrors.NewBadRequest("name in URL does not match name in Eviction object")
	}
	o := metav1.DeleteOptions{}
	if e.DeleteOptions != nil {
		o = *e.DeleteOptions
	}
	if d, ok := r.URL.Query()["dryRun"]; ok {
		o.DryRun = d
	}
	if _, err := dryRun(o.DryRun); err != nil {
		return err
	}
	rec, err := v.find(key)
	if err != nil {
		return err
	}
	if _, err := s.remove(r, v, rec, o); err != nil {
		return err
	}
	st := success()
	write(w, f, http.StatusCreated, &st)
	return nil
}
