package server

import (
	"net/http"
	"runtime"
	"strings"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"

	"github.com/nodeagent/nodeagent/pkg/manifest"
)

// kubeVersion is the Kubernetes whose API this one agrees with.
const (
	kubeMajor = "1"
	kubeMinor = "37"
)

// discovery answers what is served, so that clients such as kubectl find their
// way. Only what works is listed: the agent's own paths answer lists of plain
// items, which are not resources with names that kubectl could get, and a group
// without resources makes it fail.
func (s *Server) discovery(w http.ResponseWriter, r *http.Request, path string) error {
	var v any
	switch path {
	case "version":
		v = version.Info{
			Major: kubeMajor, Minor: kubeMinor, GitVersion: s.gitVersion(),
			GoVersion: runtime.Version(), Compiler: runtime.Compiler, Platform: runtime.GOOS + "/" + runtime.GOARCH,
		}
	case "api":
		v = metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions", APIVersion: "v1"}, Versions: []string{"v1"},
			ServerAddressByClientCIDRs: []metav1.ServerAddressByClientCIDR{}}
	case "apis":
		v = metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}, Groups: apiGroups()}
	case "api/v1":
		v = coreResources()
	case "openapi/v3":
		paths := map[string]any{}
		for _, gv := range append([]string{"v1"}, groupVersions()...) {
			paths[root(gv)] = map[string]any{"serverRelativeURL": "/openapi/v3/" + root(gv)}
		}
		v = map[string]any{"paths": paths}
	default:
		if v = s.groupDiscovery(path); v == nil {
			return notServed()
		}
	}
	if err := onlyGet(r); err != nil {
		return err
	}
	f, err := negotiate(r, false, false)
	if err != nil {
		// kubectl asks for the aggregated form or protobuf with JSON as a last
		// resort; a client that wants nothing else gets a plain answer.
		return err
	}
	write(w, f, http.StatusOK, v)
	return nil
}

// groupDiscovery is about one group: itself, its resources, or their operations.
func (s *Server) groupDiscovery(path string) any {
	if path == "openapi/v3/api/v1" {
		return openAPI(s.gitVersion(), "v1")
	}
	for _, gv := range groupVersions() {
		group, _, _ := strings.Cut(gv, "/")
		switch path {
		case "apis/" + group:
			for _, g := range apiGroups() {
				if g.Name == group {
					g.TypeMeta = metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}
					return g
				}
			}
		case root(gv):
			return metav1.APIResourceList{
				TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: gv, APIResources: kindResources(gv),
			}
		case "openapi/v3/" + root(gv):
			return openAPI(s.gitVersion(), gv)
		}
	}
	return nil
}

// apiGroups are the groups beside the core one.
func apiGroups() []metav1.APIGroup {
	groups := []metav1.APIGroup{}
	for _, gv := range groupVersions() {
		group, version, _ := strings.Cut(gv, "/")
		v := metav1.GroupVersionForDiscovery{GroupVersion: gv, Version: version}
		groups = append(groups, metav1.APIGroup{Name: group, Versions: []metav1.GroupVersionForDiscovery{v}, PreferredVersion: v})
	}
	return groups
}

// gitVersion has Kubernetes' form, as clients parse it.
func (s *Server) gitVersion() string {
	return "v" + kubeMajor + "." + kubeMinor + ".0+nodeagent-" + strings.TrimPrefix(s.o.Version, "v")
}

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

func coreResources() metav1.APIResourceList {
	get := metav1.Verbs{"get"}
	connect := metav1.Verbs{"create", "get"}
	sub := func(name, kind string, verbs metav1.Verbs) metav1.APIResource {
		return metav1.APIResource{Name: "pods/" + name, Namespaced: true, Kind: kind, Verbs: verbs}
	}
	return metav1.APIResourceList{
		TypeMeta:     metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"},
		GroupVersion: v1.SchemeGroupVersion.String(),
		APIResources: append([]metav1.APIResource{
			{
				Name: "events", SingularName: "event", Namespaced: true, Kind: "Event", ShortNames: []string{"ev"},
				Verbs: metav1.Verbs{"get", "list", "watch"},
			},
			{
				Name: "pods", SingularName: "pod", Namespaced: true, Kind: "Pod", ShortNames: []string{"po"}, Categories: []string{"all"},
				Verbs: metav1.Verbs{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"},
			},
			sub("attach", "PodAttachOptions", connect),
			sub("exec", "PodExecOptions", connect),
			sub("log", "Pod", get),
			sub("portforward", "PodPortForwardOptions", connect),
			sub("status", "Pod", get),
		}, kindResources("v1")...),
	}
}

// openAPI is the least that lets a client find out that the server validates
// fields itself (the fieldValidation parameter); there are no schemas.
func openAPI(version, apiVersion string) any {
	param := map[string]any{"name": "fieldValidation", "in": "query", "schema": map[string]any{"type": "string", "uniqueItems": true}}
	paths := map[string]any{}
	for _, k := range append([]manifest.Kind{podKind.Kind}, manifest.Kinds()...) {
		if k.APIVersion != apiVersion {
			continue
		}
		gvk := map[string]string{"group": servedKind{k}.group(), "version": servedKind{k}.version(), "kind": k.Name}
		operation := func(action string) map[string]any {
			return map[string]any{
				"parameters": []any{param}, "x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk,
				"responses": map[string]any{"200": map[string]any{"description": "OK"}},
			}
		}
		all := "/" + root(k.APIVersion) + "/namespaces/{namespace}/" + k.Resource
		paths[all] = map[string]any{"post": operation("post")}
		paths[all+"/{name}"] = map[string]any{"put": operation("put"), "patch": operation("patch")}
	}
	return map[string]any{
		"openapi":    "3.0.0",
		"info":       map[string]any{"title": "nodeagent", "version": version},
		"components": map[string]any{"schemas": map[string]any{}},
		"paths":      paths,
	}
}
