package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/nodeagent/nodeagent/pkg/server/api"
	"github.com/nodeagent/nodeagent/pkg/store"
)

func TestCreateGetList(t *testing.T) {
	f := newFixture(t, nil)
	p := f.create(t, "web", "  labels: {app: web}\n")
	if p.Namespace != "default" || p.UID == "" || p.ResourceVersion == "" || p.Spec.NodeName != nodeName || p.Spec.RestartPolicy != v1.RestartPolicyAlways {
		t.Errorf("created %+v: namespace, UID, resourceVersion, node and defaults are to be set", p.ObjectMeta)
	}
	got := f.call(t, "GET", podsPath+"/web", "").code(200).pod()
	if got.UID != p.UID {
		t.Errorf("UID %s, want %s", got.UID, p.UID)
	}
	f.call(t, "GET", podsPath+"/web/status", "").code(200).pod()
	f.create(t, "other", "")
	f.call(t, "POST", "/api/v1/namespaces/kube-system/pods", podYAML("dns", ""), "Content-Type", mediaYAML).code(201)

	for path, want := range map[string]string{
		podsPath:                                          "other web",
		"/api/v1/pods":                                    "other web dns",
		"/api/v1/pods?limit=1":                            "other",
		"/api/v1/pods?limit=9":                            "other web dns",
		podsPath + "?labelSelector=app%3Dweb":             "web",
		podsPath + "?labelSelector=!app":                  "other",
		podsPath + "?fieldSelector=metadata.name%3Dother": "other",
		"/api/v1/pods?fieldSelector=metadata.namespace!%3Ddefault":            "dns",
		"/api/v1/pods?fieldSelector=spec.nodeName%3D" + nodeName:              "other web dns",
		"/api/v1/pods?fieldSelector=spec.nodeName%3Delsewhere":                "",
		"/api/v1/pods?fieldSelector=status.phase%3DPending,metadata.name=web": "web",
		"/api/v1/namespaces/empty/pods":                                       "",
	} {
		a := f.call(t, "GET", path, "").code(200)
		var list v1.PodList
		a.into(&list)
		var names []string
		for _, p := range list.Items {
			names = append(names, p.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
		if list.Kind != "PodList" || list.ResourceVersion == "" || !strings.Contains(a.Body.String(), `"items":[`) {
			t.Errorf("%s: not a list: %s", path, a.Body)
		}
	}
	f.call(t, "GET", podsPath+"?fieldSelector=spec.foo%3D1", "").status(400, metav1.StatusReasonBadRequest)
	f.call(t, "GET", podsPath+"?labelSelector=%3D%3D", "").status(400, metav1.StatusReasonBadRequest)
}

// TestCreateRefused pins code, reason and causes of what kube-apiserver refuses.
func TestCreateRefused(t *testing.T) {
	f := newFixture(t, nil)
	f.create(t, "web", "")
	f.fromFile(t, "static")
	for _, tt := range []struct {
		name, path, body, media string
		code                    int
		reason                  metav1.StatusReason
		message, field          string
	}{
		{name: "taken", body: podYAML("web", ""), code: 409, reason: metav1.StatusReasonAlreadyExists, message: `pods "web" already exists`},
		{name: "taken by a file", body: podYAML("static", ""), code: 409, reason: metav1.StatusReasonAlreadyExists},
		{name: "other namespace", body: podYAML("a", "  namespace: other\n"), code: 400, reason: metav1.StatusReasonBadRequest, message: "the namespace of the provided object does not match the namespace sent on the request"},
		{name: "unknown field", body: podYAML("a", "") + "    foo: 1\n", code: 400, reason: metav1.StatusReasonBadRequest, message: `strict decoding error: unknown field "spec.containers[0].foo"`, field: "spec.containers[0].foo"},
		{name: "field twice", body: `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","name":"b"},"spec":{"containers":[{"name":"a","image":"b"}]}}`, code: 400, reason: metav1.StatusReasonBadRequest},
		{name: "invalid", body: strings.Replace(podYAML("a", ""), "image: example.org/app:1", "imagePullPolicy: Sometimes", 1), code: 422, reason: metav1.StatusReasonInvalid, message: `Pod "a" is invalid: `, field: "spec.containers[0].image"},
		{name: "no name", body: podYAML(`""`, ""), code: 422, reason: metav1.StatusReasonInvalid, field: "metadata.name"},
		{name: "wrong node", body: podYAML("a", "") + "  nodeName: elsewhere\n", code: 422, reason: metav1.StatusReasonInvalid, field: "spec.nodeName"},
		{name: "resourceVersion", body: podYAML("a", "  resourceVersion: \"5\"\n"), code: 400, reason: metav1.StatusReasonBadRequest, message: "resourceVersion should not be set on objects to be created"},
		{name: "other kind", body: "apiVersion: apps/v1\nkind: Deployment\n", code: 400, reason: metav1.StatusReasonBadRequest, message: "must be of type Pod"},
		{name: "resourceVersion of another type", body: podYAML("a", "  resourceVersion: 5\n"), code: 400, reason: metav1.StatusReasonBadRequest, message: "expected a string"},
		{name: "list", body: "apiVersion: v1\nkind: List\nitems:\n- " + strings.ReplaceAll(podYAML("a", ""), "\n", "\n  "), code: 400, reason: metav1.StatusReasonBadRequest, message: "must be of type Pod"},
		{name: "field of another type", body: strings.Replace(podYAML("a", ""), "image: example.org/app:1", "image: [1]", 1), code: 400, reason: metav1.StatusReasonBadRequest, field: "spec.containers[0].image"},
		{name: "field that is not supported", body: podYAML("a", "") + "  ephemeralContainers: [{name: x}]\n", code: 422, reason: metav1.StatusReasonInvalid, field: "spec.ephemeralContainers"},
		{name: "two", body: podYAML("a", "") + "---\n" + podYAML("b", ""), code: 400, reason: metav1.StatusReasonBadRequest, message: "one Pod, not 2"},
		{name: "empty", body: "", code: 400, reason: metav1.StatusReasonBadRequest},
		{name: "garbage", body: "{{{", code: 400, reason: metav1.StatusReasonBadRequest},
		{name: "too large", body: "#" + strings.Repeat("x", maxBody), code: 413, reason: metav1.StatusReasonRequestEntityTooLarge},
		{name: "no protobuf", media: mediaProtobuf, body: "{}", code: 400, reason: metav1.StatusReasonBadRequest, message: "does not begin"},
		{name: "protobuf of nothing", media: mediaProtobuf, body: "k8s\x00", code: 400, reason: metav1.StatusReasonBadRequest, message: "is not served"},
		{name: "text", media: "text/plain", body: "x", code: 415, reason: metav1.StatusReasonUnsupportedMediaType},
		{name: "bad dryRun", path: podsPath + "?dryRun=Some", body: podYAML("a", ""), code: 422, reason: metav1.StatusReasonInvalid, field: "dryRun"},
		{name: "bad fieldValidation", path: podsPath + "?fieldValidation=x", body: podYAML("a", ""), code: 400, reason: metav1.StatusReasonBadRequest},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path, media := tt.path, tt.media
			if path == "" {
				path = podsPath
			}
			if media == "" {
				media = mediaYAML
			}
			s := f.call(t, "POST", path, tt.body, "Content-Type", media).status(tt.code, tt.reason)
			if !strings.Contains(s.Message, tt.message) {
				t.Errorf("message %q, want it to contain %q", s.Message, tt.message)
			}
			if tt.field != "" {
				found := false
				for _, c := range s.Details.Causes {
					found = found || c.Field == tt.field
				}
				if !found {
					t.Errorf("causes %+v, want one of field %s", s.Details.Causes, tt.field)
				}
			}
		})
	}
	if recs, _ := f.store.List(); len(recs) != 2 {
		t.Errorf("%d pods, want 2: a refused request must not create one", len(recs))
	}
}

func TestCreateVariants(t *testing.T) {
	f := newFixture(t, nil)
	t.Run("dry run", func(t *testing.T) {
		f.call(t, "POST", podsPath+"?dryRun=All", podYAML("dry", ""), "Content-Type", mediaYAML).code(201).pod()
		f.call(t, "GET", podsPath+"/dry", "").status(404, metav1.StatusReasonNotFound)
	})
	t.Run("generateName", func(t *testing.T) {
		doc := strings.Replace(podYAML("x", ""), "name: x", "generateName: job-", 1)
		a, b := f.call(t, "POST", podsPath, doc, "Content-Type", mediaYAML).code(201).pod(), f.call(t, "POST", podsPath, doc, "Content-Type", mediaYAML).code(201).pod()
		if a.Name == b.Name || !strings.HasPrefix(a.Name, "job-") || len(a.Name) != 9 {
			t.Errorf("names %q and %q, want two of job-xxxxx", a.Name, b.Name)
		}
	})
	t.Run("what a GET showed", func(t *testing.T) {
		p := f.create(t, "orig", "")
		p.Name, p.ResourceVersion = "copy", ""
		p.Status.Phase = v1.PodRunning
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		c := f.call(t, "POST", podsPath, string(b), "Content-Type", mediaJSON).code(201).pod()
		if c.UID == p.UID || c.Status.Phase != v1.PodPending {
			t.Errorf("UID %s, phase %s: a new pod has its own UID and no status of another", c.UID, c.Status.Phase)
		}
		rec, _ := f.store.Get(key("copy"))
		if s := string(rec.Canonical); strings.Contains(s, "Running") || strings.Contains(s, "creationTimestamp") || strings.Contains(s, string(p.UID)) {
			t.Errorf("what only a server says is kept: %s", s)
		}
	})
	t.Run("same manifest again after deletion", func(t *testing.T) {
		a := f.create(t, "again", "")
		f.call(t, "DELETE", podsPath+"/again?gracePeriodSeconds=0", "").code(200)
		f.finish(t, "again")
		if b := f.create(t, "again", ""); a.UID == b.UID {
			t.Error("a pod that is created anew has a new UID")
		}
	})
}

func TestNegotiation(t *testing.T) {
	f := newFixture(t, nil)
	f.create(t, "web", "")
	const tableAccept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
	for _, tt := range []struct {
		accept string
		code   int
		media  string
	}{
		{"", 200, mediaJSON},
		{"*/*", 200, mediaJSON},
		{"application/yaml", 200, mediaYAML},
		{"text/html, application/*;q=0.1", 200, mediaJSON},
		{"application/yaml;q=0.1, application/json;q=0.9", 200, mediaJSON},
		{mediaProtobuf + ",application/json", 200, mediaProtobuf},
		{mediaProtobuf + ";as=Table;v=v1;g=meta.k8s.io,application/json", 200, mediaJSON},
		{"text/html", 406, mediaJSON},
		{"application/json;q=0", 406, mediaJSON},
		{"application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io", 200, mediaJSON},
		{"application/json;as=PartialObjectMetadata;v=v2;g=meta.k8s.io", 406, mediaJSON},
		{tableAccept, 200, mediaJSON},
	} {
		for _, path := range []string{podsPath, podsPath + "/web"} {
			a := f.call(t, "GET", path, "", "Accept", tt.accept).code(tt.code)
			if got := a.Header().Get("Content-Type"); got != tt.media {
				t.Errorf("%s of %s: %s, want %s", tt.accept, path, got, tt.media)
			}
			isTable := strings.Contains(a.Body.String(), `"kind":"Table"`)
			if want := tt.accept == tableAccept; isTable != want {
				t.Errorf("%s of %s: table %v, want %v", tt.accept, path, isTable, want)
			}
		}
	}
	var p v1.Pod
	if err := yaml.Unmarshal(f.call(t, "GET", podsPath+"/web", "", "Accept", mediaYAML).Body.Bytes(), &p); err != nil || p.Name != "web" {
		t.Errorf("YAML: %v, %q", err, p.Name)
	}
	// Text that YAML takes in escaped form only comes back as it was.
	f.call(t, "POST", podsPath, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"odd","annotations":{"a":"\u007f\u0080"}},"spec":{"containers":[{"name":"a","image":"b"}]}}`).code(201)
	odd := f.call(t, "GET", podsPath+"/odd", "", "Accept", mediaYAML).code(200).Body.String()
	if p := f.call(t, "PUT", podsPath+"/odd", odd, "Content-Type", mediaYAML).code(200).pod(); p.Annotations["a"] != "\x7f\u0080" || p.ResourceVersion != f.pod(t, "odd").ResourceVersion {
		t.Errorf("annotation %q", p.Annotations["a"])
	}
	if a := f.call(t, "GET", podsPath+"/none", "", "Accept", mediaYAML).code(404); !strings.HasPrefix(a.Body.String(), "apiVersion: v1\n") {
		t.Errorf("an error in YAML: %s", a.Body)
	}
	// A watch is JSON; the refusal is what the client can read.
	if a := f.call(t, "GET", podsPath+"?watch=true", "", "Accept", mediaYAML).code(406); !strings.Contains(a.Body.String(), "reason: NotAcceptable") {
		t.Errorf("a watch in YAML: %s", a.Body)
	}
}

// TestMonstrousBodies: bodies made to exhaust a server are refused whatever they
// are sent to.
func TestMonstrousBodies(t *testing.T) {
	f := newFixture(t, nil)
	f.create(t, "web", "")
	rv := f.pod(t, "web").ResourceVersion
	nested := func(depth int) string {
		return strings.Repeat(`{"metadata":`, depth) + "{}" + strings.Repeat("}", depth)
	}
	aliases := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'i'; c++ {
		aliases += fmt.Sprintf("%c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", c-1), 9), ","))
	}
	// The merge of two long lists.
	names := strings.TrimSuffix(strings.Repeat(`"a",`, 100_000), ",")
	lists := `{"metadata":{"$setElementOrder/finalizers":[` + names + `],"finalizers":[` + names + `]},"spec":{"containers":[` +
		strings.TrimSuffix(strings.Repeat(`{"name":"a"},`, 50_000), ",") + `]}}`
	for name, body := range map[string]string{
		"lists": lists, "list of operations on a list": `[{"op":"add","path":"/metadata/x","value":[` + names + `]}` + strings.Repeat(`,{"op":"remove","path":"/metadata/x/0"}`, 9999) + "]",
		"JSON at the parser's limit": nested(9000), "JSON beyond it": nested(100_000), "YAML": strings.Repeat("[", 100_000),
		"blocks": strings.Repeat("- ", 100_000), "aliases": aliases, "large": `{"a":"` + strings.Repeat("x", maxBody) + `"}`,
	} {
		for _, r := range []struct{ method, path, media string }{
			{"POST", podsPath, mediaYAML}, {"PUT", podsPath + "/web", mediaYAML}, {"DELETE", podsPath + "/web", mediaYAML}, {"DELETE", podsPath, mediaJSON},
			{"PATCH", podsPath + "/web", "application/json-patch+json"}, {"PATCH", podsPath + "/web", "application/merge-patch+json"},
			{"PATCH", podsPath + "/web", "application/strategic-merge-patch+json"}, {"POST", api.Prefix + api.PathPull, mediaJSON},
		} {
			if a := f.call(t, r.method, r.path, body, "Content-Type", r.media); a.Code != 400 && a.Code != 413 && a.Code != 422 {
				t.Errorf("%s to %s %s (%s): code %d: %.300s", name, r.method, r.path, r.media, a.Code, a.Body)
			}
		}
	}
	if now := f.pod(t, "web"); now.ResourceVersion != rv || len(f.store.Records()) != 1 {
		t.Error("a refused request changed something")
	}
}

func TestDelete(t *testing.T) {
	f := newFixture(t, nil)
	p := f.create(t, "web", "")
	f.call(t, "DELETE", podsPath+"/none", "").status(404, metav1.StatusReasonNotFound)
	f.call(t, "DELETE", podsPath+"/web", `{"preconditions":{"uid":"other"}}`).status(409, metav1.StatusReasonConflict)
	f.call(t, "DELETE", podsPath+"/web", `{"preconditions":{"resourceVersion":"1"}}`).status(409, metav1.StatusReasonConflict)
	f.call(t, "DELETE", podsPath+"/web", `{"gracePeriod":1}`).status(400, metav1.StatusReasonBadRequest)
	f.call(t, "DELETE", podsPath+"/web?gracePeriodSeconds=soon", "").status(400, metav1.StatusReasonBadRequest)
	if got := f.call(t, "DELETE", podsPath+"/web?dryRun=All", "").code(200).pod(); got.DeletionTimestamp != nil {
		t.Error("a dry run deleted the pod")
	}
	got := f.call(t, "DELETE", podsPath+"/web?propagationPolicy=Background",
		`{"kind":"DeleteOptions","apiVersion":"v1","gracePeriodSeconds":7,"preconditions":{"uid":"`+string(p.UID)+`"}}`).code(200).pod()
	if got.DeletionTimestamp == nil || *got.DeletionGracePeriodSeconds != 7 {
		t.Errorf("deletion %v, grace %v, want 7 s", got.DeletionTimestamp, got.DeletionGracePeriodSeconds)
	}
	// What ends is still there, cannot be changed any more, and can be hurried.
	if p := f.call(t, "GET", podsPath+"/web", "").code(200).pod(); p.DeletionTimestamp == nil {
		t.Error("the pod does not show that it ends")
	}
	f.call(t, "PATCH", podsPath+"/web", `{"metadata":{"labels":{"a":"b"}}}`, "Content-Type", "application/merge-patch+json").status(409, metav1.StatusReasonConflict)
	if got := f.call(t, "DELETE", podsPath+"/web?gracePeriodSeconds=-1", "").code(200).pod(); *got.DeletionGracePeriodSeconds != 1 {
		t.Errorf("a negative grace became %d s, want 1", *got.DeletionGracePeriodSeconds)
	}
	f.finish(t, "web")
	f.call(t, "GET", podsPath+"/web", "").status(404, metav1.StatusReasonNotFound)
}

// TestForeign: pods of other sources are read only here.
func TestForeign(t *testing.T) {
	f := newFixture(t, nil)
	f.fromFile(t, "static")
	f.create(t, "mine", "")
	f.create(t, "labelled", "  labels: {a: b}\n")
	for _, method := range []string{"PUT", "DELETE"} {
		s := f.call(t, method, podsPath+"/static", map[string]string{"PUT": podYAML("static", "")}[method], "Content-Type", mediaYAML).status(403, metav1.StatusReasonForbidden)
		if !strings.Contains(s.Message, "/etc/manifests/static.yaml") {
			t.Errorf("%s: message %q does not name the file", method, s.Message)
		}
	}
	f.call(t, "PATCH", podsPath+"/static", `{}`, "Content-Type", "application/merge-patch+json").status(403, metav1.StatusReasonForbidden)

	var list v1.PodList
	f.call(t, "DELETE", podsPath+"?labelSelector=a%3Db&gracePeriodSeconds=0", "").code(200).into(&list)
	if len(list.Items) != 1 || list.Items[0].Name != "labelled" {
		t.Errorf("deleted %v, want the labelled one", list.Items)
	}
	f.call(t, "DELETE", podsPath, `{"gracePeriodSeconds":0}`).code(200)
	recs, _ := f.store.List()
	for _, rec := range recs {
		if ends := rec.Pod.DeletionTimestamp != nil; ends != (rec.Source == store.SourcePush) {
			t.Errorf("pod %s of source %s ends: %v", rec.Pod.Name, rec.Source, ends)
		}
	}
}

// TestPaths: what is not served is told as a Status, whatever the verb.
func TestPaths(t *testing.T) {
	f := newFixture(t, nil)
	f.create(t, "web", "")
	for _, tt := range []struct {
		method, path string
		code         int
		reason       metav1.StatusReason
	}{
		{"GET", "/", 404, metav1.StatusReasonNotFound},
		{"GET", "/api/v2", 404, metav1.StatusReasonNotFound},
		{"GET", "/api/v1/replicationcontrollers", 404, metav1.StatusReasonNotFound},
		{"DELETE", "/api/v1/nodes/node-1", 405, metav1.StatusReasonMethodNotAllowed},
		{"GET", "/api/v1/namespaces/default/nodes", 404, metav1.StatusReasonNotFound},
		{"POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", 404, metav1.StatusReasonNotFound},
		{"GET", "/api/v1/namespaces/default", 404, metav1.StatusReasonNotFound},
		{"GET", "/api/v1/namespaces//pods", 404, metav1.StatusReasonNotFound},
		{"GET", "/api/v1/namespaces/default/endpointslices", 404, metav1.StatusReasonNotFound},
		{"GET", "/apis/discovery.k8s.io/v1/namespaces/default/services", 404, metav1.StatusReasonNotFound},
		{"GET", "/apis/discovery.k8s.io/v2", 404, metav1.StatusReasonNotFound},
		{"GET", "/api/v1/namespaces/default/services/web", 404, metav1.StatusReasonNotFound},
		{"GET", "/api/v1/namespaces/default/services/web/scale", 404, metav1.StatusReasonNotFound},
		{"PUT", "/api/v1/namespaces/default/services/web/status", 405, metav1.StatusReasonMethodNotAllowed},
		{"GET", "/api/v1/namespaces/default/persistentvolumes", 404, metav1.StatusReasonNotFound},
		{"GET", "/api/v1/persistentvolumes/v/scale", 404, metav1.StatusReasonNotFound},
		{"PUT", "/api/v1/persistentvolumes/v/status", 405, metav1.StatusReasonMethodNotAllowed},
		{"POST", "/api/v1/services", 405, metav1.StatusReasonMethodNotAllowed},
		{"GET", podsPath + "/web/log/x", 404, metav1.StatusReasonNotFound},
		{"GET", podsPath + "/..%2f..", 404, metav1.StatusReasonNotFound},
		{"GET", "/api/v1/pods/web", 404, metav1.StatusReasonNotFound},
		{"POST", "/api/v1/pods", 405, metav1.StatusReasonMethodNotAllowed},
		{"DELETE", "/api/v1/pods", 405, metav1.StatusReasonMethodNotAllowed},
		{"PUT", podsPath, 405, metav1.StatusReasonMethodNotAllowed},
		{"POST", podsPath + "/web", 405, metav1.StatusReasonMethodNotAllowed},
		{"POST", podsPath + "/web/log", 405, metav1.StatusReasonMethodNotAllowed},
		{"DELETE", podsPath + "/web/exec", 405, metav1.StatusReasonMethodNotAllowed},
		{"POST", "/api/v1/namespaces/default/events", 405, metav1.StatusReasonMethodNotAllowed},
		{"POST", "/version", 405, metav1.StatusReasonMethodNotAllowed},
		{"OPTIONS", podsPath, 405, metav1.StatusReasonMethodNotAllowed},
		{"GET", podsPath + "?watch=perhaps", 400, metav1.StatusReasonBadRequest},
		{"GET", podsPath + "?limit=1&continue=x", 400, metav1.StatusReasonBadRequest},
		{"DELETE", podsPath + "?continue=x", 400, metav1.StatusReasonBadRequest},
	} {
		t.Run(tt.method+" "+tt.path, func(t *testing.T) { f.call(t, tt.method, tt.path, "").status(tt.code, tt.reason) })
	}
	f.call(t, http.MethodHead, podsPath+"/web", "").code(200)
	f.call(t, "GET", podsPath+"/", "").code(200)
}
