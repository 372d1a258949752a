package manifest

import (
	"encoding/json"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	testcorpus "github.com/nodeagent/nodeagent/test/corpus"
)

// TestCorpusReachesEveryField holds the corpus that Kubernetes judges against
// the support table: a supported field must be in its full manifest, and a
// refused one in its list of unsupported ones, wherever the schema leads to it.
func TestCorpusReachesEveryField(t *testing.T) {
	written := map[string]bool{}
	full, err := json.Marshal(testcorpus.Full())
	if err != nil {
		t.Fatal(err)
	}
	var doc any
	if err := json.Unmarshal(full, &doc); err != nil {
		t.Fatal(err)
	}
	collectPaths(doc, "", written)
	listed := map[string]bool{}
	for _, u := range testcorpus.UnsupportedFields() {
		for _, f := range u.Fields {
			listed[general(f)] = true
		}
	}
	seen := 0
	for path, s := range tablePaths(reflect.TypeFor[v1.Pod](), "") {
		seen++
		if strings.Contains(path, ".volumeClaimTemplate.metadata.") {
			continue // the same type, of which Kubernetes takes labels and annotations here
		}
		if s == supported && !written[path] && !written[sameType.Replace(path)] {
			t.Errorf("%s is supported and not in corpus.Full", path)
		}
		if s == refused && !listed[path] && !listed[sameType.Replace(path)] {
			t.Errorf("%s is refused and not in corpus.UnsupportedFields", path)
		}
	}
	if seen < 150 {
		t.Errorf("the table has only %d paths", seen)
	}
}

// TestUnsupportedFieldsSayWhatToDo reads every error of the list: it names the
// field and tells the reader what to do.
func TestUnsupportedFieldsSayWhatToDo(t *testing.T) {
	advice := regexp.MustCompile(`remove|use `)
	for _, u := range testcorpus.UnsupportedFields() {
		data, err := u.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		objects, errs := Decode(data, Options{Origin: "u.json", GenerateName: func(p string) string { return p }})
		var got []string
		for _, e := range errs {
			got = append(got, e.Field)
			if !e.Unsupported || !strings.Contains(e.Error(), "u.json:1: Pod default/p: "+e.Field+": ") {
				t.Errorf("%v: the error is %s", u.Fields, e)
			}
			if !advice.MatchString(e.Msg) && e.Field != "spec.containers[0].ports[0].hostIP" {
				t.Errorf("%v: the error gives no advice: %s", u.Fields, e)
			}
		}
		slices.Sort(got)
		want := slices.Sorted(slices.Values(u.Fields))
		if len(objects) != 0 || !slices.Equal(got, want) {
			t.Errorf("%s\ngives errors at %q, want %q", data, got, want)
		}
	}
}

// sameType leads from a field to one of the same type that Full spells out.
var sameType = strings.NewReplacer("initContainers", "containers", "livenessProbe", "readinessProbe", "startupProbe", "readinessProbe",
	"lifecycle.preStop.httpGet", "readinessProbe.httpGet", "lifecycle.postStart.httpGet", "readinessProbe.httpGet",
	"lifecycle.preStop.tcpSocket", "readinessProbe.tcpSocket", "lifecycle.postStart.tcpSocket", "readinessProbe.tcpSocket",
	"lifecycle.preStop.exec", "readinessProbe.exec", "lifecycle.postStart.sleep", "lifecycle.preStop.sleep")

var indexes = regexp.MustCompile(`\[\d+\]`)

func general(path string) string { return indexes.ReplaceAllString(path, "[]") }

// collectPaths lists the paths of a document, without indexes.
func collectPaths(v any, path string, into map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			p := strings.TrimPrefix(path+"."+k, ".")
			into[p] = true
			collectPaths(e, p, into)
		}
	case []any:
		for _, e := range v {
			collectPaths(e, path+"[]", into)
		}
	}
}

// tablePaths lists the paths that the support table describes. Containers and
// init containers are one type; refused fields are looked for in one of them.
func tablePaths(t reflect.Type, path string) map[string]support {
	out := map[string]support{}
	for name, f := range schema()[t] {
		p := strings.TrimPrefix(path+"."+name, ".")
		out[p] = f.support
		if f.support != supported {
			continue
		}
		typ := f.typ
		for typ.Kind() == reflect.Slice || typ.Kind() == reflect.Pointer {
			if typ.Kind() == reflect.Slice {
				p += "[]"
			}
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct {
			continue
		}
		for k, s := range tablePaths(typ, p) {
			if s == refused && strings.HasPrefix(k, "spec.initContainers") {
				continue
			}
			out[k] = s
		}
	}
	return out
}
