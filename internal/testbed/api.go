package testbed

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sort"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
)

// API is an HTTP client of the agent's local API; the host part of the URL
// does not matter ("http://node/api/v1/pods").
func (n *Node) API() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", n.SocketPath())
		},
	}}
}

func (n *Node) apiGet(path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := n.API().Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %s", path, resp.Status, b)
	}
	return b, err
}

// Pods is what the agent's API lists, by "namespace/name".
func (n *Node) Pods() (Pods, error) {
	pods, _, err := n.listPods()
	return pods, err
}

func (n *Node) listPods() (Pods, string, error) {
	b, err := n.apiGet("/api/v1/pods")
	if err != nil {
		return nil, "", err
	}
	var list v1.PodList
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, "", fmt.Errorf("pod list: %w", err)
	}
	pods := Pods{}
	for _, p := range list.Items {
		pods[p.Namespace+"/"+p.Name] = p
	}
	return pods, list.ResourceVersion, nil
}

// Pods maps "namespace/name" to what the API shows.
type Pods map[string]v1.Pod

// WaitPods waits, on the API's watch, until the condition is nil and returns
// the pods that met it. It survives an agent that restarts meanwhile. The
// condition's last error is what a timeout reports.
func (n *Node) WaitPods(d time.Duration, cond func(Pods) error) Pods {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	last := fmt.Errorf("the API never answered")
	for ctx.Err() == nil {
		pods, rv, err := n.listPods()
		if err == nil {
			if last = cond(pods); last == nil {
				return pods
			}
			if err := n.watchPods(ctx, rv, pods, func() bool { last = cond(pods); return last == nil }); err == nil && last == nil {
				return pods
			}
		} else if strings.HasPrefix(last.Error(), "the API") {
			last = fmt.Errorf("the API does not answer: %w", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond): // the agent is away: ask again
		}
	}
	n.t.Fatalf("not within %v: %v", d, last)
	return nil
}

// watchPods applies watch events to pods until done says so or the stream ends.
func (n *Node) watchPods(ctx context.Context, rv string, pods Pods, done func() bool) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet,
		"http://node/api/v1/pods?watch=true&resourceVersion="+rv, nil)
	if err != nil {
		return err
	}
	resp, err := n.API().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(bufio.NewReader(resp.Body))
	for {
		var e struct {
			Type   string
			Object json.RawMessage
		}
		if err := dec.Decode(&e); err != nil {
			return err
		}
		var p v1.Pod
		if err := json.Unmarshal(e.Object, &p); err != nil {
			return err
		}
		key := p.Namespace + "/" + p.Name
		switch e.Type {
		case "ADDED", "MODIFIED":
			pods[key] = p
		case "DELETED":
			delete(pods, key)
		default:
			return fmt.Errorf("watch: %s: %s", e.Type, e.Object)
		}
		if done() {
			return nil
		}
	}
}

// Running is a condition: every named pod ("name" or "namespace/name") is
// Running with all its containers running.
func Running(names ...string) func(Pods) error {
	return func(pods Pods) error {
		for _, name := range names {
			p, err := pods.Get(name)
			if err != nil {
				return err
			}
			if p.Status.Phase != v1.PodRunning || len(p.Status.ContainerStatuses) != len(p.Spec.Containers) {
				return fmt.Errorf("%s: phase %s: %s", name, p.Status.Phase, describe(p))
			}
			for _, c := range p.Status.ContainerStatuses {
				if c.State.Running == nil {
					return fmt.Errorf("%s: %s", name, describe(p))
				}
			}
		}
		return nil
	}
}

// Phase is a condition: the pod is in that phase.
func Phase(name string, phase v1.PodPhase) func(Pods) error {
	return func(pods Pods) error {
		p, err := pods.Get(name)
		if err != nil {
			return err
		}
		if p.Status.Phase != phase {
			return fmt.Errorf("%s: phase %s, want %s: %s", name, p.Status.Phase, phase, describe(p))
		}
		return nil
	}
}

// Gone is a condition: none of the named pods is listed.
func Gone(names ...string) func(Pods) error {
	return func(pods Pods) error {
		for _, name := range names {
			if p, err := pods.Get(name); err == nil {
				return fmt.Errorf("%s is still there: phase %s: %s", name, p.Status.Phase, describe(p))
			}
		}
		return nil
	}
}

// Get finds a pod by "name" (in the default namespace) or "namespace/name". File
// pods may carry the node's name as a suffix in other agents; ours do not.
func (p Pods) Get(name string) (v1.Pod, error) {
	key := name
	if !strings.Contains(name, "/") {
		key = "default/" + name
	}
	pod, ok := p[key]
	if !ok {
		var have []string
		for k := range p {
			have = append(have, k)
		}
		sort.Strings(have)
		return pod, fmt.Errorf("%s is not listed; there are %v", key, have)
	}
	return pod, nil
}

// describe is a pod's containers in a line, for failures.
func describe(p v1.Pod) string {
	var parts []string
	if p.Status.Reason != "" {
		parts = append(parts, p.Status.Reason+": "+p.Status.Message)
	}
	for _, c := range append(append([]v1.ContainerStatus{}, p.Status.InitContainerStatuses...), p.Status.ContainerStatuses...) {
		s := "unknown"
		switch {
		case c.State.Running != nil:
			s = "running"
		case c.State.Waiting != nil:
			s = "waiting " + c.State.Waiting.Reason + " " + c.State.Waiting.Message
		case c.State.Terminated != nil:
			s = fmt.Sprintf("terminated %s %d %s", c.State.Terminated.Reason, c.State.Terminated.ExitCode, c.State.Terminated.Message)
		}
		parts = append(parts, fmt.Sprintf("%s %s (%d restarts)", c.Name, s, c.RestartCount))
	}
	return strings.Join(parts, "; ")
}
