package cli

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/server/api"
)

// resource is one kind that `get` knows. Its functions take the values that
// its own list returned.
type resource struct {
	kind    string // singular, as in -o name
	object  string // the Kind of what manifests can hold: "Pod"; else empty
	names   []string
	watched bool // the API has ?watch for it
	// path of the list; an empty namespace is all of them. Kinds that are not
	// namespaced ignore it.
	path func(namespace string) string
	// namespace is nil for kinds that are not namespaced.
	namespace func(o any) string
	// ids are the names an object answers to; the first is its name.
	ids     func(o any) []string
	headers func(wide bool) []string
	cells   func(o any, now time.Time, wide bool) []string
	list    func(ctx context.Context, c *Client, path string, q url.Values) ([]any, string, error)
	decode  func(raw []byte) (any, error)
}

func resources() []resource {
	all := []resource{podResource()}
	for _, k := range manifest.Kinds() {
		all = append(all, kindResource(k))
	}
	return append(all, eventResource(), containerResource(), imageResource(), volumeResource(), sourceResource())
}

// ResourceNames are the kinds that Get knows, for completion.
func ResourceNames() []string {
	var out []string
	for _, r := range resources() {
		out = append(out, r.names[0])
	}
	return out
}

func findResource(name string) (resource, error) {
	for _, r := range resources() {
		if slices.Contains(r.names, strings.ToLower(name)) {
			return r, nil
		}
	}
	return resource{}, fmt.Errorf("there is no resource type %q; there are: %s", name, strings.Join(ResourceNames(), ", "))
}

func podResource() resource {
	return resource{
		kind: "pod", object: "Pod", names: []string{"pods", "pod", "po"}, watched: true, path: podsPath,
		namespace: func(o any) string { return o.(*v1.Pod).Namespace },
		ids:       func(o any) []string { return []string{o.(*v1.Pod).Name} },
		headers: func(wide bool) []string {
			h := []string{"NAME", "READY", "STATUS", "RESTARTS", "AGE"}
			if wide {
				h = append(h, "IP", "NODE", "NOMINATED NODE", "READINESS GATES")
			}
			return h
		},
		cells: func(o any, now time.Time, wide bool) []string {
			p := o.(*v1.Pod)
			s := pod.Summarise(withPulls(p))
			c := []string{p.Name, fmt.Sprintf("%d/%d", s.Ready, s.Total), s.Status, s.RestartsText(now), age(now, p.CreationTimestamp.Time)}
			if wide {
				c = append(c, podIP(p), orNone(p.Spec.NodeName), orNone(p.Status.NominatedNodeName), pod.ReadinessGates(p))
			}
			return c
		},
		list: func(ctx context.Context, c *Client, path string, q url.Values) ([]any, string, error) {
			var l v1.PodList
			err := c.get(ctx, path, q, &l)
			return pointers(l.Items), l.ResourceVersion, err
		},
		decode: decodeAs[v1.Pod],
	}
}

func eventResource() resource {
	return resource{
		kind: "event", names: []string{"events", "event", "ev"}, watched: true,
		path: func(ns string) string {
			if ns == "" {
				return "/api/v1/events"
			}
			return "/api/v1/namespaces/" + url.PathEscape(ns) + "/events"
		},
		namespace: func(o any) string { return o.(*v1.Event).Namespace },
		ids:       func(o any) []string { return []string{o.(*v1.Event).Name} },
		headers: func(wide bool) []string {
			if wide {
				return []string{"LAST SEEN", "TYPE", "REASON", "OBJECT", "SUBOBJECT", "SOURCE", "MESSAGE", "FIRST SEEN", "COUNT", "NAME"}
			}
			return []string{"LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"}
		},
		cells: func(o any, now time.Time, wide bool) []string {
			e := o.(*v1.Event)
			object := strings.ToLower(e.InvolvedObject.Kind) + "/" + e.InvolvedObject.Name
			c := []string{age(now, lastSeen(e)), e.Type, e.Reason, object}
			if !wide {
				return append(c, strings.TrimSpace(e.Message))
			}
			return append(c, e.InvolvedObject.FieldPath, eventSource(e), strings.TrimSpace(e.Message),
				age(now, firstSeen(e)), fmt.Sprint(eventCount(e)), e.Name)
		},
		list: func(ctx context.Context, c *Client, path string, q url.Values) ([]any, string, error) {
			var l v1.EventList
			err := c.get(ctx, path, q, &l)
			slices.SortStableFunc(l.Items, func(a, b v1.Event) int { return lastSeen(&a).Compare(lastSeen(&b)) })
			return pointers(l.Items), l.ResourceVersion, err
		},
		decode: decodeAs[v1.Event],
	}
}

func containerResource() resource {
	return resource{
		kind: "container", names: []string{"containers", "container", "ctr"}, path: ownPath(api.PathContainers),
		namespace: func(o any) string { return o.(*api.Container).Namespace },
		ids: func(o any) []string {
			c := o.(*api.Container)
			return []string{c.ID, c.Name, shortID(c.ID)}
		},
		headers: func(wide bool) []string {
			h := []string{"POD", "CONTAINER", "ID", "IMAGE", "STATE", "ATTEMPT", "AGE"}
			if wide {
				h = append(h, "SANDBOX", "EXIT", "REASON", "LOG")
			}
			return h
		},
		cells: func(o any, now time.Time, wide bool) []string {
			c := o.(*api.Container)
			name := c.Name
			if c.Init {
				name += " (init)"
			}
			out := []string{c.Pod, name, shortID(c.ID), c.Image, c.State, fmt.Sprint(c.Attempt), age(now, c.CreatedAt)}
			if wide {
				exit := "<none>"
				if !c.FinishedAt.IsZero() {
					exit = fmt.Sprint(c.ExitCode)
				}
				out = append(out, shortID(c.SandboxID), exit, orNone(c.Reason), orNone(c.LogPath))
			}
			return out
		},
		list: func(ctx context.Context, c *Client, path string, q url.Values) ([]any, string, error) {
			var l api.ContainerList
			err := c.get(ctx, path, q, &l)
			slices.SortStableFunc(l.Items, func(a, b api.Container) int {
				return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod), a.CreatedAt.Compare(b.CreatedAt))
			})
			return pointers(l.Items), "", err
		},
	}
}

func imageResource() resource {
	return resource{
		kind: "image", names: []string{"images", "image", "img"}, path: ownPath(api.PathImages),
		ids: func(o any) []string {
			switch i := o.(type) {
			case *api.Image:
				return append([]string{imageName(i), i.ID, shortID(i.ID)}, imageNames(i)...)
			case *api.PullProgress:
				return []string{i.Image}
			}
			return []string{""}
		},
		headers: func(wide bool) []string {
			h := []string{"IMAGE", "ID", "SIZE", "STATUS"}
			if wide {
				h = append(h, "PINNED", "DIGEST")
			}
			return h
		},
		cells: imageCells,
		list: func(ctx context.Context, c *Client, path string, q url.Values) ([]any, string, error) {
			var l api.ImageList
			err := c.get(ctx, path, q, &l)
			slices.SortStableFunc(l.Items, func(a, b api.Image) int { return cmp.Compare(imageName(&a), imageName(&b)) })
			slices.SortStableFunc(l.Pulls, func(a, b api.PullProgress) int { return cmp.Compare(a.Image, b.Image) })
			return append(pointers(l.Items), pointers(l.Pulls)...), "", err
		},
	}
}

func imageCells(o any, _ time.Time, wide bool) []string {
	switch i := o.(type) {
	case *api.Image:
		c := []string{imageName(i), shortID(i.ID), bytesText(int64(i.Size)), "Ready"}
		if wide {
			digest := "<none>"
			if len(i.RepoDigests) > 0 {
				_, digest, _ = strings.Cut(i.RepoDigests[0], "@")
			}
			c = append(c, fmt.Sprint(i.Pinned), digest)
		}
		return c
	case *api.PullProgress:
		c := []string{i.Image, "<none>", bytesText(i.Done), "Pulling" + percent(i.Done, i.Total)}
		if wide {
			c = append(c, "false", "<none>")
		}
		return c
	}
	return nil
}

func volumeResource() resource {
	return resource{
		kind: "volume", names: []string{"volumes", "volume", "vol"}, path: ownPath(api.PathVolumes),
		namespace: func(o any) string { return o.(*api.Volume).Namespace },
		ids: func(o any) []string {
			v := o.(*api.Volume)
			return []string{v.Pod + "/" + v.Name, v.Name, v.Pod}
		},
		headers: func(wide bool) []string {
			h := []string{"POD", "VOLUME", "KIND", "ACCESS"}
			if wide {
				h = append(h, "PATH")
			}
			return h
		},
		cells: func(o any, _ time.Time, wide bool) []string {
			v := o.(*api.Volume)
			access := "read-write"
			if v.ReadOnly {
				access = "read-only"
			}
			c := []string{v.Pod, v.Name, v.Kind, access}
			if wide {
				c = append(c, v.HostPath)
			}
			return c
		},
		list: func(ctx context.Context, c *Client, path string, q url.Values) ([]any, string, error) {
			var l api.VolumeList
			err := c.get(ctx, path, q, &l)
			slices.SortStableFunc(l.Items, func(a, b api.Volume) int {
				return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.Name, b.Name))
			})
			return pointers(l.Items), "", err
		},
	}
}

func sourceResource() resource {
	return resource{
		kind: "source", names: []string{"sources", "source", "src"}, path: ownPath(api.PathSources),
		ids: func(o any) []string { return []string{o.(*api.Source).Name} },
		headers: func(bool) []string {
			return []string{"NAME", "TARGET", "STATUS", "OBJECTS", "LAST SYNC", "PROBLEMS", "MESSAGE"}
		},
		cells: sourceCells,
		list: func(ctx context.Context, c *Client, path string, q url.Values) ([]any, string, error) {
			var l api.SourceList
			err := c.get(ctx, path, q, &l)
			return pointers(l.Items), "", err
		},
	}
}

func sourceCells(o any, now time.Time, wide bool) []string {
	s := o.(*api.Source)
	status := "Waiting"
	switch {
	case s.Error != "":
		status = "Failing"
	case s.Synced && len(s.Problems) > 0:
		status = "Degraded"
	case s.Synced:
		status = "Synced"
	case s.Tried:
		status = "NotSynced"
	}
	var messages []string
	if s.Error != "" {
		messages = append(messages, s.Error)
	}
	messages = append(messages, s.Problems...)
	if !wide && len(messages) > 1 {
		messages = messages[:1]
	}
	return []string{s.Name, s.Target, status, fmt.Sprint(s.Objects), age(now, s.LastSync), fmt.Sprint(len(s.Problems)), orNone(strings.Join(messages, "; "))}
}

func ownPath(p string) func(string) string {
	return func(string) string { return api.Prefix + p }
}

func pointers[T any](items []T) []any {
	out := make([]any, len(items))
	for i := range items {
		out[i] = &items[i]
	}
	return out
}

// shortID is how people write an id: twelve digits without the algorithm.
func shortID(id string) string {
	if i := strings.LastIndexByte(id, ':'); i >= 0 {
		id = id[i+1:]
	}
	return id[:min(len(id), 12)]
}

// imageNames are an image's full names and those that people write.
func imageNames(i *api.Image) []string {
	names := slices.Concat(i.RepoTags, i.RepoDigests)
	for _, tag := range i.RepoTags {
		ref, err := reference.ParseNormalizedNamed(tag)
		if err != nil {
			continue // a name that only the runtime understands
		}
		familiar := reference.FamiliarString(ref)
		names = append(names, familiar, strings.TrimSuffix(familiar, ":latest"))
	}
	return names
}

func imageName(i *api.Image) string {
	switch {
	case len(i.RepoTags) > 0:
		return i.RepoTags[0]
	case len(i.RepoDigests) > 0:
		return i.RepoDigests[0]
	}
	return "<none>"
}

// bytesText writes sizes as registries and crictl do, in powers of 1000.
func bytesText(n int64) string {
	f, units := float64(n), []string{"B", "kB", "MB", "GB", "TB"}
	for len(units) > 1 && f >= 1000 {
		f, units = f/1000, units[1:]
	}
	return fmt.Sprintf("%.3g%s", f, units[0])
}

func percent(done, total int64) string {
	if total <= 0 {
		return ""
	}
	return fmt.Sprintf(" %d%%", min(100, done*100/total))
}

// An event written by the events API has series and eventTime in place of
// counts and timestamps.
func lastSeen(e *v1.Event) time.Time {
	switch {
	case e.Series != nil:
		return e.Series.LastObservedTime.Time
	case !e.LastTimestamp.IsZero():
		return e.LastTimestamp.Time
	case !e.EventTime.IsZero():
		return e.EventTime.Time
	}
	return e.CreationTimestamp.Time
}

func firstSeen(e *v1.Event) time.Time {
	if !e.FirstTimestamp.IsZero() {
		return e.FirstTimestamp.Time
	}
	return e.EventTime.Time
}

func eventCount(e *v1.Event) int32 {
	if e.Series != nil {
		return e.Series.Count
	}
	return max(1, e.Count)
}

func eventSource(e *v1.Event) string {
	name := cmp.Or(e.Source.Component, e.ReportingController)
	if host := cmp.Or(e.Source.Host, e.ReportingInstance); host != "" {
		return name + ", " + host
	}
	return name
}
