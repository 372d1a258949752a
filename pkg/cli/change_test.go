package cli

import (
	"context"
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

func podText(name string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: " + name + "}\nspec: {containers: [{name: c, image: i}]}\n"
}

func TestApply(t *testing.T) {
	f, c, out, errs := newFake(t)
	dir := t.TempDir()
	tree(t, dir, map[string]string{
		"a.yaml": podText("a"), "b.yml": podText("b") + "---\n# nothing\n---\n" + podText("c"),
		"d.json":  `{"apiVersion":"v1","kind":"PodList","items":[{"metadata":{"name":"d"},"spec":{"containers":[{"name":"c","image":"i"}]}}]}`,
		".e.yaml": podText("e"), "README": "no manifest", "sub/f.yaml": podText("f"),
	})
	for _, want := range []string{"created", "unchanged"} {
		out.Reset()
		if err := c.Apply(t.Context(), []string{dir}, false); err != nil {
			t.Fatalf("%v: %s", err, errs)
		}
		if got := "pod/a " + want + "\npod/b " + want + "\npod/c " + want + "\npod/d " + want + "\n"; out.String() != got {
			t.Errorf("got %q, want %q", out, got)
		}
	}
	c.In = strings.NewReader(strings.Replace(podText("a"), "image: i", "image: j", 1))
	out.Reset()
	if err := c.Apply(t.Context(), []string{"-"}, false); err != nil || out.String() != "pod/a configured\n" {
		t.Errorf("%v, %q", err, out)
	}
	if f.pods["default/a"].Spec.Containers[0].Image != "j" {
		t.Error("the change did not arrive")
	}
}

// TestApplyIsUnchangedWhileStatusMoves: a status that moves between the two
// requests is nothing that the user asked for.
func TestApplyIsUnchangedWhileStatusMoves(t *testing.T) {
	f, c, out, _ := newFake(t)
	f.put(&v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a"}, Spec: v1.PodSpec{Containers: []v1.Container{{Name: "c", Image: "i"}}}})
	f.extra = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut {
			p := f.pods["default/a"].DeepCopy()
			p.Status.Phase = v1.PodRunning
			f.put(p)
		}
		return false
	}
	c.In = strings.NewReader(podText("a"))
	if err := c.Apply(t.Context(), []string{"-"}, false); err != nil || out.String() != "pod/a unchanged\n" {
		t.Errorf("%v, %q", err, out)
	}
}

func TestApplyReportsAndGoesOn(t *testing.T) {
	f, c, out, errs := newFake(t)
	c.In = strings.NewReader("apiVersion: v1\nkind: Widget\nmetadata: {name: s}\n---\n" + podText("good") + "---\n" +
		strings.Replace(podText("bad"), "image: i", "image: i, bogus: 1", 1))
	if code := Report(errs, c.Apply(t.Context(), []string{"-"}, false)); code != 1 || out.String() != "pod/good created\n" {
		t.Errorf("code %d, %q", code, out)
	}
	for _, want := range []string{"error: -:2: Widget s: kind: Widget (v1) is not supported", "spec.containers[0].bogus: unknown field"} {
		if !strings.Contains(errs.String(), want) {
			t.Errorf("%q lacks %q", errs, want)
		}
	}
	// What the agent refuses is said as kubectl says it.
	errs.Reset()
	two := simplePod("default", "two", nil)
	two.Spec.Containers = append(two.Spec.Containers, v1.Container{Name: "more"})
	f.put(two)
	c.In = strings.NewReader(podText("two"))
	if code := Report(errs, c.Apply(t.Context(), []string{"-"}, false)); code != 1 ||
		errs.String() != "The Pod \"two\" is invalid: spec.containers: Forbidden: pod updates may not add or remove containers\n" {
		t.Errorf("code %d, %q", code, errs)
	}
}

func TestApplyRefuses(t *testing.T) {
	_, c, _, errs := newFake(t)
	c.Namespace = "mine"
	for _, tc := range []struct {
		text, want string
		given      bool
	}{
		{"", "no objects passed to apply", false},
		{"# nothing\n---\n", "no objects passed to apply", false},
		{"a: [", "-:1: not valid YAML", false},
		{strings.Replace(podText("a"), "name: a", "name: a, namespace: other", 1), `is for namespace "other", not "mine"`, true},
	} {
		errs.Reset()
		c.In = strings.NewReader(tc.text)
		if code := Report(errs, c.Apply(t.Context(), []string{"-"}, tc.given)); code != 1 || !strings.Contains(errs.String(), tc.want) {
			t.Errorf("%q: code %d, %q, want %q", tc.text, code, errs, tc.want)
		}
	}
	if err := c.Apply(t.Context(), []string{t.TempDir()}, false); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty folder: %v", err)
	}
}

// going lets a pod that is deleted go once somebody watches it.
func (f *fakeAgent) going() {
	f.extra = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("watch") == "true" {
			for key, p := range f.pods {
				if p.DeletionTimestamp != nil {
					f.remove(key)
				}
			}
		}
		return false
	}
}

func fromSource(name, source string) *v1.Pod {
	p := simplePod("default", name, nil)
	p.Annotations = map[string]string{pod.AnnotationConfigSource: source, pod.AnnotationOrigin: "/m/" + name + ".yaml"}
	return p
}

func TestDelete(t *testing.T) {
	f, c, out, errs := newFake(t)
	f.put(simplePod("default", "a", nil))
	f.put(simplePod("default", "b", nil))
	f.going()
	if code := Report(errs, c.Delete(t.Context(), []string{"a", "none", "pod/b"}, DeleteOptions{GracePeriod: -1, Wait: true})); code != 1 ||
		out.String() != "pod \"a\" deleted from default namespace\npod \"b\" deleted from default namespace\n" ||
		errs.String() != "Error from server (NotFound): pods \"none\" not found\n" {
		t.Errorf("code %d, %q, %q", code, out, errs)
	}
	if len(f.pods) > 0 {
		t.Errorf("left: %v", f.pods)
	}
	if err := c.Delete(t.Context(), []string{"a"}, DeleteOptions{GracePeriod: -1, IgnoreNotFound: true}); err != nil {
		t.Errorf("--ignore-not-found: %v", err)
	}
	if err := c.Delete(t.Context(), []string{"a"}, DeleteOptions{GracePeriod: 5, Force: true}); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("--force with a grace period: %v", err)
	}
}

// TestDeleteFiles takes the names from manifests, valid or not: what an older
// agent accepted must be deletable.
func TestDeleteFiles(t *testing.T) {
	f, c, out, errs := newFake(t)
	f.put(simplePod("default", "a", nil))
	f.put(simplePod("team", "b", nil))
	f.going()
	c.In = strings.NewReader("kind: Pod\nmetadata: {name: a}\nspec: {bogus: 1}\n---\nkind: List\nitems: [{kind: Pod, metadata: {name: b, namespace: team}}]\n")
	if err := c.DeleteFiles(t.Context(), []string{"-"}, DeleteOptions{GracePeriod: -1, Wait: true}); err != nil || len(f.pods) > 0 {
		t.Errorf("%v: %q %q", err, out, errs)
	}
	for _, text := range []string{"", "kind: Widget\nmetadata: {name: s}\n", "kind: Pod\n", "a: ["} {
		c.In = strings.NewReader(text)
		if err := c.DeleteFiles(t.Context(), []string{"-"}, DeleteOptions{}); err == nil {
			t.Errorf("%q is taken for pods to delete", text)
		}
	}
}

// TestDeleteAll spares what would only come back, and says so.
func TestDeleteAll(t *testing.T) {
	f, c, out, errs := newFake(t)
	f.put(fromSource("pushed", "api"))
	f.put(fromSource("folder", "file"))
	f.going()
	if err := c.DeleteAll(t.Context(), "", DeleteOptions{GracePeriod: -1, Wait: true}); err != nil {
		t.Fatal(err)
	}
	if out.String() != "pod \"pushed\" deleted from default namespace\n" || errs.String() != "pod \"folder\" stays: it comes from the file source, /m/folder.yaml\n" {
		t.Errorf("%q, %q", out, errs)
	}
}

func TestLogs(t *testing.T) {
	f, c, out, errs := newFake(t)
	p := simplePod("default", "web", nil)
	p.Spec.InitContainers = []v1.Container{{Name: "init"}}
	p.Spec.Containers = append(p.Spec.Containers, v1.Container{Name: "side"})
	f.put(p)
	var asked []string
	f.extra = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/log") {
			return false
		}
		asked = append(asked, r.URL.RawQuery)
		if ctr := r.URL.Query().Get("container"); ctr == "side" {
			f.fail(w, 400, metav1.StatusReasonBadRequest, `container "side" in pod "web" is waiting to start: ImagePullBackOff`, nil)
		} else {
			_, _ = w.Write([]byte("from " + ctr + "\nthe end"))
		}
		return true
	}
	if err := c.Logs(t.Context(), "web", LogsOptions{Follow: true, Previous: true, Timestamps: true, Tail: 3, Since: 1500e6}); err != nil {
		t.Fatal(err)
	}
	if out.String() != "from main\nthe end" || asked[0] != "container=main&follow=true&previous=true&sinceSeconds=2&tailLines=3&timestamps=true" {
		t.Errorf("%q, asked %v", out, asked)
	}
	if !strings.Contains(errs.String(), `Defaulted container "main" out of: main, side, init (init)`) {
		t.Errorf("the choice is not said: %q", errs)
	}
	out.Reset()
	errs.Reset()
	if code := Report(errs, c.Logs(t.Context(), "web", LogsOptions{AllContainers: true, Prefix: true, Tail: -1})); code != 1 {
		t.Errorf("code %d", code)
	}
	if out.String() != "[pod/web/init] from init\n[pod/web/init] the end\n[pod/web/main] from main\n[pod/web/main] the end\n" ||
		errs.String() != "Error from server (BadRequest): container \"side\" in pod \"web\" is waiting to start: ImagePullBackOff\n" {
		t.Errorf("%q, %q", out, errs)
	}
	for _, o := range []LogsOptions{{Tail: -2}, {Since: -1}, {AllContainers: true, Container: "main"}, {Container: "none"}} {
		if err := c.Logs(t.Context(), "web", o); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
}

// TestLogsCutShort: a log that the agent did not end itself is no whole log.
func TestLogsCutShort(t *testing.T) {
	f, c, out, errs := newFake(t)
	f.put(simplePod("default", "web", nil))
	f.extra = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/log") {
			return false
		}
		_, _ = w.Write([]byte("a line\n"))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	if code := Report(errs, c.Logs(t.Context(), "web", LogsOptions{Follow: true, Tail: -1})); code != 1 || out.String() != "a line\n" || !strings.Contains(errs.String(), "broke off the log of container main of pod web") {
		t.Errorf("code %d, %q, %q", code, out, errs)
	}
}

func TestDescribe(t *testing.T) {
	f, c, out, errs := newFake(t)
	fill(f)
	if code := Report(errs, c.DescribePods(t.Context(), []string{"web", "none"})); code != 1 || errs.String() != "Error from server (NotFound): pods \"none\" not found\n" {
		t.Errorf("code %d, %q", code, errs)
	}
	golden(t, "describe", out.String())
	out.Reset()
	if err := c.DescribePods(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	names := slices.DeleteFunc(strings.Split(out.String(), "\n"), func(l string) bool { return !strings.HasPrefix(l, "Name:") })
	if len(names) != 2 {
		t.Errorf("all pods of the namespace: %q", names)
	}
}
