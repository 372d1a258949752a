package server

import (
	"net/http"
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
	case "metrics":
		if rest == "" {
			return route{label: first, serve: s.metrics}
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
	for _, gv := range groupVersions() {
		if rest, found := strings.CutPrefix(path, root(gv)+"/"); found {
			return s.group(r, gv, rest)
		}
	}
	return route{label: "discovery", serve: func(w http.ResponseWriter, r *http.Request) error {
		return s.discovery(w, r, path)
	}}
}

// group routes what is below a group's path: RESOURCE of all namespaces, or
// namespaces/NAMESPACE/RESOURCE….
func (s *Server) group(r *http.Request, apiVersion, path string) route {
	if rest, found := strings.CutPrefix(path, "namespaces/"); found {
		return s.namespaced(r, apiVersion, strings.Split(rest, "/"))
	}
	// There are no names below a collection of all namespaces.
	if !served(apiVersion, path) {
		return notFound()
	}
	return s.collection(r, path, "")
}

func served(apiVersion, resource string) bool {
	return kindNamed(resource).APIVersion == apiVersion || apiVersion == "v1" && resource == "events"
}

func (s *Server) metrics(w http.ResponseWriter, r *http.Request) error {
	if err := onlyGet(r); err != nil {
		return err
	}
	s.o.Metrics.ServeHTTP(w, r)
	return nil
}

// namespaced routes NAMESPACE/RESOURCE[/NAME[/SUBRESOURCE]].
func (s *Server) namespaced(r *http.Request, apiVersion string, parts []string) route {
	for _, p := range parts {
		if p == "" {
			return notFound()
		}
	}
	if len(parts) < 2 || len(parts) > 4 || !served(apiVersion, parts[1]) {
		return notFound()
	}
	what := parts[1]
	if len(parts) == 2 {
		return s.collection(r, what, parts[0])
	}
	key := pod.Key{Namespace: parts[0], Name: parts[2]}
	if what == "events" {
		if len(parts) == 4 {
			return notFound()
		}
		return route{label: "events", resource: what, name: key.Name, serve: func(w http.ResponseWriter, r *http.Request) error {
			if err := onlyGet(r); err != nil {
				return err
			}
			return s.getEvent(w, r, key)
		}}
	}
	if what != "pods" {
		return s.object(kindNamed(what), key, parts[3:])
	}
	if len(parts) == 4 {
		return s.subresource(r, key, parts[3])
	}
	return route{label: "pods", resource: what, name: key.Name, serve: func(w http.ResponseWriter, r *http.Request) error {
		switch r.Method {
		case http.MethodGet, http.MethodHead:
			return s.getPod(w, r, key)
		case http.MethodPut:
			return s.updatePod(w, r, key)
		case http.MethodPatch:
			return s.patchPod(w, r, key)
		case http.MethodDelete:
			return s.deletePod(w, r, key)
		}
		return notAllowed(what, r.Method)
	}}
}

// object routes one object that is no pod, and its status, which is read only.
func (s *Server) object(k servedKind, key pod.Key, sub []string) route {
	if len(sub) > 0 && sub[0] != "status" {
		return notFound()
	}
	return route{label: k.Resource, resource: k.Resource, name: key.Name, serve: func(w http.ResponseWriter, r *http.Request) error {
		switch {
		case r.Method == http.MethodGet || r.Method == http.MethodHead:
			return s.getResource(w, r, k, key)
		case len(sub) > 0:
		case r.Method == http.MethodPut:
			return s.updateResource(w, r, k, key)
		case r.Method == http.MethodPatch:
			return s.patchResource(w, r, k, key)
		case r.Method == http.MethodDelete:
			return s.deleteResource(w, r, k, key)
		}
		return notAllowed(k.Resource, r.Method)
	}}
}

func (s *Server) subresource(r *http.Request, key pod.Key, sub string) route {
	rt := route{label: "pods/" + sub, resource: "pods", name: key.Name}
	switch sub {
	case "status":
		rt.serve = func(w http.ResponseWriter, r *http.Request) error {
			if err := onlyGet(r); err != nil {
				return err
			}
			return s.getPod(w, r, key)
		}
	case "log":
		// A log that is long takes its time, followed or not.
		rt.long = true
		rt.serve = func(w http.ResponseWriter, r *http.Request) error { return s.podLog(w, r, key) }
	case "exec", "attach", "portforward":
		rt.long = true
		rt.serve = func(w http.ResponseWriter, r *http.Request) error { return s.connect(w, r, key, sub) }
	default:
		return notFound()
	}
	return rt
}

// collection routes lists, watches and what is done to whole collections.
func (s *Server) collection(r *http.Request, what, namespace string) route {
	rt := route{label: what, resource: what}
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	watching, err := boolParam(r.URL.Query(), "watch")
	if err != nil {
		rt.serve = func(http.ResponseWriter, *http.Request) error { return err }
		return rt
	}
	rt.long = read && watching
	rt.serve = func(w http.ResponseWriter, r *http.Request) error {
		switch {
		case what == "events" && read && watching:
			return s.watchEvents(w, r, namespace)
		case what == "events" && read:
			return s.listEvents(w, r, namespace)
		case what == "pods" && read && watching:
			return s.watchPods(w, r, namespace)
		case what == "pods" && read:
			return s.listPods(w, r, namespace)
		case what == "pods" && namespace != "" && r.Method == http.MethodPost:
			return s.createPod(w, r, namespace)
		case what == "pods" && namespace != "" && r.Method == http.MethodDelete:
			return s.deletePods(w, r, namespace)
		case what == "pods" || what == "events":
		case read && watching:
			return s.watchResources(w, r, kindNamed(what), namespace)
		case read:
			return s.listResources(w, r, kindNamed(what), namespace)
		case namespace != "" && r.Method == http.MethodPost:
			return s.createResource(w, r, kindNamed(what), namespace)
		case namespace != "" && r.Method == http.MethodDelete:
			return s.deleteResources(w, r, kindNamed(what), namespace)
		}
		return notAllowed(what, r.Method)
	}
	return rt
}
