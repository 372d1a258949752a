package server

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Lists that were begun in pages are remembered, so that all pages are of one
// moment: so many of them, for so long.
const (
	maxSnapshots = 8
	snapshotLife = time.Minute
)

// page is how much of a list a client wants.
type page struct {
	limit     int64 // 0: all of it
	pageToken       // of the last page
}

// token is what a client sends to get the next page.
type pageToken struct {
	// Revision is that of the whole list; 0 goes on with what there is now.
	Revision uint64 `json:"rv"`
	// After is what the last page ended with.
	After string `json:"after"`
}

func (t pageToken) String() string {
	b, _ := json.Marshal(t) // it has a number and a string
	return base64.RawURLEncoding.EncodeToString(b)
}

func parsePage(q url.Values) (p page, err error) {
	limit, err := intParam(q, "limit")
	if err != nil {
		return p, err
	}
	if limit != nil && *limit > 0 {
		p.limit = *limit
	}
	text := q.Get("continue")
	if text == "" {
		return p, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || json.Unmarshal(b, &p.pageToken) != nil || p.After == "" {
		return p, apierrors.NewBadRequest("continue key is not valid: it is not one of this server's")
	}
	if rv := q.Get("resourceVersion"); rv != "" && rv != "0" {
		return p, apierrors.NewBadRequest("specifying resource version is not allowed when using continue")
	}
	return p, nil
}

// order is what a list is sorted and paged by.
func order(o metav1.Object) string { return o.GetNamespace() + "\x00" + o.GetName() }

// snapshot is a list as it was.
type snapshot struct {
	resource string
	revision uint64
	records  []record
	made     time.Time
}

// snapshots are the lists that clients are in the middle of.
type snapshots struct {
	now  func() time.Time
	mu   sync.Mutex
	list []snapshot
}

func (s *snapshots) keep(n snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prune()
	if slices.ContainsFunc(s.list, func(o snapshot) bool { return o.resource == n.resource && o.revision == n.revision }) {
		return
	}
	if len(s.list) == maxSnapshots {
		s.list = slices.Delete(s.list, 0, 1)
	}
	n.made = s.now()
	s.list = append(s.list, n)
	// A list that nobody goes on with would keep its objects in memory.
	time.AfterFunc(snapshotLife+time.Second, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.prune()
	})
}

// prune drops what is too old; s.mu is held.
func (s *snapshots) prune() {
	old := s.now().Add(-snapshotLife)
	s.list = slices.DeleteFunc(s.list, func(n snapshot) bool { return n.made.Before(old) })
}

func (s *snapshots) find(resource string, revision uint64) ([]record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prune()
	for _, n := range s.list {
		if n.resource == resource && n.revision == revision {
			return n.records, true
		}
	}
	return nil, false
}

// fill puts a page of the selected objects into a list: of records, or of what
// there was when the client began.
func (s *snapshots) fill(list *objectList, v *view, p page, records []record, sel selection, revision uint64) error {
	if p.After != "" && p.Revision != 0 && p.Revision != revision {
		old, ok := s.find(v.label(), p.Revision)
		if !ok {
			err := apierrors.NewResourceExpired("The provided continue parameter is too old. " +
				"The continue value of this error goes on with what there is now, which may not fit the pages that came before")
			err.ErrStatus.ListMeta.Continue = pageToken{After: p.After}.String()
			return err
		}
		records, revision = old, p.Revision
		list.ResourceVersion = strconv.FormatUint(revision, 10)
	}
	if p.After != "" || p.limit > 0 && int64(len(records)) > p.limit {
		// Events come in the order of time.
		records = slices.SortedFunc(slices.Values(records), func(a, b record) int { return strings.Compare(order(a.object), order(b.object)) })
	}
	var left int64
	for _, rec := range records {
		o := rec.object
		if !sel.matches(o) || p.After != "" && order(o) <= p.After {
			continue
		}
		if p.limit > 0 && int64(len(list.Items)) == p.limit {
			left++
			continue
		}
		list.Items = append(list.Items, o)
	}
	if left > 0 {
		s.keep(snapshot{resource: v.label(), revision: revision, records: records})
		list.Continue = pageToken{revision, order(list.Items[len(list.Items)-1])}.String()
		list.RemainingItemCount = &left
	}
	return nil
}
