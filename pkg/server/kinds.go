package server

import (
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/nodeagent/nodeagent/pkg/manifest"
)

// servedKind is a kind of objects that is served; the zero value is none.
type servedKind struct{ manifest.Kind }

// The kinds that are no manifest.Resource.
var (
	podKind   = servedKind{manifest.Kind{APIVersion: "v1", Name: "Pod", Resource: "pods", Namespaced: true}}
	eventKind = servedKind{manifest.Kind{APIVersion: "v1", Name: "Event", Resource: "events", Namespaced: true}}
	nodeKind  = servedKind{manifest.Kind{APIVersion: "v1", Name: "Node", Resource: "nodes"}}
)

// kindNamed is the kind of a resource's name in paths.
func kindNamed(resource string) servedKind {
	for _, k := range []servedKind{podKind, eventKind, nodeKind} {
		if resource == k.Resource {
			return k
		}
	}
	for _, k := range manifest.Kinds() {
		if k.Resource == resource {
			return servedKind{k}
		}
	}
	return servedKind{}
}

// ownStatus says that the status of objects is the agent's alone. A Service's
// manifest may say which addresses its load balancer has.
func (k servedKind) ownStatus() bool { return k.Name != "Service" }

// group is empty for the core API.
func (k servedKind) group() string {
	group, _, found := strings.Cut(k.APIVersion, "/")
	if !found {
		return ""
	}
	return group
}

func (k servedKind) version() string {
	return k.APIVersion[strings.LastIndexByte(k.APIVersion, '/')+1:]
}

func (k servedKind) gvk() schema.GroupVersionKind {
	return schema.FromAPIVersionAndKind(k.APIVersion, k.Name)
}

func (k servedKind) groupResource() schema.GroupResource {
	return schema.GroupResource{Group: k.group(), Resource: k.Resource}
}

// root is where the kind's group is served: "api/v1", "apis/discovery.k8s.io/v1".
func root(apiVersion string) string {
	if strings.Contains(apiVersion, "/") {
		return "apis/" + apiVersion
	}
	return "api/" + apiVersion
}

// makeViews are all kinds that are served, those of one group and version
// together and in the order of their names.
func (s *Server) makeViews() []*view {
	views := []*view{
		{
			servedKind: podKind, reader: podReader{s.o.Pods}, writer: podWriter{s}, fields: podFields,
			columns: podColumns(), row: tables.pod,
		},
		{
			servedKind: eventKind, reader: eventReader{s.o.Events}, fields: eventFields,
			columns: eventColumns(), row: tables.event,
		},
		{
			servedKind: nodeKind, reader: nodeReader{s.o.NodeObject}, writer: nodeWriter{s}, fields: nodeFields,
			columns: nodeColumns(), row: tables.node,
		},
	}
	for _, k := range manifest.Kinds() {
		kind := servedKind{k}
		views = append(views, &view{
			servedKind: kind, reader: resourceReader{kind, s.o.Resources}, writer: resourceWriter{s, kind}, fields: resourceFields,
			columns: resourceColumns(kind), row: tables.resource,
		})
	}
	views = append(views, s.metricsViews()...)
	slices.SortFunc(views, func(a, b *view) int {
		if a.APIVersion != b.APIVersion {
			// The core group has no slash, and comes first.
			return strings.Compare(root(a.APIVersion), root(b.APIVersion))
		}
		return strings.Compare(a.Resource, b.Resource)
	})
	return views
}

// viewOf is the view of a resource in a group and version; nil: not served.
func (s *Server) viewOf(apiVersion, resource string) *view {
	for _, v := range s.views {
		if v.APIVersion == apiVersion && v.Resource == resource {
			return v
		}
	}
	return nil
}

// groupVersions are those beside v1, in order.
func (s *Server) groupVersions() (out []string) {
	for _, v := range s.views {
		if v.APIVersion != "v1" && !slices.Contains(out, v.APIVersion) {
			out = append(out, v.APIVersion)
		}
	}
	return out
}

// shortNames are kubectl's.
func (v *view) shortNames() []string {
	if v.measured() {
		return nil // those are the pods' and nodes' own
	}
	return shortNames[v.Resource]
}

var shortNames = map[string][]string{
	"configmaps": {"cm"}, "endpoints": {"ep"}, "events": {"ev"}, "namespaces": {"ns"}, "nodes": {"no"}, "persistentvolumeclaims": {"pvc"},
	"persistentvolumes": {"pv"}, "pods": {"po"}, "priorityclasses": {"pc"}, "serviceaccounts": {"sa"}, "services": {"svc"},
}

// inAll are what `kubectl get all` shows.
func (v *view) inAll() []string {
	if !v.measured() && (v.Resource == "pods" || v.Resource == "services") {
		return []string{"all"}
	}
	return nil
}

// verbs are what may be done with objects of the view.
func (v *view) verbs() metav1.Verbs {
	switch {
	case v.measured():
		return metav1.Verbs{"get", "list"}
	case v.writer == nil:
		return metav1.Verbs{"get", "list", "watch"}
	case v.Resource == nodeKind.Resource:
		return metav1.Verbs{"get", "list", "patch", "update", "watch"}
	}
	return metav1.Verbs{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}
}

func (v *view) can(verb string) bool { return slices.Contains(v.verbs(), verb) }

// subresource is something below an object of a kind.
type subresource struct {
	name string
	// kind, in the group and version of the view unless group and version say otherwise.
	kind           string
	verbs          metav1.Verbs
	group, version string
}

// subresources are what is served below an object, in order of their names.
func (v *view) subresources() []subresource {
	get, connect := metav1.Verbs{"get"}, metav1.Verbs{"create", "get"}
	if v.measured() {
		return nil
	}
	status := subresource{name: "status", kind: v.Name, verbs: get}
	switch v.Resource {
	case "pods":
		change := metav1.Verbs{"get", "patch", "update"}
		status.verbs = change
		return []subresource{
			{name: "attach", kind: "PodAttachOptions", verbs: connect},
			{name: "ephemeralcontainers", kind: v.Name, verbs: change},
			{name: "eviction", kind: "Eviction", verbs: metav1.Verbs{"create"}, group: "policy", version: "v1"},
			{name: "exec", kind: "PodExecOptions", verbs: connect},
			{name: "log", kind: v.Name, verbs: get},
			{name: "portforward", kind: "PodPortForwardOptions", verbs: connect},
			{name: "resize", kind: v.Name, verbs: change}, status,
		}
	case "namespaces", "nodes", "persistentvolumeclaims", "persistentvolumes", "services":
		return []subresource{status}
	}
	return nil
}
