package server

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strconv"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// changeTries is how often a change is made anew from a newer pod.
const changeTries = 5

// shown is the pod as clients see it: with its type, never sharing memory that
// is written to.
func shown(p *v1.Pod) *v1.Pod {
	c := *p
	c.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	return &c
}

func (s *Server) getPod(w http.ResponseWriter, r *http.Request, key pod.Key) error {
	f, err := negotiate(r, true, false)
	if err != nil {
		return err
	}
	rec, err := s.find(key)
	if err != nil {
		return err
	}
	if f.table {
		t, err := s.tables(r)
		if err != nil {
			return err
		}
		write(w, f, http.StatusOK, table(podColumns(), rec.Pod.ResourceVersion, []metav1.TableRow{t.pod(shown(rec.Pod))}))
		return nil
	}
	write(w, f, http.StatusOK, shown(rec.Pod))
	return nil
}

func (s *Server) find(key pod.Key) (store.Record, error) {
	rec, ok := s.o.Pods.Get(key)
	if !ok || rec.Pod == nil {
		return store.Record{}, apierrors.NewNotFound(resource("pods"), key.Name)
	}
	return rec, nil
}

func (s *Server) tables(r *http.Request) (tables, error) {
	t := tables{now: s.o.Now(), include: metav1.IncludeObjectPolicy(r.URL.Query().Get("includeObject"))}
	switch t.include {
	case "", metav1.IncludeNone, metav1.IncludeMetadata, metav1.IncludeObject:
		return t, nil
	}
	return t, apierrors.NewBadRequest(fmt.Sprintf("unrecognized includeObject value: %q", t.include))
}

func knownPodFields() fields.Set { return podFields(&v1.Pod{}) }

// listPods answers a list, or a watch when the query says so.
func (s *Server) listPods(w http.ResponseWriter, r *http.Request, namespace string) error {
	sel, err := parseSelection(r.URL.Query(), namespace, knownPodFields)
	if err != nil {
		return err
	}
	f, err := negotiate(r, true, false)
	if err != nil {
		return err
	}
	records, revision := s.o.Pods.List()
	rv := strconv.FormatUint(revision, 10)
	list := v1.PodList{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"},
		ListMeta: metav1.ListMeta{ResourceVersion: rv}, Items: []v1.Pod{},
	}
	for _, rec := range records {
		if sel.matchPod(rec.Pod) {
			list.Items = append(list.Items, *rec.Pod)
		}
	}
	if !f.table {
		write(w, f, http.StatusOK, &list)
		return nil
	}
	t, err := s.tables(r)
	if err != nil {
		return err
	}
	var rows []metav1.TableRow
	for i := range list.Items {
		rows = append(rows, t.pod(shown(&list.Items[i])))
	}
	write(w, f, http.StatusOK, table(podColumns(), rv, rows))
	return nil
}

func (s *Server) createPod(w http.ResponseWriter, r *http.Request, namespace string) error {
	f, dry, raw, err := s.writeRequest(w, r)
	if err != nil {
		return err
	}
	o, err := s.decodeObject(raw, podKind, manifest.Options{
		Namespace: namespace, UID: uuid.NewUUID(), GenerateName: s.freeName("Pod", namespace),
	}, true)
	if err != nil {
		return err
	}
	if err := sameNamespace(o.Pod, namespace); err != nil {
		return err
	}
	if dry {
		if _, taken := s.o.Pods.Get(pod.KeyOf(o.Pod)); taken {
			return apierrors.NewAlreadyExists(resource("pods"), o.Pod.Name)
		}
		write(w, f, http.StatusCreated, shown(o.Pod))
		return nil
	}
	p, err := s.o.Push.Create(r.Context(), o)
	if err != nil {
		return named(err, o.Pod.Name)
	}
	write(w, f, http.StatusCreated, shown(p))
	return nil
}

// named makes a Status that names the pod, for requests whose path does not.
func named(err error, name string) error {
	st := toStatus(err, "pods", name)
	return &apierrors.StatusError{ErrStatus: st}
}

func sameNamespace(p metav1.Object, namespace string) error {
	if p.GetNamespace() != namespace {
		return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	return nil
}

// writeRequest checks what all writes have in common and reads the body.
func (s *Server) writeRequest(w http.ResponseWriter, r *http.Request) (f format, dry bool, body []byte, err error) {
	if f, err = negotiate(r, false, false); err != nil {
		return f, false, nil, err
	}
	if dry, err = dryRun(r.URL.Query()["dryRun"]); err != nil {
		return f, false, nil, err
	}
	switch v := r.URL.Query().Get("fieldValidation"); v {
	case "", metav1.FieldValidationStrict, metav1.FieldValidationWarn, metav1.FieldValidationIgnore:
		// Always strict: a field that is silently dropped helps nobody.
	default:
		return f, false, nil, apierrors.NewBadRequest(fmt.Sprintf("query parameter fieldValidation: %q is none of Strict, Warn, Ignore", v))
	}
	if r.Method != http.MethodPatch {
		media, err := bodyMedia(r)
		if err != nil {
			return f, false, nil, err
		}
		if media != mediaJSON && media != mediaYAML {
			return f, false, nil, unsupportedMedia(media, mediaJSON, mediaYAML)
		}
	}
	body, err = readBody(w, r)
	return f, dry, body, err
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

// updatePod is PUT.
func (s *Server) updatePod(w http.ResponseWriter, r *http.Request, key pod.Key) error {
	f, dry, raw, err := s.writeRequest(w, r)
	if err != nil {
		return err
	}
	p, err := s.attempt(key, func(rec store.Record) (*v1.Pod, error) { return s.replace(r, rec, raw, dry) })
	if err != nil {
		return err
	}
	write(w, f, http.StatusOK, p)
	return nil
}

// attempt makes a change from the current record, and again from the newer one
// when somebody else, the status writer most of all, was faster.
func (s *Server) attempt(key pod.Key, change func(store.Record) (*v1.Pod, error)) (*v1.Pod, error) {
	for try := 1; ; try++ {
		rec, err := s.find(key)
		if err != nil {
			return nil, err
		}
		p, err := change(rec)
		if !errors.Is(err, errdefs.ErrConflict) || try == changeTries {
			return p, err
		}
	}
}

// replace makes raw the new form of the pod, by the API server's update rules.
// A resourceVersion in it must be the current one.
func (s *Server) replace(r *http.Request, rec store.Record, raw []byte, dry bool) (*v1.Pod, error) {
	old, key := rec.Pod, pod.KeyOf(rec.Pod)
	if err := writable(rec); err != nil {
		return nil, err
	}
	o, err := s.decodeObject(raw, podKind, manifest.Options{Namespace: key.Namespace, UID: old.UID}, false)
	if err != nil {
		return nil, err
	}
	if o.Pod.Name != key.Name {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", o.Pod.Name, key.Name))
	}
	if err := sameNamespace(o.Pod, key.Namespace); err != nil {
		return nil, err
	}
	if o.Pod.UID != old.UID {
		//lint:ignore ST1005 the API server's own words
		err := fmt.Errorf("Precondition failed: UID in precondition: %s, UID in object meta: %s", o.Pod.UID, old.UID)
		return nil, apierrors.NewConflict(resource("pods"), key.Name, err)
	}
	rv := o.Pod.ResourceVersion
	if rv != "" && rv != old.ResourceVersion {
		return nil, conflict(key.Name)
	}
	if errs := manifest.ValidateUpdate(o.Pod, old); len(errs) > 0 {
		return nil, apierrors.NewInvalid(schema.GroupKind{Kind: "Pod"}, key.Name, errs)
	}
	if dry {
		return preview(old, o), nil
	}
	// The rules were checked against this revision; nothing else may have come
	// between. Without a wish of the client's the caller tries again.
	p, err := s.o.Push.Update(r.Context(), key, o, old.ResourceVersion)
	if err != nil {
		return nil, err
	}
	return shown(p), nil
}

// preview is what the pod would be shown as once it is o.
func preview(old *v1.Pod, o manifest.Object) *v1.Pod {
	p := shown(old)
	p.Labels, p.Annotations, p.Spec = o.Pod.Labels, map[string]string{}, o.Pod.Spec
	maps.Copy(p.Annotations, o.Pod.Annotations)
	for _, a := range serverAnnotations() {
		if v, set := old.Annotations[a]; set {
			p.Annotations[a] = v
		}
	}
	p.Annotations[pod.AnnotationConfigHash] = o.SpecHash
	if !apiequality.Semantic.DeepEqual(old.Spec, p.Spec) {
		p.Generation++
	}
	return p
}

func conflict(name string) error {
	return apierrors.NewConflict(resource("pods"), name,
		errors.New("the object has been modified; please apply your changes to the latest version and try again"))
}

// writable refuses changes to pods that are somebody else's: they would be
// undone by their source, or come back.
func writable(rec store.Record) error {
	if rec.Source == store.SourcePush {
		return nil
	}
	return apierrors.NewForbidden(resource("pods"), rec.Pod.Name,
		fmt.Errorf("the pod comes from the %s source (%s): change it there", rec.Source, rec.Origin))
}

// deleteOptions reads DeleteOptions from the body, overridden by the query.
func deleteOptions(w http.ResponseWriter, r *http.Request) (metav1.DeleteOptions, error) {
	var o metav1.DeleteOptions
	if err := decodeBody(w, r, &o); err != nil {
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

func (s *Server) deletePod(w http.ResponseWriter, r *http.Request, key pod.Key) error {
	f, err := negotiate(r, false, false)
	if err != nil {
		return err
	}
	o, err := deleteOptions(w, r)
	if err != nil {
		return err
	}
	rec, err := s.find(key)
	if err != nil {
		return err
	}
	p, err := s.remove(r, rec, o)
	if err != nil {
		return err
	}
	write(w, f, http.StatusOK, p)
	return nil
}

// remove deletes one pod and returns it as it stands then.
func (s *Server) remove(r *http.Request, rec store.Record, o metav1.DeleteOptions) (*v1.Pod, error) {
	if err := writable(rec); err != nil {
		return nil, err
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
	name := rec.Pod.Name
	if uid != "" && uid != rec.Pod.UID {
		return nil, apierrors.NewConflict(resource("pods"), name,
			fmt.Errorf("the UID in the precondition (%s) does not match the UID in record (%s). The object might have been deleted and then recreated", uid, rec.Pod.UID))
	}
	if rv != "" && rv != rec.Pod.ResourceVersion {
		return nil, apierrors.NewConflict(resource("pods"), name,
			fmt.Errorf("the ResourceVersion in the precondition (%s) does not match the ResourceVersion in record (%s). The object might have been modified", rv, rec.Pod.ResourceVersion))
	}
	if len(o.DryRun) > 0 {
		return shown(rec.Pod), nil
	}
	p, err := s.o.Push.Delete(r.Context(), pod.KeyOf(rec.Pod), o.GracePeriodSeconds, uid, rv)
	if err != nil {
		return nil, err
	}
	if p == nil {
		p = rec.Pod
	}
	return shown(p), nil
}

// deletePods is DELETE of a collection: every matching pod that came in through
// this API. The pods of other sources are left alone, as they would come back.
func (s *Server) deletePods(w http.ResponseWriter, r *http.Request, namespace string) error {
	f, err := negotiate(r, false, false)
	if err != nil {
		return err
	}
	sel, err := parseSelection(r.URL.Query(), namespace, knownPodFields)
	if err != nil {
		return err
	}
	o, err := deleteOptions(w, r)
	if err != nil {
		return err
	}
	records, revision := s.o.Pods.List()
	list := v1.PodList{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"},
		ListMeta: metav1.ListMeta{ResourceVersion: strconv.FormatUint(revision, 10)}, Items: []v1.Pod{},
	}
	for _, rec := range records {
		if rec.Source != store.SourcePush || !sel.matchPod(rec.Pod) {
			continue
		}
		p, err := s.remove(r, rec, o)
		if err != nil {
			if apierrors.IsNotFound(&apierrors.StatusError{ErrStatus: toStatus(err, "pods", rec.Pod.Name)}) {
				continue // gone meanwhile, which is what was wanted
			}
			return named(err, rec.Pod.Name)
		}
		list.Items = append(list.Items, *p)
	}
	write(w, f, http.StatusOK, &list)
	return nil
}
