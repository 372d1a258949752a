package apiserver

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
)

// server is an API server that keeps four kinds in memory, with revisions,
// watches and streaming lists, and answers requests it does not understand
// with an error.
type server struct {
	t    *testing.T
	http *httptest.Server

	mu       sync.Mutex
	change   chan struct{} // closed with the next change
	revision int
	oldest   int // watches from before are told 410
	objects  map[string]map[string]runtime.Object
	history  []event
	status   map[string]int // of a resource: what it is refused with
	plain    bool           // knows no streaming lists
	protobuf bool           // lists are in protobuf
	cut      int            // if set, so many bytes are missing at the end of Services in protobuf
	breakAt  int            // if set, lists of Services break off after so many
	token    string         // what clients have to bring
	requests []string
}

type event struct {
	resource    string
	revision    int
	before, now runtime.Object // nil is none
}

var versions = map[string][2]string{
	Services: {"v1", "Service"}, EndpointSlices: {"discovery.k8s.io/v1", "EndpointSlice"},
	Nodes: {"v1", "Node"}, ServiceCIDRs: {"networking.k8s.io/v1", "ServiceCIDR"},
}

func newServer(t *testing.T) *server {
	s := &server{t: t, change: make(chan struct{}), revision: 1, objects: map[string]map[string]runtime.Object{}, status: map[string]int{}}
	s.start("")
	t.Cleanup(func() { s.stop() })
	return s
}

// start listens again on the address given, if any.
func (s *server) start(addr string) {
	s.http = httptest.NewUnstartedServer(s)
	if addr != "" {
		again, err := net.Listen("tcp", addr)
		if err != nil {
			s.t.Fatal(err)
		}
		s.http.Listener.Close()
		s.http.Listener = again
	}
	s.http.EnableHTTP2 = true
	s.http.StartTLS()
}

func (s *server) stop() {
	s.http.CloseClientConnections()
	s.http.Close()
}

func (s *server) wakeLocked() {
	close(s.change)
	s.change = make(chan struct{})
}

// edit changes the server's settings.
func (s *server) edit(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	s.wakeLocked()
}

func resourceOf(o runtime.Object) string {
	switch o.(type) {
	case *corev1.Service:
		return Services
	case *discoveryv1.EndpointSlice:
		return EndpointSlices
	case *corev1.Node:
		return Nodes
	case *networkingv1.ServiceCIDR:
		return ServiceCIDRs
	}
	panic(fmt.Sprintf("%T", o))
}

// put creates or updates objects.
func (s *server) put(objects ...runtime.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range objects {
		s.eventLocked(o, true)
	}
	s.wakeLocked()
}

func (s *server) remove(objects ...runtime.Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range objects {
		s.eventLocked(o, false)
	}
	s.wakeLocked()
}

func (s *server) eventLocked(o runtime.Object, keep bool) {
	resource, m := resourceOf(o), o.(metav1.Object)
	key := m.GetNamespace() + "/" + m.GetName()
	if s.objects[resource] == nil {
		s.objects[resource] = map[string]runtime.Object{}
	}
	s.revision++
	e := event{resource: resource, revision: s.revision, before: s.objects[resource][key]}
	delete(s.objects[resource], key)
	if keep {
		e.now = o.DeepCopyObject()
		e.now.(metav1.Object).SetResourceVersion(strconv.Itoa(s.revision))
		s.objects[resource][key] = e.now
	} else if e.before == nil {
		s.t.Errorf("%s %s cannot be deleted: it is not there", resource, key)
	}
	s.history = append(s.history, e)
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	resource := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	prefix := "/apis/" + versions[resource][0]
	if versions[resource][0] == "v1" {
		prefix = "/api/v1"
	}
	q := r.URL.Query()
	s.mu.Lock()
	s.requests = append(s.requests, resource+"?"+r.URL.RawQuery)
	status, plain, token, oldest, breaks := s.status[resource], s.plain, s.token, s.oldest, s.breakAt > 0 && resource == Services
	s.mu.Unlock()
	since, _ := strconv.Atoi(q.Get("resourceVersion"))
	stream := q.Get("sendInitialEvents") == "true"
	switch {
	case r.URL.Path != prefix+"/"+resource || r.Method != http.MethodGet:
		s.t.Errorf("a request for %s %s", r.Method, r.URL)
		s.refuse(w, http.StatusNotFound)
	case token != "" && r.Header.Get("Authorization") != "Bearer "+token:
		s.refuse(w, http.StatusUnauthorized)
	case status != 0:
		s.refuse(w, status)
	case q.Get("watch") != "true" && breaks:
		s.refuse(w, http.StatusInternalServerError)
	case q.Get("watch") != "true":
		s.list(w, resource, q.Get("labelSelector"))
	case stream && plain:
		s.refuse(w, http.StatusUnprocessableEntity)
	case !stream && since < oldest:
		s.refuse(w, http.StatusGone)
	default:
		s.watch(w, r, resource, q.Get("labelSelector"), since, stream)
	}
}

func (s *server) refuse(w http.ResponseWriter, code int) {
	reasons := map[int]metav1.StatusReason{
		http.StatusUnauthorized: metav1.StatusReasonUnauthorized, http.StatusForbidden: metav1.StatusReasonForbidden,
		http.StatusNotFound: metav1.StatusReasonNotFound, http.StatusGone: metav1.StatusReasonExpired,
		http.StatusUnprocessableEntity: metav1.StatusReasonInvalid, http.StatusInternalServerError: metav1.StatusReasonInternalError,
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	s.encode(w, metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: int32(code), Reason: reasons[code], Message: "refused",
	})
}

// encode ignores a client that went away.
func (s *server) encode(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }

func selected(o runtime.Object, selector string) bool {
	if o == nil {
		return false
	}
	sel, err := labels.Parse(selector)
	if err != nil {
		panic(err)
	}
	return sel.Matches(labels.Set(o.(metav1.Object).GetLabels()))
}

// typed is an object with its kind, as it is sent.
func typed(resource string, o runtime.Object) runtime.Object {
	o = o.DeepCopyObject()
	o.GetObjectKind().SetGroupVersionKind(schema.FromAPIVersionAndKind(versions[resource][0], versions[resource][1]))
	return o
}

func (s *server) list(w http.ResponseWriter, resource, selector string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.protobuf {
		w.Header().Set("Content-Type", runtime.ContentTypeProtobuf)
		b := s.protobufLocked(resource, selector)
		if resource == Services {
			b = b[:len(b)-s.cut]
		}
		_, _ = w.Write(b) // a client that went away is none of its business
		return
	}
	items := []any{}
	for _, o := range s.sortedLocked(resource, selector) {
		items = append(items, typed(resource, o))
	}
	w.Header().Set("Content-Type", "application/json")
	s.encode(w, map[string]any{
		"apiVersion": versions[resource][0], "kind": versions[resource][1] + "List",
		"metadata": map[string]any{"resourceVersion": strconv.Itoa(s.revision)}, "items": items,
	})
}

func (s *server) protobufLocked(resource, selector string) []byte {
	lists := map[string]runtime.Object{
		Services: &corev1.ServiceList{}, EndpointSlices: &discoveryv1.EndpointSliceList{}, Nodes: &corev1.NodeList{}, ServiceCIDRs: &networkingv1.ServiceCIDRList{},
	}
	all := lists[resource]
	m, err := meta.ListAccessor(all)
	if err == nil {
		m.SetResourceVersion(strconv.Itoa(s.revision))
		err = meta.SetList(all, s.sortedLocked(resource, selector))
	}
	var b bytes.Buffer
	if err == nil {
		err = protobuf.NewSerializer(nil, runtime.NewScheme()).Encode(all, &b)
	}
	if err != nil {
		s.t.Errorf("encode %s: %v", resource, err)
	}
	return b.Bytes()
}

func (s *server) sortedLocked(resource, selector string) (out []runtime.Object) {
	for _, key := range slices.Sorted(maps.Keys(s.objects[resource])) {
		if o := s.objects[resource][key]; selected(o, selector) {
			out = append(out, o)
		}
	}
	return out
}

func (s *server) watch(w http.ResponseWriter, r *http.Request, resource, selector string, since int, stream bool) {
	w.Header().Set("Content-Type", "application/json")
	send := func(kind string, o any) {
		s.encode(w, map[string]any{"type": kind, "object": o})
		w.(http.Flusher).Flush()
	}
	s.mu.Lock()
	if stream {
		for i, o := range s.sortedLocked(resource, selector) {
			if resource == Services && s.breakAt > 0 && i == s.breakAt {
				s.mu.Unlock()
				return
			}
			send("ADDED", typed(resource, o))
		}
		send("BOOKMARK", map[string]any{
			"apiVersion": versions[resource][0], "kind": versions[resource][1],
			"metadata": map[string]any{"resourceVersion": strconv.Itoa(s.revision), "annotations": map[string]string{metav1.InitialEventsAnnotationKey: "true"}},
		})
		since = s.revision
	}
	w.(http.Flusher).Flush()
	for {
		for _, e := range s.history {
			if e.resource != resource || e.revision <= since {
				continue
			}
			was, is := selected(e.before, selector), selected(e.now, selector)
			switch {
			case was && is:
				send("MODIFIED", typed(resource, e.now))
			case is:
				send("ADDED", typed(resource, e.now))
			case was: // also one that only left the selector
				send("DELETED", typed(resource, e.before))
			}
		}
		since = s.revision
		change := s.change
		s.mu.Unlock()
		select {
		case <-change:
		case <-r.Context().Done():
			return
		}
		s.mu.Lock()
		if since < s.oldest {
			s.mu.Unlock()
			return
		}
	}
}
