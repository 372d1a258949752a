package server

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/yaml"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// typed is the object as clients see it, with its type.
func (k servedKind) typed(o manifest.Resource) manifest.Resource {
	if o.GetObjectKind().GroupVersionKind().Kind == k.Name {
		return o
	}
	c := o.DeepCopyObject().(manifest.Resource)
	c.GetObjectKind().SetGroupVersionKind(schema.FromAPIVersionAndKind(k.APIVersion, k.Name))
	return c
}

// knownFields are those that objects of the kind can be selected by.
func (k servedKind) knownFields() fields.Set { return resourceFields(manifest.New(k.Name)) }

func (s *Server) findResource(k servedKind, key pod.Key) (store.Resource, error) {
	rec, ok := s.o.Resources.Resource(k.Name, key)
	if !ok {
		return rec, apierrors.NewNotFound(resource(k.Resource), key.Name)
	}
	return rec, nil
}

func (s *Server) getResource(w http.ResponseWriter, r *http.Request, k servedKind, key pod.Key) error {
	f, err := negotiate(r, true, false)
	if err != nil {
		return err
	}
	rec, err := s.findResource(k, key)
	if err != nil {
		return err
	}
	if !f.table {
		write(w, f, http.StatusOK, k.typed(rec.Object))
		return nil
	}
	t, err := s.tables(r)
	if err != nil {
		return err
	}
	write(w, f, http.StatusOK, table(resourceColumns(k), rec.Object.GetResourceVersion(), []metav1.TableRow{t.resource(k.typed(rec.Object))}))
	return nil
}

// resourceList is a list of objects of one kind.
type resourceList struct {
	metav1.TypeMeta `json:""`
	metav1.ListMeta `json:"metadata"`
	Items           []manifest.Resource `json:"items"`
}

func (k servedKind) list(revision uint64) resourceList {
	return resourceList{
		TypeMeta: metav1.TypeMeta{APIVersion: k.APIVersion, Kind: k.Name + "List"},
		ListMeta: metav1.ListMeta{ResourceVersion: strconv.FormatUint(revision, 10)}, Items: []manifest.Resource{},
	}
}

func (s *Server) listResources(w http.ResponseWriter, r *http.Request, k servedKind, namespace string) error {
	sel, err := parseSelection(r.URL.Query(), namespace, k.knownFields)
	if err != nil {
		return err
	}
	f, err := negotiate(r, true, false)
	if err != nil {
		return err
	}
	t, err := s.tables(r)
	if err != nil {
		return err
	}
	records, revision := s.o.Resources.Resources(k.Name)
	list := k.list(revision)
	var rows []metav1.TableRow
	for _, rec := range records {
		if !sel.matchResource(rec.Object) {
			continue
		}
		o := k.typed(rec.Object)
		list.Items = append(list.Items, o)
		if f.table {
			rows = append(rows, t.resource(o))
		}
	}
	if f.table {
		write(w, f, http.StatusOK, table(resourceColumns(k), list.ResourceVersion, rows))
		return nil
	}
	write(w, f, http.StatusOK, &list)
	return nil
}

func (s *Server) watchResources(w http.ResponseWriter, r *http.Request, k servedKind, namespace string) error {
	sel, err := parseSelection(r.URL.Query(), namespace, k.knownFields)
	if err != nil {
		return err
	}
	o, err := parseWatch(r.URL.Query())
	if err != nil {
		return err
	}
	x, err := s.newWatcher(w, r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), o.timeout)
	defer cancel()
	records, revision := s.o.Resources.Resources(k.Name)
	if o.now {
		o.since = revision
	}
	x.rev = o.since
	changes, err := s.o.Resources.WatchResources(ctx, o.since)
	if berr := x.begin(); berr != nil {
		return nil // from here on the client has its answer; errors end the stream
	}
	if err != nil {
		_ = x.fail(err)
		return nil
	}
	send := func(t watch.EventType, object manifest.Resource) error {
		object = k.typed(object)
		if x.f.table {
			return x.send(t, x.row(resourceColumns(k), object.GetResourceVersion(), x.t.resource(object)))
		}
		return x.send(t, object)
	}
	// A client that is cut off here goes on from the last one it was sent.
	slices.SortFunc(records, func(a, b store.Resource) int { return cmp.Compare(revisionOf(a.Object), revisionOf(b.Object)) })
	m := newMatcher(sel, sel.matchResource)
	for _, rec := range records {
		if m.begin(rec.Object, o) && send(watch.Added, rec.Object) != nil {
			return nil
		}
	}
	if o.listEnd && x.bookmark(k.Name, true) != nil {
		return nil
	}
	follow(s, r, x, o, k.Name, changes, func(c store.ResourceChange) error {
		x.rev = max(x.rev, c.Revision)
		if c.Resource.Kind() != k.Name {
			return nil
		}
		if t, sent := m.judge(c.Type, c.Resource.Object); sent {
			return send(t, c.Resource.Object)
		}
		return nil
	})
	return nil
}

func (s *Server) createResource(w http.ResponseWriter, r *http.Request, k servedKind, namespace string) error {
	f, dry, raw, err := s.writeRequest(w, r)
	if err != nil {
		return err
	}
	o, err := s.decodeObject(raw, k, manifest.Options{
		Namespace: namespace, UID: uuid.NewUUID(), GenerateName: s.freeName(k.Name, namespace),
	}, true)
	if err != nil {
		return err
	}
	if err := sameNamespace(o.Other, namespace); err != nil {
		return err
	}
	name := o.Other.GetName()
	if dry {
		if rec, taken := s.o.Resources.Resource(k.Name, o.Key()); taken && rec.Source != store.SourceAgent {
			return apierrors.NewAlreadyExists(resource(k.Resource), name)
		}
		write(w, f, http.StatusCreated, k.typed(o.Other))
		return nil
	}
	rec, err := s.o.PushResources.CreateResource(r.Context(), o)
	if err != nil {
		return &apierrors.StatusError{ErrStatus: toStatus(err, k.Resource, name)}
	}
	write(w, f, http.StatusCreated, k.typed(rec.Object))
	return nil
}

// updateResource is PUT.
func (s *Server) updateResource(w http.ResponseWriter, r *http.Request, k servedKind, key pod.Key) error {
	f, dry, raw, err := s.writeRequest(w, r)
	if err != nil {
		return err
	}
	return s.attemptResource(w, f, k, key, func(rec store.Resource) (manifest.Resource, error) {
		return s.replaceResource(r, k, rec, raw, dry)
	})
}

// patchResource is PATCH.
func (s *Server) patchResource(w http.ResponseWriter, r *http.Request, k servedKind, key pod.Key) error {
	f, dry, patch, err := s.writeRequest(w, r)
	if err != nil {
		return err
	}
	media, err := bodyMedia(r)
	if err != nil {
		return err
	}
	apply, err := patcher(media, patch, manifest.New(k.Name))
	if err != nil {
		return err
	}
	return s.attemptResource(w, f, k, key, func(rec store.Resource) (manifest.Resource, error) {
		current, err := json.Marshal(k.typed(rec.Object))
		if err != nil {
			return nil, apierrors.NewInternalError(err)
		}
		patched, err := apply(current)
		if err != nil {
			return nil, err
		}
		if len(patched) > maxBody {
			return nil, tooLarge(len(patched))
		}
		return s.replaceResource(r, k, rec, patched, dry)
	})
}

// attemptResource makes a change, and again when somebody else was faster.
func (s *Server) attemptResource(w http.ResponseWriter, f format, k servedKind, key pod.Key, change func(store.Resource) (manifest.Resource, error)) error {
	for try := 1; ; try++ {
		rec, err := s.findResource(k, key)
		if err != nil {
			return err
		}
		o, err := change(rec)
		if errors.Is(err, errdefs.ErrConflict) && try < changeTries {
			continue
		}
		if err == nil {
			write(w, f, http.StatusOK, k.typed(o))
		}
		return err
	}
}

// replaceResource makes raw the new form of the object, by the API server's
// update rules. What the client sends back only because it was shown (defaults,
// what was allocated, the status) does not become its wish.
func (s *Server) replaceResource(r *http.Request, k servedKind, rec store.Resource, raw []byte, dry bool) (manifest.Resource, error) {
	key, old := rec.Key(), rec.Object
	if err := writableResource(k, rec); err != nil {
		return nil, err
	}
	o, rv, err := s.decodeUpdate(raw, k, rec)
	if err != nil {
		return nil, err
	}
	if o.Other.GetName() != key.Name {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", o.Other.GetName(), key.Name))
	}
	if err := sameNamespace(o.Other, key.Namespace); err != nil {
		return nil, err
	}
	if o.Other.GetUID() != old.GetUID() {
		//lint:ignore ST1005 the API server's own words
		err := fmt.Errorf("Precondition failed: UID in precondition: %s, UID in object meta: %s", o.Other.GetUID(), old.GetUID())
		return nil, apierrors.NewConflict(resource(k.Resource), key.Name, err)
	}
	if rv != "" && rv != old.GetResourceVersion() {
		return nil, apierrors.NewConflict(resource(k.Resource), key.Name,
			errors.New("the object has been modified; please apply your changes to the latest version and try again"))
	}
	served := o.Other.DeepCopyObject().(manifest.Resource)
	manifest.CarryOver(served, old, rec.Wanted)
	if errs := manifest.ValidateResourceUpdate(served, old); len(errs) > 0 {
		return nil, apierrors.NewInvalid(schema.GroupKind{Group: k.group(), Kind: k.Name}, key.Name, errs)
	}
	if dry {
		return served, nil
	}
	now, err := s.o.PushResources.UpdateResource(r.Context(), o, old.GetResourceVersion())
	if err != nil {
		return nil, err
	}
	return now.Object, nil
}

// decodeUpdate reads the new form of an object without what only comes back.
func (s *Server) decodeUpdate(raw []byte, k servedKind, rec store.Resource) (o manifest.Object, rv string, err error) {
	opts := manifest.Options{Origin: store.SourcePush, NodeName: s.o.NodeName, Only: k.Name, Namespace: rec.Key().Namespace, UID: rec.Object.GetUID()}
	objects, errs := manifest.Decode(raw, opts)
	if len(errs) > 0 && !slices.ContainsFunc(errs, isValidation) {
		return o, "", decodeError(k, errs)
	}
	var text []byte
	if len(objects) == 1 {
		text = objects[0].Canonical
	} else if text, err = yaml.YAMLToJSON(raw); err != nil { // it decodes; only its values are wrong as they stand
		return o, "", apierrors.NewBadRequest(err.Error())
	}
	doc, err := document(text)
	if err != nil {
		return o, "", err
	}
	if rv, err = resourceVersion(doc); err != nil {
		return o, "", err
	}
	current, err := json.Marshal(rec.Object)
	if err != nil {
		return o, "", apierrors.NewInternalError(err)
	}
	shown, err := document(current)
	if err != nil {
		return o, "", err
	}
	wanted, err := document(rec.Canonical)
	if err != nil {
		return o, "", err
	}
	stripServerSide(doc, false, false)
	for _, part := range []string{"spec", "status"} {
		onlyWishes(doc, shown, wanted, part)
	}
	o, err = decodeDocument(doc, k, opts)
	return o, rv, err
}

// writableResource refuses changes to what is somebody else's.
func writableResource(k servedKind, rec store.Resource) error {
	from := fmt.Errorf("it comes from the %s source (%s): change it there", rec.Source, rec.Origin)
	switch rec.Source {
	case store.SourcePush:
		return nil
	case store.SourceAgent:
		from = errors.New("the agent derives it from other objects: change those")
	}
	return apierrors.NewForbidden(resource(k.Resource), rec.Key().Name, from)
}

func (s *Server) deleteResource(w http.ResponseWriter, r *http.Request, k servedKind, key pod.Key) error {
	f, err := negotiate(r, false, false)
	if err != nil {
		return err
	}
	o, err := deleteOptions(w, r)
	if err != nil {
		return err
	}
	rec, err := s.findResource(k, key)
	if err != nil {
		return err
	}
	if err := s.removeResource(r, k, rec, o); err != nil {
		return err
	}
	// Nothing has to end: the object is gone, and so the answer is a Status.
	st := success()
	st.Details = &metav1.StatusDetails{Name: key.Name, Group: k.group(), Kind: k.Resource, UID: rec.Object.GetUID()}
	write(w, f, http.StatusOK, st)
	return nil
}

func (s *Server) removeResource(r *http.Request, k servedKind, rec store.Resource, o metav1.DeleteOptions) error {
	if err := writableResource(k, rec); err != nil {
		return err
	}
	var uid types.UID
	var rv string
	if p := o.Preconditions; p != nil {
		if p.UID != nil {
			uid = *p.UID
		}
		if p.ResourceVersion != nil {
			rv = *p.ResourceVersion
		}
	}
	if len(o.DryRun) > 0 {
		return nil
	}
	_, err := s.o.PushResources.DeleteResource(r.Context(), k.Name, rec.Key(), uid, rv)
	return err
}

// deleteResources is DELETE of a collection: what came in through this API.
func (s *Server) deleteResources(w http.ResponseWriter, r *http.Request, k servedKind, namespace string) error {
	f, err := negotiate(r, false, false)
	if err != nil {
		return err
	}
	sel, err := parseSelection(r.URL.Query(), namespace, k.knownFields)
	if err != nil {
		return err
	}
	o, err := deleteOptions(w, r)
	if err != nil {
		return err
	}
	records, revision := s.o.Resources.Resources(k.Name)
	list := k.list(revision)
	for _, rec := range records {
		if rec.Source != store.SourcePush || !sel.matchResource(rec.Object) {
			continue
		}
		err := s.removeResource(r, k, rec, o)
		if errors.Is(err, errdefs.ErrNotFound) {
			continue // gone meanwhile, which is what was wanted
		}
		if err != nil {
			return &apierrors.StatusError{ErrStatus: toStatus(err, k.Resource, rec.Key().Name)}
		}
		list.Items = append(list.Items, k.typed(rec.Object))
	}
	write(w, f, http.StatusOK, &list)
	return nil
}
