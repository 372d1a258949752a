package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"
	"sigs.k8s.io/yaml"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/server/api"
)

// TestAgentPaths reads the agent's own lists, as JSON and as YAML.
func TestAgentPaths(t *testing.T) {
	f := newFixture(t, nil)
	for path, want := range map[string]string{
		api.PathSources:    `"kind":"SourceList","apiVersion":"nodeagent.dev/v1alpha1","items":[{"name":"file","target":"/etc/manifests"`,
		api.PathInfo:       `"kind":"InfoList","apiVersion":"nodeagent.dev/v1alpha1","items":[{"version":"","nodeName":"node-1"`,
		api.PathContainers: `"kind":"ContainerList","apiVersion":"nodeagent.dev/v1alpha1","items":[{"id":"c1","name":"app"`,
		api.PathImages:     `"items":[{"id":"sha256:1","size":7}],"pulls":[{"image":"slow","done":0,"total":9}]`,
		api.PathVolumes:    `"kind":"VolumeList","apiVersion":"nodeagent.dev/v1alpha1","items":[]`,
		api.PathConfig:     `"kind":"NodeAgentConfiguration"`,
	} {
		if got := f.call(t, "GET", api.Prefix+path, "").code(200).Body.String(); !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
		var v map[string]any
		if err := yaml.UnmarshalStrict(f.call(t, "GET", api.Prefix+path, "", "Accept", mediaYAML).code(200).Body.Bytes(), &v); err != nil || v["kind"] == nil {
			t.Errorf("%s as YAML: %v, %v", path, v, err)
		}
		f.call(t, "POST", api.Prefix+path, "").status(405, metav1.StatusReasonMethodNotAllowed)
		f.call(t, "GET", api.Prefix+path, "", "Accept", "text/html").status(406, metav1.StatusReasonNotAcceptable)
	}
	f.node.set(func(n *node) { n.sources = nil })
	if got := f.call(t, "GET", api.Prefix+api.PathSources, "").code(200).Body.String(); !strings.Contains(got, `"items":[]`) {
		t.Errorf("no sources: %s", got)
	}
	for _, path := range []string{"", "nodes", "images/none", "info/x"} {
		f.call(t, "GET", api.Prefix+path, "").status(404, metav1.StatusReasonNotFound)
	}
}

// TestAgentErrors: what the runtime says becomes a Status of the same meaning.
func TestAgentErrors(t *testing.T) {
	f := newFixture(t, nil)
	for _, tt := range []struct {
		err    error
		code   int
		reason metav1.StatusReason
	}{
		{fmt.Errorf("starting: %w", errdefs.ErrUnavailable), 503, metav1.StatusReasonServiceUnavailable},
		{fmt.Errorf("disk: %w", errdefs.ErrTransient), 503, metav1.StatusReasonServiceUnavailable},
		{errdefs.ErrNotFound, 404, metav1.StatusReasonNotFound},
		{fmt.Errorf("nodeagent.yaml:3: listen: %w", errdefs.ErrInvalid), 422, metav1.StatusReasonInvalid},
		{errors.New("surprise"), 500, metav1.StatusReasonInternalError},
	} {
		f.node.set(func(n *node) { n.failWith = tt.err })
		for _, path := range []string{api.PathContainers, api.PathVolumes, api.PathImages} {
			f.call(t, "GET", api.Prefix+path, "").status(tt.code, tt.reason)
		}
		a := f.call(t, "POST", api.Prefix+api.PathReload, "")
		if s := a.status(tt.code, tt.reason); !strings.Contains(s.Message, tt.err.Error()) && tt.code != 404 {
			t.Errorf("message %q does not say %q", s.Message, tt.err)
		}
		if again := a.Header().Get("Retry-After"); (again != "") != (tt.code == 503) {
			t.Errorf("%v: come again after %q s", tt.err, again)
		}
	}
}

func TestReload(t *testing.T) {
	f := newFixture(t, nil)
	f.call(t, "GET", api.Prefix+api.PathReload, "").status(405, metav1.StatusReasonMethodNotAllowed)
	var st metav1.Status
	f.call(t, "POST", api.Prefix+api.PathReload, "").code(200).into(&st)
	if st.Kind != "Status" || st.Status != metav1.StatusSuccess || f.node.reloads != 1 {
		t.Errorf("%+v after %d reloads", st, f.node.reloads)
	}
}

func TestPull(t *testing.T) {
	s := start(t, nil)
	pull := api.Prefix + api.PathPull
	s.call(t, "GET", pull, "").status(405, metav1.StatusReasonMethodNotAllowed)
	s.call(t, "POST", pull, "").status(400, metav1.StatusReasonBadRequest)
	s.call(t, "POST", pull, `{"image":" "}`).status(400, metav1.StatusReasonBadRequest)
	s.call(t, "POST", pull, `{"imago":"x"}`).status(400, metav1.StatusReasonBadRequest)
	s.call(t, "POST", pull, `{"image":"x"}`, "Content-Type", "text/plain").status(415, metav1.StatusReasonUnsupportedMediaType)
	s.call(t, "POST", pull, `{"image":"refused"}`).status(404, metav1.StatusReasonNotFound)

	for image, want := range map[string][]api.PullProgress{
		"x": {{Image: "x", Done: 1, Total: 2}, {Image: "x", Done: 2, Total: 2, Complete: true, ID: "sha256:1"}},
		// There already: nothing happened, and the client still gets its last line.
		"there":  {{Image: "there", Complete: true}},
		"broken": {{Image: "broken", Done: 1, Total: 4}, {Image: "broken", Error: "registry hung up"}},
	} {
		resp, err := s.client.Post("http://agent"+pull, mediaYAML, strings.NewReader("image: "+image+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s", image, resp.Status)
		}
		dec := json.NewDecoder(resp.Body)
		for _, w := range want {
			var got api.PullProgress
			if err := dec.Decode(&got); err != nil || got != w {
				t.Errorf("%s: %+v, %v; want %+v", image, got, err, w)
			}
		}
		if err := dec.Decode(new(any)); err != io.EOF {
			t.Errorf("%s: more than the last line: %v", image, err)
		}
		resp.Body.Close()
	}
}

// TestDiscovery: clients find what is served, and what they find is served.
func TestDiscovery(t *testing.T) {
	f := newFixture(t, nil)
	var v version.Info
	f.call(t, "GET", "/version", "").code(200).into(&v)
	if v.Major != "1" || v.Minor == "" || !strings.HasPrefix(v.GitVersion, "v1."+v.Minor+".") || !strings.HasSuffix(v.GitVersion, "nodeagent-0.1") {
		t.Errorf("version %+v", v)
	}
	var versions metav1.APIVersions
	f.call(t, "GET", "/api", "").code(200).into(&versions)
	if versions.Kind != "APIVersions" || len(versions.Versions) != 1 || versions.Versions[0] != "v1" {
		t.Errorf("/api: %+v", versions)
	}
	var groups metav1.APIGroupList
	f.call(t, "GET", "/apis", "").code(200).into(&groups)
	if groups.Kind != "APIGroupList" || len(groups.Groups) != 4 || groups.Groups[0].PreferredVersion.GroupVersion != "discovery.k8s.io/v1" {
		t.Errorf("/apis lists %+v", groups)
	}
	var group metav1.APIGroup
	var slices metav1.APIResourceList
	f.call(t, "GET", "/apis/discovery.k8s.io", "").code(200).into(&group)
	f.call(t, "GET", "/apis/discovery.k8s.io/v1", "").code(200).into(&slices)
	if group.Kind != "APIGroup" || len(slices.APIResources) != 1 || slices.APIResources[0].Name != "endpointslices" {
		t.Errorf("the group %+v has %+v", group, slices)
	}

	f.create(t, "web", "")
	var core metav1.APIResourceList
	f.call(t, "GET", "/api/v1", "").code(200).into(&core)
	methods := map[string]string{
		"create": "POST", "delete": "DELETE", "deletecollection": "DELETE", "get": "GET", "list": "GET", "patch": "PATCH", "update": "PUT",
	}
	for _, r := range core.APIResources {
		what, sub, _ := strings.Cut(r.Name, "/")
		if what != "pods" && what != "events" {
			continue // TestResources
		}
		for _, verb := range r.Verbs {
			path := "/api/v1/namespaces/default/" + what
			switch {
			case verb == "watch":
				continue // TestWatch
			case sub != "":
				path += "/web/" + sub
			case verb == "get", verb == "update", verb == "patch", verb == "delete":
				path += "/web"
			}
			// Whatever the answer to an empty request is: the verb is known there.
			if a := f.call(t, methods[verb], path, ""); a.Code == 405 || a.Code == 404 && what == "pods" && verb != "get" {
				t.Errorf("%s of %s: %s %s: %d %s", verb, r.Name, methods[verb], path, a.Code, a.Body)
			}
			if verb == "delete" {
				f.finish(t, "web")
				f.create(t, "web", "")
			}
		}
	}

	var doc struct {
		Paths map[string]struct {
			ServerRelativeURL string
			Post              map[string]any
		}
	}
	f.call(t, "GET", "/openapi/v3", "").code(200).into(&doc)
	f.call(t, "GET", doc.Paths["api/v1"].ServerRelativeURL, "").code(200).into(&doc)
	if post := doc.Paths["/api/v1/namespaces/{namespace}/pods"].Post; !strings.Contains(fmt.Sprint(post), "fieldValidation") {
		t.Errorf("clients cannot find out that fields are validated here: %v", post)
	}
	f.call(t, "GET", "/openapi/v2", "").code(200)
	// kubectl asks for all groups in one answer first.
	for _, accept := range []string{mediaAggregated + ",application/json", mediaProtobuf + ",application/json", "application/yaml"} {
		a := f.call(t, "GET", "/apis", "", "Accept", accept).code(200)
		if want, _, _ := strings.Cut(accept, ",application/json"); a.Header().Get("Content-Type") != want {
			t.Errorf("%s: %s: %s", accept, a.Header().Get("Content-Type"), a.Body)
		}
	}
	f.call(t, "GET", "/apis", "", "Accept", "text/html").status(406, metav1.StatusReasonNotAcceptable)
}
