package server

import (
	"net/http"
	"slices"
	"strings"

	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/server/api"
)

// route is one request's handler and what is said about it.
type route struct {
	label    string // of the metrics: one of few
	resource string // of error messages
	name     string
	long     bool // it streams: a watch, a followed log, a session, a pull
	serve    func(w http.ResponseWriter, r *http.Request) error
}

func notFound() route {
	return route{label: "none", serve: func(http.ResponseWriter, *http.Request) error { return notServed() }}
}

// route finds the handler of a request. Paths are taken literally: nothing is
// cleaned or redirected, and a trailing slash is ignored.
func (s *Server) route(r *http.Request, kind string) route {
	path := strings.Trim(r.URL.Path, "/")
	first, rest, _ := strings.Cut(path, "/")
	switch first {
	case "healthz", "livez", "readyz":
		return route{label: first, serve: func(w http.ResponseWriter, r *http.Request) error {
			if err := onlyGet(r); err != nil {
				return err
			}
			s.health(w, r, first, rest)
			return nil
		}}
	case "metrics", "stats":
		switch path {
		case "metrics":
			return route{label: path, serve: s.metrics}
		case "metrics/probes":
			return route{label: path, serve: s.probeMetrics}
		case "metrics/cadvisor", "metrics/resource", "stats/summary":
			return route{label: path, serve: func(w http.ResponseWriter, r *http.Request) error { return s.scrape(w, r, path) }}
		}
	}
	if kind == kindHealth {
		return notFound()
	}
	switch {
	case strings.HasPrefix(path, "api/v1/"):
		return s.group(r, "v1", strings.TrimPrefix(path, "api/v1/"))
	case strings.HasPrefix(path, api.Prefix[1:]):
		sub := strings.TrimPrefix(path, api.Prefix[1:])
		label := "nodeagent/" + sub
		switch sub {
		case api.PathSources, api.PathContainers, api.PathImages, api.PathPull, api.PathVolumes, api.PathInfo, api.PathConfig, api.PathReload:
		default:
			label = "none"
		}
		return route{label: label, long: sub == api.PathPull, serve: func(w http.ResponseWriter, r *http.Request) error {
			return s.agent(w, r, sub)
		}}
	}
	for _, gv := range s.groupVersions() {
		if rest, found := strings.CutPrefix(path, root(gv)+"/"); found {
			return s.group(r, gv, rest)
		}
	}
	return route{label: "discovery", serve: func(w http.ResponseWriter, r *http.Request) error {
		return s.discovery(w, r, path)
	}}
}

// group routes what is below a group's path: RESOURCE of all namespaces,
// namespaces/NAMESPACE/RESOURCE[/NAME[/SUBRESOURCE]], and the same without a
// namespace for what is in none.
func (s *Server) group(r *http.Request, apiVersion, path string) route {
	parts := strings.Split(path, "/")
	if slices.Contains(parts, "") {
		return notFound()
	}
	namespace := ""
	// A namespace has no kinds below it that are named as its subresources.
	if parts[0] == "namespaces" && len(parts) > 2 && parts[2] != "status" && parts[2] != "finalize" {
		namespace, parts = parts[1], parts[2:]
	}
	v := s.viewOf(apiVersion, parts[0])
	switch {
	case v == nil || len(parts) > 3 || namespace != "" && !v.Namespaced:
		return notFound()
	case len(parts) == 1:
		return s.collection(r, v, namespace)
	case namespace == "" && v.Namespaced:
		// There are no names below a collection of all namespaces.
		return notFound()
	}
	key := pod.Key{Namespace: namespace, Name: parts[1]}
	if len(parts) == 3 {
		return s.subresource(v, key, parts[2])
	}
	return s.object(v, key)
}

func (s *Server) metrics(w http.ResponseWriter, r *http.Request) error {
	if err := onlyGet(r); err != nil {
		return err
	}
	s.o.Metrics.ServeHTTP(w, r)
	return nil
}

func (s *Server) probeMetrics(w http.ResponseWriter, r *http.Request) error {
	if err := onlyGet(r); err != nil {
		return err
	}
	s.o.Metrics.Probes(w, r)
	return nil
}

// object routes one object.
func (s *Server) object(v *view, key pod.Key) route {
	return route{label: v.label(), resource: v.Resource, name: key.Name, serve: func(w http.ResponseWriter, r *http.Request) error {
		switch {
		case r.Method == http.MethodGet || r.Method == http.MethodHead:
			return s.getObject(w, r, v, key)
		case v.writer == nil:
		case r.Method == http.MethodPut:
			return s.updateObject(w, r, v, key)
		case r.Method == http.MethodPatch:
			return s.patchObject(w, r, v, key)
		case r.Method == http.MethodDelete && v.can("delete"):
			return s.deleteObject(w, r, v, key)
		}
		return notAllowed(v.Resource, r.Method)
	}}
}

// subresource routes what is below one object; the status is read only, but for that of pods.
func (s *Server) subresource(v *view, key pod.Key, sub string) route {
	if !slices.ContainsFunc(v.subresources(), func(have subresource) bool { return have.name == sub }) {
		return notFound()
	}
	rt := route{label: v.label() + "/" + sub, resource: v.Resource, name: key.Name}
	if v.Resource == podKind.Resource && (sub == "status" || sub == "ephemeralcontainers" || sub == "resize") {
		rt.serve = func(w http.ResponseWriter, r *http.Request) error { return s.amendPod(w, r, v, key, sub) }
		return rt
	}
	switch sub {
	case "status":
		rt.serve = func(w http.ResponseWriter, r *http.Request) error {
			if err := onlyGet(r); err != nil {
				return err
			}
			return s.getObject(w, r, v, key)
		}
	case "log":
		// A log that is long takes its time, followed or not.
		rt.long = true
		rt.serve = func(w http.ResponseWriter, r *http.Request) error { return s.podLog(w, r, key) }
	case "eviction":
		rt.serve = func(w http.ResponseWriter, r *http.Request) error { return s.evictPod(w, r, v, key) }
	case "exec", "attach", "portforward":
		rt.long = true
		rt.serve = func(w http.ResponseWriter, r *http.Request) error { return s.connect(w, r, key, sub) }
	default:
		return notFound()
	}
	return rt
}

// collection routes lists, watches and what is done to whole collections.
func (s *Server) collection(r *http.Request, v *view, namespace string) route {
	rt := route{label: v.label(), resource: v.Resource}
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	watching, err := boolParam(r.URL.Query(), "watch")
	if err != nil {
		rt.serve = func(http.ResponseWriter, *http.Request) error { return err }
		return rt
	}
	rt.long = read && watching
	rt.serve = func(w http.ResponseWriter, r *http.Request) error {
		switch {
		case read && watching && !v.can("watch"):
		case read && watching:
			return s.watchObjects(w, r, v, namespace)
		case read:
			return s.listObjects(w, r, v, namespace)
		case v.writer == nil || v.Namespaced && namespace == "":
		case r.Method == http.MethodPost && v.can("create"):
			return s.createObject(w, r, v, namespace)
		case r.Method == http.MethodDelete && v.can("delete"):
			return s.deleteObjects(w, r, v, namespace)
		}
		return notAllowed(v.Resource, r.Method)
	}
	return rt
}
