package server

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// objectList is a list of objects of one kind.
type objectList struct {
	metav1.TypeMeta `json:""`
	metav1.ListMeta `json:"metadata"`
	Items           []manifest.Resource `json:"items"`
}

func (k servedKind) newList(revision uint64) *objectList {
	return &objectList{
		TypeMeta: metav1.TypeMeta{APIVersion: k.APIVersion, Kind: k.Name + "List"},
		ListMeta: metav1.ListMeta{ResourceVersion: strconv.FormatUint(revision, 10)}, Items: []manifest.Resource{},
	}
}

// getObject is GET of one object.
func (s *Server) getObject(w http.ResponseWriter, r *http.Request, v *view, key pod.Key) error {
	f, err := negotiate(r, true, false)
	if err != nil {
		return err
	}
	t, err := s.tables(r)
	if err != nil {
		return err
	}
	rec, err := v.find(key)
	if err != nil {
		return err
	}
	write(w, f, http.StatusOK, v.formed(f, t, rec.object))
	return nil
}

// formed is one object in the form that was asked for.
func (v *view) formed(f format, t tables, o manifest.Resource) any {
	switch f.as {
	case asTable:
		return table(v.columns, o.GetResourceVersion(), []metav1.TableRow{v.row(t, o)})
	case asMetadata:
		return metadataOf(o)
	}
	return o
}

// metadataOf is what clients get that want the metadata alone.
func metadataOf(o manifest.Resource) *metav1.PartialObjectMetadata {
	m := &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: metav1.SchemeGroupVersion.String(), Kind: string(asMetadata)}}
	if a, ok := o.(metav1.ObjectMetaAccessor); ok {
		m.ObjectMeta = *a.GetObjectMeta().(*metav1.ObjectMeta)
	}
	return m
}

// fresh checks what the client says of the revision that it wants to see.
func fresh(q url.Values, now uint64) error {
	rv, match := q.Get("resourceVersion"), metav1.ResourceVersionMatch(q.Get("resourceVersionMatch"))
	switch match {
	case "", metav1.ResourceVersionMatchExact, metav1.ResourceVersionMatchNotOlderThan:
	default:
		return apierrors.NewBadRequest(fmt.Sprintf("resourceVersionMatch: %q is neither Exact nor NotOlderThan", match))
	}
	switch {
	case rv == "" && match != "":
		return forbiddenOption("resourceVersionMatch is forbidden unless resourceVersion is provided")
	case rv == "", rv == "0" && match != metav1.ResourceVersionMatchExact:
		return nil
	}
	want, err := strconv.ParseUint(rv, 10, 64)
	if err != nil || want == 0 {
		return apierrors.NewBadRequest(fmt.Sprintf("resourceVersion: Invalid value: %q", rv))
	}
	switch {
	case want > now:
		st := apierrors.NewTimeoutError(fmt.Sprintf("Too large resource version: %d, current: %d", want, now), retryAfter)
		st.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version"}}
		return st
	case match == metav1.ResourceVersionMatchExact && want != now:
		return apierrors.NewResourceExpired(fmt.Sprintf("the list of resource version %d is no longer there, the current one is %d", want, now))
	}
	return nil
}

// listObjects is GET of a collection.
func (s *Server) listObjects(w http.ResponseWriter, r *http.Request, v *view, namespace string) error {
	q := r.URL.Query()
	sel, err := v.selection(q, namespace)
	if err != nil {
		return err
	}
	p, err := parsePage(q)
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
	records, revision := v.list()
	if err := fresh(q, revision); err != nil {
		return err
	}
	list := v.newList(revision)
	if err := s.snapshots.fill(list, v, p, records, sel, revision); err != nil {
		return err
	}
	write(w, f, http.StatusOK, v.formedList(f, t, list))
	return nil
}

// formedList is a list in the form that was asked for.
func (v *view) formedList(f format, t tables, list *objectList) any {
	switch f.as {
	case asTable:
		var rows []metav1.TableRow
		for _, o := range list.Items {
			rows = append(rows, v.row(t, o))
		}
		all := table(v.columns, "", rows)
		all.ListMeta = list.ListMeta
		return all
	case asMetadata:
		all := &metav1.PartialObjectMetadataList{
			TypeMeta: metav1.TypeMeta{APIVersion: metav1.SchemeGroupVersion.String(), Kind: string(asMetadata) + "List"},
			ListMeta: list.ListMeta, Items: []metav1.PartialObjectMetadata{},
		}
		for _, o := range list.Items {
			all.Items = append(all.Items, *metadataOf(o))
		}
		return all
	}
	return list
}
