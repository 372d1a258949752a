package server

import (
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/manifest"
)

// servedKind is a kind of objects that clients write; the zero value is none.
type servedKind struct{ manifest.Kind }

var podKind = servedKind{manifest.Kind{APIVersion: "v1", Name: "Pod", Resource: "pods"}}

// kindNamed is the kind of a resource's name in paths, pods included.
func kindNamed(resource string) servedKind {
	if resource == podKind.Resource {
		return podKind
	}
	for _, k := range manifest.Kinds() {
		if k.Resource == resource {
			return servedKind{k}
		}
	}
	return servedKind{}
}

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

// root is where the kind's group is served: "api/v1", "apis/discovery.k8s.io/v1".
func root(apiVersion string) string {
	if strings.Contains(apiVersion, "/") {
		return "apis/" + apiVersion
	}
	return "api/" + apiVersion
}

// groupVersions are those beside v1, in order.
func groupVersions() (out []string) {
	for _, k := range manifest.Kinds() {
		if k.APIVersion != "v1" && !slices.Contains(out, k.APIVersion) {
			out = append(out, k.APIVersion)
		}
	}
	return out
}

// shortNames are kubectl's.
var shortNames = map[string][]string{"services": {"svc"}, "endpoints": {"ep"}}

// kindResources are the entries of discovery for the kinds of a group.
func kindResources(apiVersion string) (out []metav1.APIResource) {
	for _, k := range manifest.Kinds() {
		if k.APIVersion != apiVersion {
			continue
		}
		r := metav1.APIResource{
			Name: k.Resource, SingularName: strings.ToLower(k.Name), Namespaced: true, Kind: k.Name, ShortNames: shortNames[k.Resource],
			Verbs: metav1.Verbs{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"},
		}
		if k.Resource == "services" {
			r.Categories = []string{"all"}
		}
		out = append(out, r)
	}
	return out
}
