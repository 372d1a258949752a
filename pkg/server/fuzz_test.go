package server

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// methods are those that the fuzzer chooses from; letters it makes up find nothing.
var methods = []string{"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "BREW"}

// FuzzAPI looks for requests that panic, that change a pod which they are not
// about, or that change anything though they are refused.
func FuzzAPI(f *testing.F) {
	seedAPI(f)
	f.Fuzz(func(t *testing.T, method uint8, path, contentType, accept string, body []byte) {
		r, err := http.NewRequest(methods[int(method)%len(methods)], "http://agent"+path, bytes.NewReader(body))
		if err != nil || r.URL.Host != "agent" {
			return // no request that reaches a handler
		}
		r.Header.Set("Content-Type", contentType)
		r.Header.Set("Accept", accept)
		var log bytes.Buffer
		x := newFixture(t, func(o *Options) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
		x.create(t, "web", "  labels: {app: web}\n")
		x.fromFile(t, "static")
		x.runs(t, "web", running(), 0, v1.ContainerState{})
		x.logged(t, "web", "app", 0, "stdout:hello")
		before, revision := x.store.List()

		// What streams ends at once: its client is gone.
		ctx, cancel := context.WithCancel(asRoot(r).Context())
		cancel()
		a := x.serve(t, kindLocal, r.WithContext(ctx))
		if strings.Contains(log.String(), "panic") {
			t.Fatalf("%s", &log)
		}
		wellFormed(t, r, a)
		read := r.Method == http.MethodGet || r.Method == http.MethodHead
		if now := x.store.Revision(); now != revision && (read || a.Code >= 400) {
			t.Errorf("a request that was answered %d changed something", a.Code)
		}
		undisturbed(t, r, x, before)
	})
}

// wellFormed checks that an answer can be read by who asked.
func wellFormed(t *testing.T, r *http.Request, a answer) {
	t.Helper()
	var err error
	text := a.Body.Bytes()
	switch a.Header().Get("Content-Type") {
	case mediaYAML:
		text, err = yaml.YAMLToJSON(text)
	case mediaJSON:
		dec := json.NewDecoder(a.Body) // a watch answers many
		for err == nil && dec.More() {
			err = dec.Decode(new(any))
		}
	default:
		if a.Code >= 400 && strings.HasPrefix(r.URL.Path, "/api") {
			t.Errorf("code %d without a Status: %s", a.Code, text)
		}
		return // logs, metrics, health
	}
	if err != nil {
		t.Errorf("an answer to %q: %v: %s", r.Header.Get("Accept"), err, text)
	}
	if a.Code < 400 {
		return
	}
	var st metav1.Status
	if err := json.Unmarshal(text, &st); err != nil || st.Kind != "Status" || int(st.Code) != a.Code || st.Reason == "" || st.Message == "" {
		t.Errorf("code %d with %s: %v", a.Code, text, err)
	}
}

// undisturbed checks that pods that the request does not name are as before,
// and that those it may have changed are what a restarted agent would read.
func undisturbed(t *testing.T, r *http.Request, x *fixture, before []store.Record) {
	t.Helper()
	whole := r.Method == http.MethodDelete && strings.Trim(r.URL.Path, "/") == strings.Trim(podsPath, "/")
	for _, was := range before {
		is, ok := x.store.Get(pod.KeyOf(was.Pod))
		named := strings.Trim(r.URL.Path, "/") == strings.Trim(podsPath+"/"+was.Pod.Name, "/")
		if was.Source == store.SourcePush && (named || whole) {
			if !ok || is.Pod.UID != was.Pod.UID || !reflect.DeepEqual(is.Pod.Status, was.Pod.Status) {
				t.Errorf("pod %s was replaced", was.Pod.Name)
			}
		} else if !ok || is.Pod.ResourceVersion != was.Pod.ResourceVersion {
			t.Errorf("pod %s of source %s was changed", was.Pod.Name, was.Source)
		}
	}
	for _, rec := range x.store.Records() {
		o, errs := manifest.Decode(rec.Canonical, manifest.Options{Origin: rec.Origin, NodeName: nodeName})
		if len(errs) > 0 || len(o) != 1 || o[0].Pod.UID != rec.Pod.UID || o[0].SpecHash != rec.SpecHash {
			t.Errorf("pod %s cannot be read back from %s: %v", rec.Pod.Name, rec.Canonical, errs)
		}
		if rec.Source == store.SourcePush && !bytes.Contains(rec.Canonical, []byte(`"uid":"`+string(rec.Pod.UID)+`"`)) {
			t.Errorf("the UID of pod %s is not kept: %s", rec.Pod.Name, rec.Canonical)
		}
	}
}

// seedAPI adds one request of each kind.
func seedAPI(f *testing.F) {
	const web = podsPath + "/web"
	read := func(paths ...string) {
		for _, p := range paths {
			for _, accept := range []string{"", acceptTable, mediaYAML} {
				f.Add(uint8(0), p, "", accept, []byte(nil))
			}
		}
	}
	read("/", "/api", "/apis", "/api/v1", "/version", "/openapi/v3", "/openapi/v3/api/v1", "/healthz?verbose", "/readyz/runtime?exclude=ping", "/metrics",
		"/api/v1/pods?labelSelector=app%20in%20(web,x)&fieldSelector=spec.nodeName!=y", "/api/v1/events", podsPath, web, web+"/status",
		podsPath+"?watch=1&resourceVersion=0&allowWatchBookmarks=true&timeoutSeconds=1", podsPath+"?watch=true&sendInitialEvents=true",
		"/api/v1/events?watch&resourceVersion=1", web+"/log?follow=true&tailLines=1&timestamps=true", web+"/log?sinceTime=2026-01-02T03:04:05Z&stream=Stdout",
		"/apis/nodeagent.dev/v1alpha1/sources", "/apis/nodeagent.dev/v1alpha1/config")
	write := func(method, path, contentType, body string) {
		f.Add(uint8(slices.Index(methods, method)), path, contentType, mediaJSON, []byte(body))
	}
	write("POST", podsPath, mediaYAML, podYAML("new", ""))
	write("POST", podsPath+"?dryRun=All&fieldValidation=Strict", mediaJSON, `{"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"a-","uid":"x"},"spec":{"containers":[{"name":"a","image":"b"}]},"status":{"phase":"Running"}}`)
	write("POST", podsPath, mediaProtobuf, "k8s\x00")
	write("POST", podsPath, mediaYAML, "a: &a [*a]\n")
	write("PUT", web, mediaYAML, podYAML("web", "  resourceVersion: '1'\n"))
	write("PUT", podsPath+"/static", mediaYAML, podYAML("static", ""))
	write("PATCH", web, string(types.JSONPatchType), `[{"op":"copy","from":"/spec/containers/0","path":"/spec/containers/-"},{"op":"test","path":"/kind","value":"Pod"}]`)
	write("PATCH", web, string(types.MergePatchType), `{"metadata":{"labels":{"app":null,"b":"c"}}}`)
	write("PATCH", web, string(types.StrategicMergePatchType), `{"spec":{"containers":[{"name":"app","image":"x:2"}],"$setElementOrder/containers":[{"name":"app"}]}}`)
	write("PATCH", web, string(types.StrategicMergePatchType), `{"metadata":{"$patch":"delete"},"spec":{"$retainKeys":["containers"],"volumes":[{"$patch":"replace"}]}}`)
	write("DELETE", web+"?gracePeriodSeconds=0", "", "")
	write("DELETE", web, mediaJSON, `{"kind":"DeleteOptions","apiVersion":"v1","gracePeriodSeconds":-1,"preconditions":{"uid":"x"},"dryRun":["All"]}`)
	write("DELETE", podsPath+"?labelSelector=app", mediaYAML, "propagationPolicy: Background\n")
	write("POST", web+"/exec?command=ls&stdout=true", "", "")
	write("POST", web+"/portforward?ports=80,443", "", "")
	write("POST", "/apis/nodeagent.dev/v1alpha1/images/pull", mediaJSON, `{"image":"broken"}`)
	write("POST", "/apis/nodeagent.dev/v1alpha1/reload", "", "")
}
