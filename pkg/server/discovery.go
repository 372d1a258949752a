package server

import (
	"mime"
	"net/http"
	"runtime"
	"strings"

	apidiscovery "k8s.io/api/apidiscovery/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	nodeapi "github.com/nodeagent/nodeagent/pkg/node"
)

// discovery answers what is served, so that clients such as kubectl find their
// way. Only what works is listed: the agent's own paths answer lists of plain
// items, which are not resources with names that kubectl could get, and a group
// without resources makes it fail.
func (s *Server) discovery(w http.ResponseWriter, r *http.Request, path string) error {
	if strings.HasPrefix(path, "openapi/v3") {
		return s.openAPI(w, r, strings.TrimPrefix(path, "openapi/v3"))
	}
	if path == "openapi/v2" {
		return s.openAPIv2(w, r)
	}
	var v any
	switch path {
	case "version":
		v = version.Info{
			Major: nodeapi.Major, Minor: nodeapi.Minor, GitVersion: s.gitVersion(),
			GoVersion: runtime.Version(), Compiler: runtime.Compiler, Platform: runtime.GOOS + "/" + runtime.GOARCH,
		}
	case "api":
		v = &metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions", APIVersion: "v1"}, Versions: []string{"v1"},
			ServerAddressByClientCIDRs: []metav1.ServerAddressByClientCIDR{}}
	case "apis":
		v = &metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}, Groups: s.apiGroups()}
	default:
		if v = s.groupDiscovery(path); v == nil {
			return notServed()
		}
	}
	if err := onlyGet(r); err != nil {
		return err
	}
	if (path == "api" || path == "apis") && wantsAggregated(r) {
		w.Header().Set("Vary", "Accept")
		write(w, format{media: mediaAggregated}, http.StatusOK, s.aggregated(path))
		return nil
	}
	f, err := negotiate(r, false, false)
	if err != nil {
		return err
	}
	write(w, f, http.StatusOK, v)
	return nil
}

// groupDiscovery is about one group: itself, or its resources.
func (s *Server) groupDiscovery(path string) any {
	if path == root("v1") {
		return s.resourceList("v1")
	}
	for _, gv := range s.groupVersions() {
		group, _, _ := strings.Cut(gv, "/")
		switch path {
		case "apis/" + group:
			for _, g := range s.apiGroups() {
				if g.Name == group {
					g.TypeMeta = metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}
					return &g
				}
			}
		case root(gv):
			return s.resourceList(gv)
		}
	}
	return nil
}

// apiGroups are the groups beside the core one.
func (s *Server) apiGroups() []metav1.APIGroup {
	groups := []metav1.APIGroup{}
	for _, gv := range s.groupVersions() {
		group, version, _ := strings.Cut(gv, "/")
		v := metav1.GroupVersionForDiscovery{GroupVersion: gv, Version: version}
		groups = append(groups, metav1.APIGroup{Name: group, Versions: []metav1.GroupVersionForDiscovery{v}, PreferredVersion: v})
	}
	return groups
}

// resourceList is what a group has at a version.
func (s *Server) resourceList(gv string) *metav1.APIResourceList {
	list := &metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: gv}
	for _, v := range s.views {
		if v.APIVersion != gv {
			continue
		}
		list.APIResources = append(list.APIResources, metav1.APIResource{
			Name: v.Resource, SingularName: strings.ToLower(v.Name), Namespaced: v.Namespaced, Kind: v.Name,
			ShortNames: v.shortNames(), Categories: v.inAll(), Verbs: v.verbs(),
		})
		for _, sub := range v.subresources() {
			list.APIResources = append(list.APIResources, metav1.APIResource{
				Name: v.Resource + "/" + sub.name, Namespaced: v.Namespaced, Kind: sub.kind, Verbs: sub.verbs, Group: sub.group, Version: sub.version,
			})
		}
	}
	return list
}

// mediaAggregated is discovery in one answer (KEP-3352), which clients ask for
// first.
const mediaAggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"

func wantsAggregated(r *http.Request) bool {
	for clause := range strings.SplitSeq(strings.Join(r.Header.Values("Accept"), ","), ",") {
		media, params, err := mime.ParseMediaType(clause)
		if err == nil && media == mediaJSON && params["g"] == "apidiscovery.k8s.io" && params["v"] == "v2" && params["as"] == "APIGroupDiscoveryList" {
			return true
		}
	}
	return false
}

// aggregated are all groups of a path ("api" or "apis") with their resources.
func (s *Server) aggregated(path string) *apidiscovery.APIGroupDiscoveryList {
	list := &apidiscovery.APIGroupDiscoveryList{
		TypeMeta: metav1.TypeMeta{Kind: "APIGroupDiscoveryList", APIVersion: "apidiscovery.k8s.io/v2"}, Items: []apidiscovery.APIGroupDiscovery{},
	}
	groups := []string{"v1"}
	if path == "apis" {
		groups = s.groupVersions()
	}
	for _, gv := range groups {
		group := apidiscovery.APIGroupDiscovery{}
		version := apidiscovery.APIVersionDiscovery{Version: servedKind{manifest.Kind{APIVersion: gv}}.version(), Freshness: apidiscovery.DiscoveryFreshnessCurrent}
		for _, v := range s.views {
			if v.APIVersion == gv {
				group.Name = v.group()
				version.Resources = append(version.Resources, v.discovered())
			}
		}
		group.Versions = []apidiscovery.APIVersionDiscovery{version}
		list.Items = append(list.Items, group)
	}
	return list
}

func (v *view) discovered() apidiscovery.APIResourceDiscovery {
	kind := func(name string) *metav1.GroupVersionKind {
		return &metav1.GroupVersionKind{Group: v.group(), Version: v.version(), Kind: name}
	}
	r := apidiscovery.APIResourceDiscovery{
		Resource: v.Resource, ResponseKind: kind(v.Name), Scope: apidiscovery.ScopeCluster, SingularResource: strings.ToLower(v.Name),
		Verbs: v.verbs(), ShortNames: v.shortNames(), Categories: v.inAll(),
	}
	if v.Namespaced {
		r.Scope = apidiscovery.ScopeNamespace
	}
	for _, sub := range v.subresources() {
		of := kind(sub.kind)
		if sub.group != "" {
			of.Group, of.Version = sub.group, sub.version
		}
		r.Subresources = append(r.Subresources, apidiscovery.APISubresourceDiscovery{Subresource: sub.name, ResponseKind: of, Verbs: sub.verbs})
	}
	return r
}

func (s *Server) gitVersion() string { return nodeapi.Version(s.o.Version) }

func onlyGet(r *http.Request) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return notAllowed("", r.Method)
	}
	return nil
}

func notAllowed(what, method string) error {
	return apierrors.NewMethodNotSupported(resource(what), strings.ToLower(method))
}

func notServed() error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotFound, Reason: metav1.StatusReasonNotFound,
		Message: "the server could not find the requested resource", Details: &metav1.StatusDetails{},
	}}
}
