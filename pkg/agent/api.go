package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/images"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/server/api"
	"github.com/nodeagent/nodeagent/pkg/source/http"
)

// noRuntime is what requests get that need a runtime while there is none.
func (a *agent) noRuntime() error {
	if a.idle.Load() {
		return fmt.Errorf("no container runtime is in use: this agent serves Services and has no pods: %w", errdefs.ErrUnavailable)
	}
	return errNoRuntime
}

var errNoRuntime = fmt.Errorf("the container runtime has not answered yet: see nodeagent get events: %w", errdefs.ErrUnavailable)

// Info implements server.Node.
func (a *agent) Info() api.Info {
	c := a.seen.Load()
	net := c.network
	net.Ready, net.Reason = c.networkReason == "", c.networkReason
	return api.Info{
		Version: a.o.Build.Version, NodeName: a.cfg.NodeName, Instance: a.instance, StartedAt: a.started,
		Runtime: api.Runtime{
			Name: c.runtime.Name, Version: c.runtime.Version, APIVersion: c.runtime.APIVersion, Endpoint: c.runtime.Endpoint,
			Ready: c.runtimeReason == "", Reason: c.runtimeReason, Handlers: c.runtime.Handlers,
			CgroupDriver: c.runtime.CgroupDriver, Events: c.runtime.Events,
		},
		Network:  net,
		Proxy:    a.proxyInfo(),
		Revision: strconv.FormatUint(a.store.Revision(), 10),
	}
}

// Sources implements server.Node.
func (a *agent) Sources() []api.Source {
	var out []api.Source
	for _, s := range a.sourceStates() {
		out = append(out, api.Source(s))
	}
	return out
}

// Containers implements server.Node.
func (a *agent) Containers(ctx context.Context) ([]api.Container, error) {
	n := a.node.Load()
	if n == nil {
		return nil, a.noRuntime()
	}
	pods, err := n.client.Pods(ctx)
	if err != nil {
		return nil, err
	}
	var out []api.Container
	for i := range pods {
		for _, c := range pods[i].Containers {
			out = append(out, api.Container{
				ID: c.ID, Name: c.Name, Namespace: pods[i].Namespace, Pod: pods[i].Name, PodUID: string(pods[i].UID),
				SandboxID: c.SandboxID, Image: cmp.Or(c.SpecImage, c.ImageRef), ImageID: c.ImageRef, State: string(c.State), Attempt: c.Attempt, Init: c.Init,
				CreatedAt: c.CreatedAt, StartedAt: c.StartedAt, FinishedAt: c.FinishedAt, ExitCode: c.ExitCode,
				Reason: c.Reason, Message: c.Message, LogPath: c.LogPath,
			})
		}
	}
	return out, nil
}

// Volumes implements server.Node.
func (a *agent) Volumes(context.Context) ([]api.Volume, error) {
	list, err := a.volumes.List()
	if err != nil {
		return nil, err
	}
	var out []api.Volume
	for _, v := range list {
		vol := api.Volume{PodUID: string(v.PodUID), Name: v.Name, Kind: v.Kind, HostPath: v.Path}
		if r, ok := a.store.ByUID(v.PodUID); ok {
			vol.Namespace, vol.Pod, vol.ReadOnly = r.Pod.Namespace, r.Pod.Name, pod.ReadsOnly(r.Pod, v.Name)
		}
		out = append(out, vol)
	}
	return out, nil
}

// Config implements server.Node. Secrets in headers and in the URL are not shown.
func (a *agent) Config() any {
	c := *a.cfg
	if c.ManifestURL != "" {
		c.ManifestURL = http.Shown(c.ManifestURL)
	}
	c.ManifestURLHeader = map[string][]string{}
	for k := range a.cfg.ManifestURLHeader {
		c.ManifestURLHeader[k] = []string{"(hidden)"}
	}
	return c
}

// Reload implements server.Node.
func (a *agent) Reload(ctx context.Context) error {
	answer := make(chan error, 1)
	select {
	case a.reload <- answer:
		return <-answer
	case <-ctx.Done():
		return ctx.Err()
	}
}

// streams implements server.Streams.
type streams struct{ a *agent }

func (s streams) client() (*runtime.Client, error) {
	if n := s.a.node.Load(); n != nil {
		return n.client, nil
	}
	return nil, s.a.noRuntime()
}

func (s streams) Pod(ctx context.Context, uid types.UID) (runtime.Pod, error) {
	c, err := s.client()
	if err != nil {
		return runtime.Pod{}, err
	}
	return c.Pod(ctx, uid)
}

func (s streams) ExecURL(ctx context.Context, id string, cmd []string, o runtime.StreamOptions) (string, error) {
	c, err := s.client()
	if err != nil {
		return "", err
	}
	return c.ExecURL(ctx, id, cmd, o)
}

func (s streams) AttachURL(ctx context.Context, id string, o runtime.StreamOptions) (string, error) {
	c, err := s.client()
	if err != nil {
		return "", err
	}
	return c.AttachURL(ctx, id, o)
}

func (s streams) PortForwardURL(ctx context.Context, sandboxID string, ports []int32) (string, error) {
	c, err := s.client()
	if err != nil {
		return "", err
	}
	return c.PortForwardURL(ctx, sandboxID, ports)
}

// imageAPI implements server.Images.
type imageAPI struct{ a *agent }

func (i imageAPI) Images(ctx context.Context) ([]api.Image, []api.PullProgress, error) {
	n := i.a.node.Load()
	if n == nil {
		return nil, nil, i.a.noRuntime()
	}
	list, err := n.client.Images(ctx)
	if err != nil {
		return nil, nil, err
	}
	var out []api.Image
	for _, img := range list {
		out = append(out, api.Image{ID: img.ID, RepoTags: img.RepoTags, RepoDigests: img.RepoDigests, Size: img.Size, Pinned: img.Pinned})
	}
	var pulls []api.PullProgress
	for _, p := range n.images.Pulls() {
		pulls = append(pulls, progress(p))
	}
	return out, pulls, nil
}

func progress(p images.Progress) api.PullProgress {
	return api.PullProgress{Image: p.Ref, Done: p.Done, Total: p.Total, Started: p.Started}
}

func (i imageAPI) Pull(ctx context.Context, image string, report func(api.PullProgress)) error {
	n := i.a.node.Load()
	if n == nil {
		return i.a.noRuntime()
	}
	var last api.PullProgress
	err := n.images.Pull(ctx, image, v1.PullAlways, func(p images.Progress) {
		last = progress(p)
		report(last)
	})
	if err != nil {
		return err
	}
	last.Image, last.Complete = image, true
	st, err := n.client.ImageStatus(ctx, strings.TrimSpace(image))
	switch {
	case err == nil:
		last.ID, last.Ref = st.ID, image
	case !errors.Is(err, errdefs.ErrNotFound):
		return err
	}
	report(last)
	return nil
}
