package server

import (
	"errors"
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// changeTries is how often a change is made anew from a newer object.
const changeTries = 5

// writeMode is what a client says about how its change is made.
type writeMode struct {
	dry bool
	// validation is what becomes of unknown fields (metav1.FieldValidationStrict, …).
	validation string
	// manager is who makes the change.
	manager string
	// managed is the record of who set what once it is made; nil: there is none.
	managed []metav1.ManagedFieldsEntry
}

// writeRequest checks what all writes have in common and reads the body: JSON or
// YAML, unless it is a patch.
func (s *Server) writeRequest(w http.ResponseWriter, r *http.Request) (f format, mode writeMode, body []byte, err error) {
	if f, err = negotiate(r, false, false); err != nil {
		return f, mode, nil, err
	}
	q := r.URL.Query()
	if mode.dry, err = dryRun(q["dryRun"]); err != nil {
		return f, mode, nil, err
	}
	mode.manager = managerOf(r)
	switch v := q.Get("fieldValidation"); v {
	case "", metav1.FieldValidationStrict, metav1.FieldValidationWarn, metav1.FieldValidationIgnore:
		mode.validation = v
	default:
		return f, mode, nil, apierrors.NewBadRequest(fmt.Sprintf("query parameter fieldValidation: %q is none of Strict, Warn, Ignore", v))
	}
	if r.Method == http.MethodPatch {
		body, err = readBody(w, r)
		return f, mode, body, err
	}
	body, err = s.readObject(w, r)
	return f, mode, body, err
}

func dryRun(values []string) (bool, error) {
	for _, v := range values {
		if v != metav1.DryRunAll {
			return false, apierrors.NewInvalid(schema.GroupKind{Group: "meta.k8s.io", Kind: "CreateOptions"}, "",
				field.ErrorList{field.NotSupported(field.NewPath("dryRun"), v, []string{metav1.DryRunAll})})
		}
	}
	return len(values) > 0, nil
}

// objectOf is the one object of a decoded document.
func objectOf(o manifest.Object) manifest.Resource {
	if o.Pod != nil {
		return o.Pod
	}
	return o.Other
}

// createObject is POST to a collection.
func (s *Server) createObject(w http.ResponseWriter, r *http.Request, v *view, namespace string) error {
	f, mode, raw, err := s.writeRequest(w, r)
	if err != nil {
		return err
	}
	raw = s.tolerate(w, v, raw, mode)
	o, err := s.decodeObject(raw, v.servedKind, manifest.Options{
		Namespace: namespace, UID: uuid.NewUUID(), GenerateName: s.freeName(v, namespace),
	}, true)
	if err != nil {
		return err
	}
	if err := sameNamespace(o.Meta(), namespace); err != nil {
		return err
	}
	created, err := s.create(r, v, o, mode)
	if err != nil {
		return err
	}
	write(w, f, http.StatusCreated, created)
	return nil
}

// create makes a new object, or says what it would be.
func (s *Server) create(r *http.Request, v *view, o manifest.Object, mode writeMode) (manifest.Resource, error) {
	if mode.dry {
		// What the agent derives gives way to what somebody writes.
		if rec, taken := v.get(o.Key()); taken && rec.source != store.SourceAgent {
			return nil, apierrors.NewAlreadyExists(v.groupResource(), o.Meta().GetName())
		}
		return v.typed(objectOf(o)), nil
	}
	created, err := v.create(r.Context(), o)
	if err != nil {
		return nil, v.named(err, o.Meta().GetName())
	}
	return v.typed(created), nil
}

// named makes a Status that names the object, for requests whose path does not.
func (v *view) named(err error, name string) error {
	return &apierrors.StatusError{ErrStatus: toStatus(err, v.Resource, name)}
}

func sameNamespace(o metav1.Object, namespace string) error {
	if o.GetNamespace() != namespace {
		return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	return nil
}

// updateObject is PUT.
func (s *Server) updateObject(w http.ResponseWriter, r *http.Request, v *view, key pod.Key) error {
	f, mode, raw, err := s.writeRequest(w, r)
	if err != nil {
		return err
	}
	raw = s.tolerate(w, v, raw, mode)
	o, err := attempt(v, key, func(rec record) (manifest.Resource, error) {
		if err := s.track(v, rec, raw, &mode); err != nil {
			return nil, err
		}
		return v.replace(r.Context(), rec, raw, mode)
	})
	if err != nil {
		return err
	}
	write(w, f, http.StatusOK, o)
	return nil
}

// attempt makes a change from the current object, and again from the newer one
// when somebody else, the status writer most of all, was faster.
func attempt(v *view, key pod.Key, change func(record) (manifest.Resource, error)) (manifest.Resource, error) {
	for try := 1; ; try++ {
		rec, err := v.find(key)
		if err != nil {
			return nil, err
		}
		if err := v.writable(rec); err != nil {
			return nil, err
		}
		o, err := change(rec)
		if err == nil {
			return v.typed(o), nil
		}
		if !errors.Is(err, errdefs.ErrConflict) || try == changeTries {
			return nil, err
		}
	}
}

// writable refuses changes to what is somebody else's: they would be undone by
// their source, or come back.
func (v *view) writable(rec record) error {
	from := fmt.Errorf("it comes from the %s source (%s): change it there", rec.source, rec.origin)
	switch rec.source {
	case store.SourcePush:
		return nil
	case store.SourceAgent:
		from = errors.New("the agent derives it from other objects: change those")
	}
	return apierrors.NewForbidden(v.groupResource(), rec.object.GetName(), from)
}

// sameObject checks that a new form of an object is of the one in the path, and
// of the revision that the client has seen when it says one.
func (v *view) sameObject(now manifest.Resource, rv string, old manifest.Resource) error {
	if now.GetName() != old.GetName() {
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", now.GetName(), old.GetName()))
	}
	if err := sameNamespace(now, old.GetNamespace()); err != nil {
		return err
	}
	if now.GetUID() != old.GetUID() {
		//lint:ignore ST1005 the API server's own words
		err := fmt.Errorf("Precondition failed: UID in precondition: %s, UID in object meta: %s", now.GetUID(), old.GetUID())
		return apierrors.NewConflict(v.groupResource(), old.GetName(), err)
	}
	if rv != "" && rv != old.GetResourceVersion() {
		return v.conflict(old.GetName())
	}
	return nil
}

func (k servedKind) conflict(name string) error {
	return apierrors.NewConflict(k.groupResource(), name,
		errors.New("the object has been modified; please apply your changes to the latest version and try again"))
}

// deleteOptions reads DeleteOptions from the body, overridden by the query.
func (s *Server) deleteOptions(w http.ResponseWriter, r *http.Request) (metav1.DeleteOptions, error) {
	var o metav1.DeleteOptions
	if err := s.decodeBody(w, r, &o); err != nil {
		return o, err
	}
	q := r.URL.Query()
	grace, err := intParam(q, "gracePeriodSeconds")
	if err != nil {
		return o, err
	}
	if grace != nil {
		o.GracePeriodSeconds = grace
	}
	if d, ok := q["dryRun"]; ok {
		o.DryRun = d
	}
	if o.GracePeriodSeconds != nil && *o.GracePeriodSeconds < 0 {
		// kube-apiserver takes a negative period as the shortest one.
		o.GracePeriodSeconds = new(int64(1))
	}
	_, err = dryRun(o.DryRun)
	return o, err
}

// deleteObject is DELETE of one object. The answer is the object while it has
// still to end, and a Status once it is gone.
func (s *Server) deleteObject(w http.ResponseWriter, r *http.Request, v *view, key pod.Key) error {
	f, err := negotiate(r, false, false)
	if err != nil {
		return err
	}
	o, err := s.deleteOptions(w, r)
	if err != nil {
		return err
	}
	rec, err := v.find(key)
	if err != nil {
		return err
	}
	left, err := s.remove(r, v, rec, o)
	if err != nil {
		return err
	}
	if left != nil {
		write(w, f, http.StatusOK, left)
		return nil
	}
	st := success()
	st.Details = &metav1.StatusDetails{Name: key.Name, Group: v.group(), Kind: v.Resource, UID: rec.object.GetUID()}
	write(w, f, http.StatusOK, &st)
	return nil
}

// remove deletes one object and returns what has still to end, as it stands then.
func (s *Server) remove(r *http.Request, v *view, rec record, o metav1.DeleteOptions) (manifest.Resource, error) {
	if err := v.writable(rec); err != nil {
		return nil, err
	}
	name, uid, rv := rec.object.GetName(), rec.object.GetUID(), rec.object.GetResourceVersion()
	if p := o.Preconditions; p != nil && p.UID != nil && *p.UID != uid {
		return nil, apierrors.NewConflict(v.groupResource(), name,
			fmt.Errorf("the UID in the precondition (%s) does not match the UID in record (%s). The object might have been deleted and then recreated", *p.UID, uid))
	}
	if p := o.Preconditions; p != nil && p.ResourceVersion != nil && *p.ResourceVersion != rv {
		return nil, apierrors.NewConflict(v.groupResource(), name,
			fmt.Errorf("the ResourceVersion in the precondition (%s) does not match the ResourceVersion in record (%s). The object might have been modified", *p.ResourceVersion, rv))
	}
	if len(o.DryRun) > 0 {
		return rec.object, nil
	}
	left, err := v.remove(r.Context(), rec, o)
	if err != nil || left == nil {
		return nil, err
	}
	return v.typed(left), nil
}

// preconditions are what a deletion depends on; empty means anything.
func preconditions(o metav1.DeleteOptions) (uid types.UID, rv string) {
	if p := o.Preconditions; p != nil {
		if p.UID != nil {
			uid = *p.UID
		}
		if p.ResourceVersion != nil {
			rv = *p.ResourceVersion
		}
	}
	return uid, rv
}

// deleteObjects is DELETE of a collection: every matching object that came in
// through this API. Those of other sources are left alone, as they would come
// back.
func (s *Server) deleteObjects(w http.ResponseWriter, r *http.Request, v *view, namespace string) error {
	f, err := negotiate(r, false, false)
	if err != nil {
		return err
	}
	sel, err := v.selection(r.URL.Query(), namespace)
	if err != nil {
		return err
	}
	if _, err := parsePage(r.URL.Query()); err != nil {
		return err
	}
	o, err := s.deleteOptions(w, r)
	if err != nil {
		return err
	}
	records, revision := v.list()
	list := v.newList(revision)
	for _, rec := range records {
		if rec.source != store.SourcePush || !sel.matches(rec.object) {
			continue
		}
		left, err := s.remove(r, v, rec, o)
		switch {
		case err != nil && apierrors.IsNotFound(v.named(err, rec.object.GetName())):
			continue // gone meanwhile, which is what was wanted
		case err != nil:
			return v.named(err, rec.object.GetName())
		case left == nil:
			left = rec.object
		}
		list.Items = append(list.Items, left)
	}
	write(w, f, http.StatusOK, list)
	return nil
}
