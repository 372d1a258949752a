package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/logs"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// podLog is GET …/pods/NAME/log.
func (s *Server) podLog(w http.ResponseWriter, r *http.Request, key pod.Key) error {
	if err := onlyGet(r); err != nil {
		return err
	}
	q := r.URL.Query()
	o, previous, err := s.logOptions(q)
	if err != nil {
		return err
	}
	rec, err := s.find(key)
	if err != nil {
		return err
	}
	p := rec.Pod
	container, err := containerOf(p, q.Get("container"))
	if err != nil {
		return err
	}
	st := containerStatus(p, container)
	if err := hasLog(p, container, st, previous); err != nil {
		return err
	}
	dir, err := logs.OpenDir(s.o.PodLogDir, p.Namespace+"_"+p.Name+"_"+string(p.UID), container)
	if err != nil {
		return noLog(err, container, p.Name)
	}
	defer dir.Close()
	attempts, err := dir.Attempts()
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	attempt, ok := pickAttempt(attempts, st, previous)
	if !ok {
		return previousNotFound(container, p.Name)
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if o.Follow {
		ended := make(chan struct{})
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			s.awaitEnd(ctx, key, p.UID, container, attempt, ended)
		}()
		// The handler returns only after its helper has.
		defer func() { cancel(); <-gone }()
		o.Ended = ended
	}
	out := &logWriter{w: w, rc: http.NewResponseController(w), now: s.o.Now}
	if o.Follow {
		// The client learns at once that the log is there, also when it stays
		// silent for long.
		out.begin()
	}
	err = dir.Stream(ctx, attempt, o, out)
	switch {
	case err == nil:
		out.begin()
		return nil
	case out.begun:
		if ctx.Err() == nil {
			s.log.Warn("streaming a log", "pod", pod.Describe(p), "container", container, "err", err)
		}
		// What was sent is not all of the log, and an orderly end would say so.
		panic(http.ErrAbortHandler)
	}
	return noLog(err, container, p.Name)
}

func noLog(err error, container, name string) error {
	switch {
	case errors.Is(err, errdefs.ErrNotFound):
		st := apierrors.NewNotFound(resource("pods"), name)
		st.ErrStatus.Message = fmt.Sprintf("container %q in pod %q has no log: %v", container, name, err)
		return st
	case errors.Is(err, errdefs.ErrInvalid):
		return apierrors.NewInternalError(err)
	}
	return err
}

// logOptions reads and checks the query as kube-apiserver does.
func (s *Server) logOptions(q url.Values) (o logs.Options, previous bool, err error) {
	for name, to := range map[string]*bool{"follow": &o.Follow, "timestamps": &o.Timestamps, "previous": &previous} {
		if *to, err = boolParam(q, name); err != nil {
			return o, false, err
		}
	}
	var sinceSeconds *int64
	for name, to := range map[string]**int64{"tailLines": &o.TailLines, "limitBytes": &o.LimitBytes, "sinceSeconds": &sinceSeconds} {
		if *to, err = intParam(q, name); err != nil {
			return o, false, err
		}
	}
	var errs field.ErrorList
	if n := o.TailLines; n != nil && *n < 0 {
		errs = append(errs, field.Invalid(field.NewPath("tailLines"), *n, "must be greater than or equal to 0"))
	}
	if n := o.LimitBytes; n != nil && *n < 1 {
		errs = append(errs, field.Invalid(field.NewPath("limitBytes"), *n, "must be greater than 0"))
	}
	switch t := q.Get("sinceTime"); {
	case sinceSeconds != nil && t != "":
		errs = append(errs, field.Forbidden(field.NewPath(""), "at most one of `sinceTime` or `sinceSeconds` may be specified"))
	case sinceSeconds != nil && *sinceSeconds < 1:
		errs = append(errs, field.Invalid(field.NewPath("sinceSeconds"), *sinceSeconds, "must be greater than 0"))
	case sinceSeconds != nil:
		o.Since = s.o.Now().Add(-time.Duration(min(*sinceSeconds, 1<<32)) * time.Second)
	case t != "":
		if o.Since, err = time.Parse(time.RFC3339, t); err != nil {
			return o, false, apierrors.NewBadRequest(fmt.Sprintf("query parameter sinceTime: %q is not a time such as 2006-01-02T15:04:05Z", t))
		}
	}
	switch v := q.Get("stream"); v {
	case "", v1.LogStreamAll:
	case v1.LogStreamStdout:
		o.Stream = "stdout"
	case v1.LogStreamStderr:
		o.Stream = "stderr"
	default:
		errs = append(errs, field.NotSupported(field.NewPath("stream"), v, []string{v1.LogStreamAll, v1.LogStreamStdout, v1.LogStreamStderr}))
	}
	if o.Stream != "" && o.TailLines != nil {
		errs = append(errs, field.Forbidden(field.NewPath(""), "`tailLines` and specific `stream` are mutually exclusive for now"))
	}
	if len(errs) > 0 {
		return o, false, apierrors.NewInvalid(schema.GroupKind{Kind: "PodLogOptions"}, "", errs)
	}
	return o, previous, nil
}

// containerOf finds the container that is meant; the only one needs no name.
func containerOf(p *v1.Pod, name string) (string, error) {
	if name != "" {
		if _, _, ok := pod.Container(p, name); !ok {
			return "", apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s", name, p.Name))
		}
		return name, nil
	}
	switch len(p.Spec.Containers) {
	case 1:
		return p.Spec.Containers[0].Name, nil
	case 0:
		return "", apierrors.NewBadRequest(fmt.Sprintf("a container name must be specified for pod %s", p.Name))
	}
	var names []string
	for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			names = append(names, list[i].Name)
		}
	}
	return "", apierrors.NewBadRequest(fmt.Sprintf("a container name must be specified for pod %s, choose one of: %s", p.Name, names))
}

func containerStatus(p *v1.Pod, name string) *v1.ContainerStatus {
	for _, list := range [][]v1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses} {
		if i := slices.IndexFunc(list, func(c v1.ContainerStatus) bool { return c.Name == name }); i >= 0 {
			return &list[i]
		}
	}
	return nil
}

// hasLog refuses containers that never ran, in kubelet's words.
func hasLog(p *v1.Pod, container string, st *v1.ContainerStatus, previous bool) error {
	say := func(format string, args ...any) error {
		return apierrors.NewBadRequest(fmt.Sprintf("container %q in pod %q ", container, p.Name) + fmt.Sprintf(format, args...))
	}
	switch {
	case st == nil:
		return say("is waiting to start: no status of it yet")
	case previous && st.LastTerminationState.Terminated == nil && st.RestartCount == 0:
		return previousNotFound(container, p.Name)
	case st.State.Running != nil, st.State.Terminated != nil, st.LastTerminationState.Terminated != nil:
		return nil
	case st.State.Waiting == nil:
		return say("is waiting to start - no logs yet")
	}
	switch reason := st.State.Waiting.Reason; reason {
	case "ErrImagePull":
		return say("is waiting to start: image can't be pulled")
	case "ImagePullBackOff":
		return say("is waiting to start: trying and failing to pull image")
	default:
		return say("is waiting to start: %s", reason)
	}
}

func previousNotFound(container, name string) error {
	return apierrors.NewBadRequest(fmt.Sprintf("previous terminated container %q in pod %q not found", container, name))
}

// pickAttempt chooses among the attempts that have a log, newest first. The
// current one is the one the status speaks of: its restart count is the number
// of its attempt. The previous one is the newest that is dead: the one before
// the current, or the current itself while it waits to be started again.
func pickAttempt(attempts []int, st *v1.ContainerStatus, previous bool) (int, bool) {
	current := int(st.RestartCount)
	waiting := st.State.Running == nil && st.State.Terminated == nil
	for _, a := range attempts {
		switch {
		case a > current:
			// Started after the status was made.
		case previous && a == current && !waiting:
		default:
			return a, true
		}
	}
	if previous {
		return 0, false
	}
	// The file is not there yet, or no more: let the reader wait for it or say so.
	return current, true
}

// awaitEnd closes ended when that attempt of the container no longer runs, by
// what the store says.
func (s *Server) awaitEnd(ctx context.Context, key pod.Key, uid types.UID, container string, attempt int, ended chan<- struct{}) {
	for ctx.Err() == nil {
		revision := s.o.Pods.Revision()
		rec, ok := s.o.Pods.Get(key)
		if !ok || hasEnded(rec.Pod, uid, container, attempt) {
			close(ended)
			return
		}
		changes, err := s.o.Pods.Watch(ctx, revision)
		if err != nil {
			if errors.Is(err, errdefs.ErrExpired) {
				continue // the history moved on between the two calls
			}
			s.log.Warn("following a log: watching its pod; the end of the container will not be noticed", "pod", key.String(), "err", err)
			return
		}
		for c := range changes {
			if c.Record.Pod.UID != uid {
				continue
			}
			if c.Type == store.Deleted || hasEnded(c.Record.Pod, uid, container, attempt) {
				close(ended)
				return
			}
		}
	}
}

func hasEnded(p *v1.Pod, uid types.UID, container string, attempt int) bool {
	if p.UID != uid {
		return true
	}
	st := containerStatus(p, container)
	if st == nil || int(st.RestartCount) != attempt {
		return st == nil || int(st.RestartCount) > attempt
	}
	return st.State.Terminated != nil || (st.State.Waiting != nil && st.LastTerminationState.Terminated != nil)
}

// logWriter sends text as it comes.
type logWriter struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	now   func() time.Time
	begun bool
}

func (l *logWriter) begin() {
	if l.begun {
		return
	}
	l.begun = true
	l.w.Header().Set("Content-Type", "text/plain")
	l.w.Header().Set("Cache-Control", "no-cache, private")
	l.w.WriteHeader(http.StatusOK)
	_ = l.rc.Flush() // the first write tells whether the client is there
}

func (l *logWriter) Write(b []byte) (int, error) {
	l.begin()
	// Not every writer can have a deadline; a real connection can.
	_ = l.rc.SetWriteDeadline(l.now().Add(streamWriteTimeout))
	n, err := l.w.Write(b)
	if err == nil {
		if ferr := l.rc.Flush(); ferr != nil && !errors.Is(ferr, http.ErrNotSupported) {
			err = ferr
		}
	}
	return n, err
}

// portsOf reads ?ports of a port forward; SPDY clients name them per stream.
func portsOf(q url.Values) ([]int32, error) {
	var ports []int32
	for _, t := range q["ports"] {
		for _, part := range splitComma(t) {
			n, err := strconv.ParseUint(part, 10, 16)
			if err != nil || n == 0 {
				return nil, apierrors.NewBadRequest(fmt.Sprintf("query parameter ports: %q is not a port", part))
			}
			ports = append(ports, int32(n))
		}
	}
	return ports, nil
}
