package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/server/api"
)

func simplePod(ns, name string, labels map[string]string) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: labels, CreationTimestamp: ago(3 * time.Hour)},
		Spec:       v1.PodSpec{NodeName: "node-1", Containers: []v1.Container{{Name: "main", Image: "nginx:stable-alpine"}}},
		Status: v1.PodStatus{Phase: v1.PodRunning, PodIP: "10.88.0.2", PodIPs: []v1.PodIP{{IP: "10.88.0.2"}},
			ContainerStatuses: []v1.ContainerStatus{{Name: "main", Ready: true, State: v1.ContainerState{Running: &v1.ContainerStateRunning{}}}}},
	}
}

func fill(f *fakeAgent) {
	f.put(simplePod("default", "web", map[string]string{"app": "web"}))
	crash := simplePod("default", "crash", nil)
	crash.Status.ContainerStatuses[0] = v1.ContainerStatus{Name: "main", RestartCount: 3,
		State:                v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}},
		LastTerminationState: v1.ContainerState{Terminated: &v1.ContainerStateTerminated{FinishedAt: ago(5 * time.Minute)}}}
	f.put(crash)
	f.put(simplePod("kube-system", "dns", nil))
	f.events = []v1.Event{
		{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web.2"}, Type: "Warning", Reason: "BackOff", Count: 7,
			Message: "Back-off restarting\nfailed \x1b[31mcontainer", InvolvedObject: v1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "crash", FieldPath: "spec.containers{main}"},
			FirstTimestamp: ago(20 * time.Minute), LastTimestamp: ago(time.Minute), Source: v1.EventSource{Component: "nodeagent", Host: "node-1"}},
		{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web.1"}, Type: "Normal", Reason: "Started",
			Message: "Started container main", InvolvedObject: v1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "web"},
			FirstTimestamp: ago(3 * time.Hour), LastTimestamp: ago(3 * time.Hour), Source: v1.EventSource{Component: "nodeagent"}},
	}
	f.own[api.PathContainers] = api.ContainerList{Items: []api.Container{
		{ID: "0123456789abcdef", Name: "main", Namespace: "default", Pod: "web", SandboxID: "fedcba9876543210", Image: "nginx:stable-alpine",
			State: "running", CreatedAt: now.Add(-time.Hour), LogPath: "/var/log/pods/x/main/0.log"},
		{ID: "aaaaaaaaaaaaaaaa", Name: "prepare", Namespace: "default", Pod: "web", Init: true, SandboxID: "fedcba9876543210", Image: "busybox",
			State: "exited", ExitCode: 1, Reason: "Error", Attempt: 2, CreatedAt: now.Add(-2 * time.Hour), FinishedAt: now},
		{ID: "bbbbbbbbbbbbbbbb", Name: "dns", Namespace: "kube-system", Pod: "dns", State: "running"},
	}}
	f.own[api.PathImages] = api.ImageList{
		Items: []api.Image{
			{ID: "sha256:1111111111111111", RepoTags: []string{"docker.io/library/nginx:stable-alpine"}, RepoDigests: []string{"docker.io/library/nginx@sha256:22"}, Size: 12345678},
			{ID: "sha256:3333333333333333", Size: 999, Pinned: true}},
		Pulls: []api.PullProgress{{Image: "docker.io/library/big:1", Done: 250, Total: 1000}},
	}
	f.own[api.PathVolumes] = api.VolumeList{Items: []api.Volume{
		{Namespace: "default", Pod: "web", Name: "html", Kind: "emptyDir", HostPath: "/var/lib/nodeagent/pods/u/volumes/html"},
		{Namespace: "default", Pod: "web", Name: "conf", Kind: "hostPath", HostPath: "/etc", ReadOnly: true}}}
	f.own[api.PathSources] = api.SourceList{Items: []api.Source{
		{Name: "file", Target: "/etc/nodeagent/manifests", Tried: true, Synced: true, LastSync: now.Add(-time.Second), Objects: 2, Problems: []string{"bad.yaml:3: Pod default/x: spec: wrong", "worse.yaml: two"}},
		{Name: "http", Target: "http://h/p", Tried: true, Error: "connection refused"},
		{Name: "api", Target: "/run/nodeagent/nodeagent.sock", Tried: true, Synced: true}}}
}

func TestGetTables(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		opts GetOptions
	}{
		"get-pods":            {[]string{"pods"}, GetOptions{}},
		"get-pods-wide":       {[]string{"po"}, GetOptions{Output: "wide"}},
		"get-pods-all":        {[]string{"pods"}, GetOptions{AllNamespaces: true, Output: "wide"}},
		"get-pods-selector":   {[]string{"pods"}, GetOptions{Selector: "app in (web)", NoHeaders: true}},
		"get-pods-field":      {[]string{"pods"}, GetOptions{FieldSelector: "metadata.name=crash"}},
		"get-pods-names":      {[]string{"pods"}, GetOptions{Output: "name", AllNamespaces: true}},
		"get-pod-json":        {[]string{"pod", "web"}, GetOptions{Output: "json"}},
		"get-pod-yaml":        {[]string{"pod/web", "pod/crash"}, GetOptions{Output: "yaml"}},
		"get-events":          {[]string{"events"}, GetOptions{}},
		"get-events-wide":     {[]string{"events"}, GetOptions{Output: "wide"}},
		"get-containers":      {[]string{"containers"}, GetOptions{}},
		"get-containers-wide": {[]string{"containers"}, GetOptions{Output: "wide", AllNamespaces: true}},
		"get-container":       {[]string{"container", "0123456789ab"}, GetOptions{Output: "name"}},
		"get-image":           {[]string{"image", "nginx:stable-alpine"}, GetOptions{Output: "name"}},
		"get-images":          {[]string{"images"}, GetOptions{}},
		"get-images-wide":     {[]string{"images"}, GetOptions{Output: "wide"}},
		"get-volumes-wide":    {[]string{"volumes"}, GetOptions{Output: "wide"}},
		"get-sources":         {[]string{"sources"}, GetOptions{}},
		"get-sources-wide":    {[]string{"sources"}, GetOptions{Output: "wide"}},
		"get-several":         {[]string{"pods,sources,events"}, GetOptions{AllNamespaces: true}},
		"get-several-names":   {[]string{"source/api", "pod/web", "source/file"}, GetOptions{}},
		"get-several-json":    {[]string{"source/api", "image/nginx:stable-alpine"}, GetOptions{Output: "json"}},
		"get-sources-json":    {[]string{"sources", "api"}, GetOptions{Output: "json"}},
	} {
		t.Run(name, func(t *testing.T) {
			f, c, out, errs := newFake(t)
			fill(f)
			if err := c.Get(t.Context(), tc.args, tc.opts); err != nil {
				t.Fatal(err)
			}
			if errs.Len() > 0 {
				t.Errorf("stderr: %s", errs)
			}
			golden(t, name, out.String())
		})
	}
}

// TestGetShowsPulls: what the agent says in a message is a word of the STATUS
// column.
func TestGetShowsPulls(t *testing.T) {
	for message, want := range map[string]string{
		`Pulling image "i"`:                                 "Pulling",
		`Pulling image "i": 42% (10 of 24 bytes)`:           "Pulling:42%",
		`Pulling image "i": 1000 bytes`:                     "Pulling",
		`Pulling image "i": waiting for other pulls to end`: "Pulling",
		"":                 "ContainerCreating",
		`Pulled image "i"`: "ContainerCreating",
		`volume "v" is busy: Pulling image "i": 42% (1 of 2)`: "ContainerCreating",
	} {
		for _, init := range []bool{false, true} {
			p := simplePod("default", "web", nil)
			p.Status.ContainerStatuses[0].State = v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: "ContainerCreating", Message: message}}
			want := want
			if init {
				p.Spec.InitContainers = p.Spec.Containers
				p.Status.InitContainerStatuses, want = p.Status.ContainerStatuses, "Init:"+want
			}
			f, c, out, _ := newFake(t)
			f.put(p)
			if err := c.Get(t.Context(), []string{"pods"}, GetOptions{NoHeaders: true}); err != nil || strings.Fields(out.String())[2] != want {
				t.Errorf("%q, init %v: %v, %s, want %s", message, init, err, out, want)
			}
		}
	}
}

func TestGetNothing(t *testing.T) {
	_, c, out, errs := newFake(t)
	if err := c.Get(t.Context(), []string{"pods"}, GetOptions{}); err != nil {
		t.Fatal(err)
	}
	if out.Len() > 0 || errs.String() != "No resources found in default namespace.\n" {
		t.Errorf("out %q, err %q", out, errs)
	}
	errs.Reset()
	if err := c.Get(t.Context(), []string{"pods"}, GetOptions{AllNamespaces: true}); err != nil {
		t.Fatal(err)
	}
	if errs.String() != "No resources found\n" {
		t.Errorf("err %q", errs)
	}
	if err := c.Get(t.Context(), []string{"pods"}, GetOptions{Output: "json"}); err != nil {
		t.Fatal(err)
	}
	var l struct {
		Kind  string
		Items []any
	}
	if err := json.Unmarshal(out.Bytes(), &l); err != nil || l.Kind != "List" || l.Items == nil {
		t.Errorf("%v %s", err, out)
	}
}

func TestGetShowsWhatIsThereAndReportsTheRest(t *testing.T) {
	f, c, out, errs := newFake(t)
	fill(f)
	err := c.Get(t.Context(), []string{"pods", "web", "nope"}, GetOptions{NoHeaders: true})
	if code := Report(errs, err); code != 1 {
		t.Errorf("exit code %d", code)
	}
	if !strings.HasPrefix(out.String(), "web ") || errs.String() != "Error from server (NotFound): pods \"nope\" not found\n" {
		t.Errorf("out %q, err %q", out, errs)
	}
}

func TestSelections(t *testing.T) {
	for args, want := range map[string]string{
		"pods": "pod[]", "pods a b": "pod[a b]", "all": "pod[] service[]", "all a": "pod[a] service[a]", "svc,po,all": "service[] pod[]",
		"pods,images a": "pod[a] image[a]", "po/a svc/b pod/c": "pod[a c] service[b]",
	} {
		got, err := selections(strings.Fields(args))
		var text []string
		for _, s := range got {
			text = append(text, s.res.kind+fmt.Sprint(s.names))
		}
		if err != nil || strings.Join(text, " ") != want {
			t.Errorf("%q: %v, %v, want %s", args, text, err, want)
		}
	}
}

func TestGetRefuses(t *testing.T) {
	for _, tc := range []struct {
		args []string
		opts GetOptions
		want string
	}{
		{[]string{"deployments"}, GetOptions{}, "there is no resource type"},
		{[]string{"pods"}, GetOptions{Output: "jsonpath"}, "-o \"jsonpath\" is not known"},
		{[]string{"pods", "a"}, GetOptions{AllNamespaces: true}, "across all namespaces"},
		{[]string{"pods", "a"}, GetOptions{Selector: "a=b"}, "exclude each other"},
		{[]string{"pods", "a", "b"}, GetOptions{Watch: true}, "-w takes one name"},
		{[]string{"images"}, GetOptions{Selector: "a=b"}, "no labels or fields"},
		{[]string{"pod/a", "b"}, GetOptions{}, "TYPE/NAME"},
		{[]string{"pods,deployments"}, GetOptions{}, "there is no resource type \"deployments\""},
		{[]string{"pods,services"}, GetOptions{Watch: true}, "-w takes one type"},
		{[]string{"pods,images"}, GetOptions{Selector: "a=b"}, "images have no labels or fields"},
	} {
		_, c, _, _ := newFake(t)
		if err := c.Get(t.Context(), tc.args, tc.opts); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v: got %v, want %s", tc.args, err, tc.want)
		}
	}
}

func TestNoAgent(t *testing.T) {
	c := New(t.TempDir(), Streams{})
	err := c.Get(t.Context(), []string{"pods"}, GetOptions{})
	if !errors.Is(err, errdefs.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{c.client.socket, "there is no such socket", "nodeagent run", "--run-dir", runEnv} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q lacks %q", err, want)
		}
	}
}

const runEnv = "NODEAGENT_RUN_DIR"

// signalBuffer wakes a reader with every write.
type signalBuffer struct {
	mu   sync.Mutex
	cond *sync.Cond
	b    bytes.Buffer
}

func newSignalBuffer() *signalBuffer {
	s := &signalBuffer{}
	s.cond = sync.NewCond(&s.mu)
	return s
}

func (s *signalBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.cond.Broadcast()
	return s.b.Write(p)
}

// lines waits for n lines and returns them all.
func (s *signalBuffer) lines(n int) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for strings.Count(s.b.String(), "\n") < n {
		s.cond.Wait()
	}
	return strings.Split(strings.TrimSuffix(s.b.String(), "\n"), "\n")
}

func TestWatchPrintsChangesAndSurvivesCompaction(t *testing.T) {
	f, c, _, _ := newFake(t)
	out := newSignalBuffer()
	c.Out = out
	f.put(simplePod("default", "web", nil))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Get(ctx, []string{"pods"}, GetOptions{Watch: true}) }()
	out.lines(2)
	f.put(simplePod("other", "elsewhere", nil))
	p := simplePod("default", "web", nil)
	p.Status.ContainerStatuses[0].State = v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}
	f.put(p)
	out.lines(3)
	// The history is gone: the command must list again and go on.
	f.mu.Lock()
	f.revision += 100
	f.compacted = f.revision
	f.cond.Broadcast()
	f.mu.Unlock()
	out.lines(4)
	f.remove("default/web")
	got := out.lines(5)
	cancel()
	if err := <-done; err != nil {
		t.Fatalf("the user's own interrupt is an error: %v", err)
	}
	golden(t, "watch", strings.Join(got, "\n")+"\n")
}

func TestWatchOfOneNameAsksForOne(t *testing.T) {
	f, c, _, _ := newFake(t)
	out := newSignalBuffer()
	c.Out = out
	fill(f)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Get(ctx, []string{"pod", "crash"}, GetOptions{Watch: true, Output: "name"}) }()
	if got := out.lines(1); len(got) != 1 || got[0] != "pod/crash" {
		t.Errorf("got %q", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestWatchOfAKindWithoutOnePrintsDifferences(t *testing.T) {
	f, c, _, _ := newFake(t)
	out := newSignalBuffer()
	c.Out = out
	fill(f)
	ticks := make(chan time.Time)
	c.tick = func(time.Duration) (<-chan time.Time, func()) { return ticks, func() {} }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Get(ctx, []string{"volumes"}, GetOptions{Watch: true}) }()
	out.lines(3)
	ticks <- now // nothing changed
	// This send is taken after the list that followed the first one.
	ticks <- now
	f.mu.Lock()
	f.own[api.PathVolumes] = api.VolumeList{Items: []api.Volume{{Namespace: "default", Pod: "new", Name: "v", Kind: "emptyDir"}}}
	f.mu.Unlock()
	ticks <- now
	got := out.lines(4)
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if len(got) != 4 || !strings.HasPrefix(got[3], "new ") {
		t.Errorf("got %q", got)
	}
}

func TestTerminalEscapesStayInTheTable(t *testing.T) {
	f, c, out, errs := newFake(t)
	evil := simplePod("default", "web", nil)
	evil.Status.Reason = "\x1b]0;owned\aEvicted"
	evil.Status.ContainerStatuses = nil
	f.put(evil)
	f.own[api.PathSources] = api.SourceList{Items: []api.Source{{Name: "file", Target: "/x\x1b[2J", Error: "\u009b31m"}}}
	for _, kind := range []string{"pods", "sources"} {
		if err := c.Get(t.Context(), []string{kind}, GetOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.DescribePods(t.Context(), []string{"web"}); err != nil {
		t.Fatal(err)
	}
	Report(errs, errors.New("\x1b[2Jbad"))
	if s := out.String() + errs.String(); strings.ContainsAny(s, "\x1b\a\u009b") {
		t.Errorf("an escape got through: %q", s)
	}
}

func TestCompletion(t *testing.T) {
	f, c, _, _ := newFake(t)
	fill(f)
	if got := strings.Join(c.CompleteNames(t.Context(), "pods"), " "); got != "crash web" {
		t.Errorf("pods: %q", got)
	}
	if got := strings.Join(c.CompleteContainers(t.Context(), "web"), " "); got != "main" {
		t.Errorf("containers: %q", got)
	}
	if got := strings.Join(c.CompleteNamespaces(t.Context()), " "); got != "default kube-system" {
		t.Errorf("namespaces: %q", got)
	}
	gone := New(filepath.Join(t.TempDir(), "x"), Streams{})
	if got := gone.CompleteNames(t.Context(), "pods"); got != nil {
		t.Errorf("no agent: %q", got)
	}
}
