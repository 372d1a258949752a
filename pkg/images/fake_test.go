package images

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// registry is a runtime and the registries it pulls from. Tests run in a
// synctest bubble, where time passes only when nothing else can happen.
type registry struct {
	t *testing.T

	mu     sync.Mutex
	local  map[string]string // reference → id
	remote map[string]remote
	now    map[string]*fetch
	pulls  []string // "reference user" in the order of their start
	peak   int
	events []string
	wakes  map[types.UID]int
}

// remote is an image in a registry.
type remote struct {
	id      string
	bytes   int64         // per second; 0 stalls
	size    int64         // 0 shows no progress
	user    string        // who may pull; "" everybody
	err     error         // what pulling fails with
	unpacks time.Duration // without progress after the last byte
}

type fetch struct{ done, total int64 }

func (r *registry) ImageStatus(_ context.Context, ref string) (*runtime.Image, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, id := range r.local {
		if name == ref || id == ref {
			return &runtime.Image{ID: id, RepoTags: []string{name}, Size: 7}, nil
		}
	}
	return nil, fmt.Errorf("image %s: %w", ref, errdefs.ErrNotFound)
}

func (r *registry) PullImage(ctx context.Context, ref string, auth *runtime.Auth) (string, error) {
	user := "-"
	if auth != nil {
		user = auth.Username
	}
	r.mu.Lock()
	if r.now[ref] != nil {
		r.t.Errorf("%s is pulled twice at once", ref)
	}
	img, ok := r.remote[ref]
	f := &fetch{}
	r.now[ref] = f
	r.pulls = append(r.pulls, ref+" "+user)
	r.peak = max(r.peak, len(r.now))
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.now, ref)
		r.mu.Unlock()
	}()
	switch {
	case !ok:
		return "", fmt.Errorf("%s: %w", ref, errdefs.ErrNotFound)
	case img.err != nil:
		return "", img.err
	case img.user != "" && img.user != user:
		return "", fmt.Errorf("%s: authorization failed", ref)
	}
	for f.done < img.size || img.size == 0 && img.bytes == 0 {
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(time.Second):
		}
		r.mu.Lock()
		f.total, f.done = img.size, min(img.size, f.done+img.bytes)
		r.mu.Unlock()
	}
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case <-time.After(img.unpacks):
	}
	r.mu.Lock()
	r.local[ref] = img.id
	r.mu.Unlock()
	return img.id, nil
}

func (r *registry) PullProgress(_ context.Context, ref string) (int64, int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.now[ref]; f != nil && f.total > 0 {
		return f.done, f.total, nil
	}
	return 0, 0, errdefs.ErrNotFound
}

func (r *registry) Images(context.Context) ([]runtime.Image, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []runtime.Image
	for name, id := range r.local {
		out = append(out, runtime.Image{ID: id, RepoTags: []string{name}})
	}
	return out, nil
}

func (r *registry) RemoveImage(_ context.Context, ref string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.local, ref)
	return nil
}

// ImportImages takes "name=id" lines for an archive.
func (r *registry) ImportImages(_ context.Context, in io.Reader) ([]string, error) {
	b, err := io.ReadAll(in)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var refs []string
	for line := range strings.Lines(string(b)) {
		name, id, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			return nil, fmt.Errorf("not an archive: %w", errdefs.ErrInvalid)
		}
		r.local[name] = id
		refs = append(refs, name)
	}
	return refs, nil
}

func (r *registry) PinImage(_ context.Context, ref string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.local[ref] == "" {
		return errdefs.ErrNotFound
	}
	r.events = append(r.events, "pin "+ref)
	return nil
}

func newRegistry(t *testing.T) *registry {
	return &registry{t: t, local: map[string]string{}, remote: map[string]remote{}, now: map[string]*fetch{}, wakes: map[types.UID]int{}}
}

// manager runs a Manager on the registry until the bubble's test ends.
func (r *registry) manager(change ...func(*Options)) *Manager {
	r.t.Helper()
	o := Options{
		Runtime: r,
		Events: func(p *v1.Pod, c, kind, reason, message string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events = append(r.events, fmt.Sprintf("%s/%s %s %s: %s", p.Name, c, kind, reason, message))
		},
		Wake: func(uid types.UID) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.wakes[uid]++
		},
	}
	for _, f := range change {
		f(&o)
	}
	m, err := New(o)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	r.t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			r.t.Errorf("Run: %v", err)
		}
	})
	return m
}

// bubble runs f where time is the test's own.
func bubble(t *testing.T, f func(t *testing.T, r *registry)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newRegistry(t)) })
}

func onePod(name, image string, policy v1.PullPolicy) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("uid-" + name)},
		Spec:       v1.PodSpec{Containers: []v1.Container{{Name: "main", Image: image, ImagePullPolicy: policy}}},
	}
}

// ask requests the pod's first container's image once everything has settled.
func ask(m *Manager, p *v1.Pod) State {
	synctest.Wait()
	s := m.Request(context.Background(), p, &p.Spec.Containers[0], 0)
	synctest.Wait()
	return s
}

// settle lets time pass and all that it brings happen.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (r *registry) woken(p *v1.Pod) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wakes[p.UID]
}

// said lists the events that mention text.
func (r *registry) said(text string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(r.events), func(e string) bool { return !strings.Contains(e, text) })
}
