package server

import (
	"context"
	"net/http"
	"strconv"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

func knownEventFields() fields.Set { return eventFields(&v1.Event{}) }

// shownEvent is the event as clients see it, with its type.
func shownEvent(e *v1.Event) *v1.Event {
	c := *e
	c.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Event"}
	return &c
}

func (s *Server) getEvent(w http.ResponseWriter, r *http.Request, key pod.Key) error {
	f, err := negotiate(r, true, false)
	if err != nil {
		return err
	}
	list, _ := s.o.Events.List()
	for i := range list {
		e := &list[i]
		if e.Namespace != key.Namespace || e.Name != key.Name {
			continue
		}
		if !f.table {
			write(w, f, http.StatusOK, shownEvent(e))
			return nil
		}
		t, err := s.tables(r)
		if err != nil {
			return err
		}
		write(w, f, http.StatusOK, table(eventColumns(), e.ResourceVersion, []metav1.TableRow{t.event(shownEvent(e))}))
		return nil
	}
	return apierrors.NewNotFound(resource("events"), key.Name)
}

func (s *Server) listEvents(w http.ResponseWriter, r *http.Request, namespace string) error {
	sel, err := parseSelection(r.URL.Query(), namespace, knownEventFields)
	if err != nil {
		return err
	}
	f, err := negotiate(r, true, false)
	if err != nil {
		return err
	}
	all, revision := s.o.Events.List()
	rv := strconv.FormatUint(revision, 10)
	list := v1.EventList{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "EventList"},
		ListMeta: metav1.ListMeta{ResourceVersion: rv}, Items: []v1.Event{},
	}
	for i := range all {
		if sel.matchEvent(&all[i]) {
			list.Items = append(list.Items, all[i])
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
		rows = append(rows, t.event(shownEvent(&list.Items[i])))
	}
	write(w, f, http.StatusOK, table(eventColumns(), rv, rows))
	return nil
}

func (x *watcher) event(t watch.EventType, e *v1.Event) error {
	e = shownEvent(e)
	if x.f.table {
		return x.send(t, x.row(eventColumns(), e.ResourceVersion, x.t.event(e)))
	}
	return x.send(t, e)
}

// watchEvents streams events as they are recorded. What they are selected by
// never changes, so a change needs no comparing with what was before.
func (s *Server) watchEvents(w http.ResponseWriter, r *http.Request, namespace string) error {
	sel, err := parseSelection(r.URL.Query(), namespace, knownEventFields)
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
	list, revision := s.o.Events.List()
	if o.now {
		o.since = revision
	}
	x.rev = o.since
	changes, err := s.o.Events.Watch(ctx, o.since)
	if berr := x.begin(); berr != nil {
		return nil // from here on the client has its answer; errors end the stream
	}
	if err != nil {
		_ = x.fail(err)
		return nil
	}
	for i := range list {
		if o.initial && sel.matchEvent(&list[i]) && x.event(watch.Added, &list[i]) != nil {
			return nil
		}
	}
	if o.listEnd && x.bookmark("Event", true) != nil {
		return nil
	}
	follow(s, r, x, o, "Event", changes, func(e v1.Event) error {
		x.rev = max(x.rev, revisionOf(&e))
		t := watch.Modified
		if e.Count <= 1 {
			t = watch.Added
		}
		if sel.matchEvent(&e) {
			return x.event(t, &e)
		}
		return nil
	})
	return nil
}
