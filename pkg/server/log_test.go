package server

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// logged writes the log of one attempt of a container, a line per text.
func (f *fixture) logged(t testing.TB, name, container string, attempt int, text ...string) {
	t.Helper()
	dir := filepath.Join(f.logs, fmt.Sprintf("default_%s_%s", name, f.pod(t, name).UID), container)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("%d.log", attempt)), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, l := range text {
		stream, l, _ := strings.Cut(l, ":")
		fmt.Fprintf(file, "%s %s F %s\n", epoch.Format(time.RFC3339Nano), stream, l)
	}
}

// runs gives the pod one container app in that state and with so many restarts.
func (f *fixture) runs(t testing.TB, name string, st v1.ContainerState, restarts int32, last v1.ContainerState) {
	t.Helper()
	c := containerIs("app", st, restarts)
	c.LastTerminationState = last
	f.status(t, name, v1.PodStatus{Phase: v1.PodRunning, ContainerStatuses: []v1.ContainerStatus{c}})
}

const logPath = podsPath + "/web/log"

func TestLog(t *testing.T) {
	f := newFixture(t, nil)
	f.create(t, "web", "")
	f.logged(t, "web", "app", 0, "stdout:old")
	f.logged(t, "web", "app", 1, "stdout:one", "stderr:two", "stdout:three")
	f.runs(t, "web", running(), 1, ended(1, "Error"))
	stamp := epoch.Format(time.RFC3339Nano)
	for query, want := range map[string]string{
		"":                                  "one\ntwo\nthree\n",
		"?container=app":                    "one\ntwo\nthree\n",
		"?previous=true":                    "old\n",
		"?tailLines=1":                      "three\n",
		"?tailLines=0":                      "",
		"?limitBytes=5":                     "one\nt",
		"?timestamps=true&tailLines=1":      stamp + " three\n",
		"?sinceSeconds=9223372036854775807": "one\ntwo\nthree\n",
		"?sinceTime=2026-01-02T03:04:06Z":   "",
		"?stream=Stdout":                    "one\nthree\n",
		"?stream=Stderr":                    "two\n",
		"?stream=All&tailLines=2":           "two\nthree\n",
	} {
		a := f.call(t, "GET", logPath+query, "").code(200)
		if a.Body.String() != want || !strings.HasPrefix(a.Header().Get("Content-Type"), "text/plain") {
			t.Errorf("%s: %q of %s, want %q", query, a.Body, a.Header().Get("Content-Type"), want)
		}
	}
}

func TestLogRefused(t *testing.T) {
	f := newFixture(t, nil)
	f.create(t, "web", "")
	f.runs(t, "web", running(), 0, v1.ContainerState{})
	const bad, invalid = metav1.StatusReasonBadRequest, metav1.StatusReasonInvalid
	for query, tt := range map[string]struct {
		code    int
		reason  metav1.StatusReason
		message string
	}{
		"?container=none":                {400, bad, "container none is not valid for pod web"},
		"?tailLines=-1":                  {422, invalid, "tailLines"},
		"?tailLines=x":                   {400, bad, "not a number"},
		"?limitBytes=0":                  {422, invalid, "limitBytes"},
		"?sinceSeconds=0":                {422, invalid, "sinceSeconds"},
		"?sinceSeconds=1&sinceTime=2026": {422, invalid, "at most one of"},
		"?sinceTime=yesterday":           {400, bad, "is not a time such as"},
		"?follow=perhaps":                {400, bad, "not a boolean"},
		"?stream=stdin":                  {422, invalid, "stream"},
		"?stream=Stdout&tailLines=1":     {422, invalid, "mutually exclusive"},
		"?previous=true":                 {400, bad, `previous terminated container "app" in pod "web" not found`},
		"":                               {404, metav1.StatusReasonNotFound, `container "app" in pod "web" has no log`},
	} {
		if st := f.call(t, "GET", logPath+query, "").status(tt.code, tt.reason); !strings.Contains(st.Message, tt.message) {
			t.Errorf("%s: message %q, want %q", query, st.Message, tt.message)
		}
	}
	f.call(t, "GET", podsPath+"/none/log", "").status(404, metav1.StatusReasonNotFound)

	for _, tt := range []struct {
		state   v1.ContainerState
		message string
	}{
		{v1.ContainerState{}, "is waiting to start - no logs yet"},
		{waiting("ErrImagePull"), "image can't be pulled"},
		{waiting("ImagePullBackOff"), "trying and failing to pull image"},
		{waiting("ContainerCreating"), "is waiting to start: ContainerCreating"},
	} {
		f.runs(t, "web", tt.state, 0, v1.ContainerState{})
		if st := f.call(t, "GET", logPath, "").status(400, bad); !strings.Contains(st.Message, tt.message) {
			t.Errorf("%+v: message %q, want %q", tt.state, st.Message, tt.message)
		}
	}
	f.status(t, "web", phase(v1.PodRunning))
	if st := f.call(t, "GET", logPath, "").status(400, bad); !strings.Contains(st.Message, "no status of it yet") {
		t.Errorf("message %q", st.Message)
	}
}

// TestAttempts: which log is the current one, and which the previous.
func TestAttempts(t *testing.T) {
	crash := waiting("CrashLoopBackOff")
	for _, tt := range []struct {
		attempts []int // newest first
		state    v1.ContainerState
		restarts int32
		previous bool
		want     int // -1: none
	}{
		{[]int{2, 1, 0}, running(), 2, false, 2},
		{[]int{2, 1, 0}, running(), 2, true, 1},
		{[]int{2, 1, 0}, running(), 1, false, 1}, // the next one began after the status was made
		{[]int{2, 1, 0}, crash, 2, false, 2},
		{[]int{2, 1, 0}, crash, 2, true, 2}, // the newest that is dead
		{[]int{2, 1, 0}, ended(1, "Error"), 2, true, 1},
		{[]int{1}, running(), 2, false, 1}, // the file is not there yet
		{nil, running(), 2, false, 2},
		{[]int{2}, running(), 2, true, -1},
	} {
		st := containerIs("app", tt.state, tt.restarts)
		got, ok := pickAttempt(tt.attempts, &st, tt.previous)
		if !ok {
			got = -1
		}
		if got != tt.want {
			t.Errorf("attempts %v, restarts %d, previous %v: %d, want %d", tt.attempts, tt.restarts, tt.previous, got, tt.want)
		}
	}
}

// TestFollow: a followed log ends with its container, whatever way that ends,
// and is broken off when the server does.
func TestFollow(t *testing.T) {
	const stops = "the server stops"
	for name, end := range map[string]func(*started){
		"the container ends":  func(s *started) { s.runs(t, "web", ended(0, "Completed"), 0, v1.ContainerState{}) },
		"it is started again": func(s *started) { s.runs(t, "web", running(), 1, ended(1, "Error")) },
		"it waits for that":   func(s *started) { s.runs(t, "web", waiting("CrashLoopBackOff"), 0, ended(1, "Error")) },
		"its pod goes": func(s *started) {
			s.call(t, "DELETE", podsPath+"/web?gracePeriodSeconds=0", "").code(200)
			s.finish(t, "web")
		},
		stops: func(s *started) {
			if err := s.stop(); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, nil)
			s.create(t, "web", "")
			s.logged(t, "web", "app", 0, "stdout:one")
			s.runs(t, "web", running(), 0, v1.ContainerState{})
			resp := s.get(t, logPath+"?follow=true")
			r := bufio.NewReader(resp.Body)
			line(t, r, "one")
			// What happens to others is nothing to this one.
			s.create(t, "other", "")
			s.logged(t, "web", "app", 0, "stdout:two")
			line(t, r, "two")
			s.logged(t, "web", "app", 0, "stdout:last")
			line(t, r, "last")
			end(s)
			want := io.EOF
			if name == stops {
				want = io.ErrUnexpectedEOF
			}
			if rest, err := r.ReadString('\n'); rest != "" || err != want {
				t.Errorf("after the end: %q, %v; want %v", rest, err, want)
			}
		})
	}
	t.Run("more happens than the history holds", func(t *testing.T) {
		s := start(t, func(o *Options) { o.Pods = forgetful{o.Pods.(*store.Store)} })
		s.create(t, "web", "")
		s.logged(t, "web", "app", 0, "stdout:one")
		s.runs(t, "web", running(), 0, v1.ContainerState{})
		resp := s.get(t, logPath+"?follow=true")
		r := bufio.NewReader(resp.Body)
		line(t, r, "one")
		s.runs(t, "web", ended(0, "Completed"), 0, v1.ContainerState{})
		if rest, err := r.ReadString('\n'); rest != "" || err != io.EOF {
			t.Errorf("after the end: %q, %v", rest, err)
		}
	})
}

// forgetful is a store whose history is shorter than any watch.
type forgetful struct{ *store.Store }

func (f forgetful) Watch(context.Context, uint64) (<-chan store.Change, error) {
	return nil, errdefs.ErrExpired
}
