package server

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// connect serves exec, attach and portforward: it asks the runtime for a URL of
// its streaming server and hands the client's connection over to it.
func (s *Server) connect(w http.ResponseWriter, r *http.Request, key pod.Key, sub string) error {
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		return notAllowed("pods/"+sub, r.Method)
	}
	if sub == "portforward" && tunnels(r) {
		return apierrors.NewBadRequest("SPDY inside a websocket is not spoken here: speak SPDY alone")
	}
	rec, err := s.find(key)
	if err != nil {
		return err
	}
	if pod.IsTerminal(rec.Pod.Status.Phase) {
		return apierrors.NewBadRequest(fmt.Sprintf("pod %s has ended (%s): there is nothing to connect to", rec.Pod.Name, rec.Pod.Status.Phase))
	}
	open := s.session
	if sub == "portforward" {
		open = s.portForward
	}
	// The request is judged before the runtime is asked: URLs are good for one
	// use, and a session that nobody takes up is kept for a minute.
	target, err := open(r, rec.Pod, sub)
	if err != nil {
		return err
	}
	u, err := url.Parse(target)
	if err != nil || u.Host == "" {
		return apierrors.NewInternalError(fmt.Errorf("the runtime's streaming URL %q is not one", target))
	}
	return s.proxyUpgrade(w, r, u)
}

// tunnels says that the client wants to put one protocol into another (KEP-4006),
// which API servers take apart and runtimes do not understand. kubectl goes on
// without when it is refused.
func tunnels(r *http.Request) bool {
	return slices.ContainsFunc(r.Header.Values("Sec-Websocket-Protocol"), func(h string) bool { return strings.Contains(h, "SPDY/3.1+") })
}

// session opens an exec or attach session.
func (s *Server) session(r *http.Request, p *v1.Pod, sub string) (string, error) {
	q := r.URL.Query()
	name, err := containerOf(p, q.Get("container"))
	if err != nil {
		return "", err
	}
	var o runtime.StreamOptions
	for param, to := range map[string]*bool{"stdin": &o.Stdin, "stdout": &o.Stdout, "stderr": &o.Stderr, "tty": &o.TTY} {
		if *to, err = boolParam(q, param); err != nil {
			return "", err
		}
	}
	if o.TTY {
		// A terminal has one output.
		o.Stderr = false
	}
	if !o.Stdin && !o.Stdout && !o.Stderr {
		return "", apierrors.NewBadRequest("you must specify at least 1 of stdin, stdout, stderr")
	}
	cmd := q["command"]
	if sub == "exec" && (len(cmd) == 0 || cmd[0] == "") {
		return "", apierrors.NewBadRequest("you must specify at least 1 command for the container")
	}
	if !isUpgrade(r) {
		return "", errUpgrade()
	}
	observed, err := s.o.Streams.Pod(r.Context(), p.UID)
	if err != nil {
		return "", err
	}
	c := observed.Newest(name)
	if c == nil || c.State != runtime.StateRunning {
		return "", apierrors.NewInternalError(fmt.Errorf("container not found (%q): it is not running", name))
	}
	if sub == "exec" {
		return s.o.Streams.ExecURL(r.Context(), c.ID, cmd, o)
	}
	return s.o.Streams.AttachURL(r.Context(), c.ID, o)
}

func (s *Server) portForward(r *http.Request, p *v1.Pod, _ string) (string, error) {
	ports, err := portsOf(r.URL.Query())
	if err != nil {
		return "", err
	}
	if !isUpgrade(r) {
		return "", errUpgrade()
	}
	observed, err := s.o.Streams.Pod(r.Context(), p.UID)
	if err != nil {
		return "", err
	}
	sandbox := observed.Sandbox()
	if sandbox == nil || !sandbox.Ready {
		return "", apierrors.NewInternalError(fmt.Errorf("pod not found (%q): its sandbox is not running", p.Namespace+"/"+p.Name))
	}
	return s.o.Streams.PortForwardURL(r.Context(), sandbox.ID, ports)
}

func errUpgrade() error { return apierrors.NewBadRequest("Upgrade request required") }

func splitComma(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}
