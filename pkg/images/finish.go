package images

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/distribution/reference"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// finish records a pull's end for all who waited for it. ending says that the
// agent itself ends, which is no fault of the image: the next agent pulls it.
func (m *Manager) finish(pl *pull, id string, size uint64, err error, ending bool) {
	m.mu.Lock()
	m.running--
	if m.pulls[pl.key] == pl {
		delete(m.pulls, pl.key)
	}
	if err == nil { // the last look was a moment before the last byte
		pl.done = pl.total
	}
	now := m.opts.Clock.Now()
	wake := map[types.UID]bool{}
	failed := map[backoffKey]bool{}
	var evs []event
	for _, w := range pl.waiters {
		if w.done != nil {
			w.done <- err
			continue
		}
		cs := m.containers[w.key]
		if cs == nil || cs.pull != pl {
			continue
		}
		cs.pull = nil
		wake[w.key.uid] = true
		bk := backoffKey{w.key.uid, pl.key.ref}
		switch {
		case err == nil:
			cs.pulledID = id
			delete(m.backoffs, bk)
			evs = append(evs, event{w.pod, w.container, v1.EventTypeNormal, "Pulled", fmt.Sprintf(
				"Successfully pulled image %q in %v (%v including waiting). Image size: %d bytes.", w.image,
				now.Sub(pl.started).Truncate(time.Millisecond), now.Sub(pl.queued).Truncate(time.Millisecond), size)})
		case !ending:
			if !failed[bk] { // two containers of one pod, one failure
				failed[bk] = true
				m.fail(bk, pl.key.credentials, err)
			}
			evs = append(evs, failedEvents(w.pod, w.container, w.image, err)...)
		}
	}
	pl.waiters = nil
	m.mu.Unlock()

	if err != nil && !ending && !errors.Is(err, errAbandoned) {
		m.opts.Log.Warn("image pull failed", "image", pl.key.ref, "error", err)
	}
	m.send(evs)
	m.wakeAll(wake)
	m.poke()
}

// failedEvents are the two events that kubelet writes for one failure.
func failedEvents(p *v1.Pod, container, image string, err error) []event {
	return []event{
		{p, container, v1.EventTypeWarning, "Failed", fmt.Sprintf("Failed to pull image %q: %v", image, err)},
		{p, container, v1.EventTypeWarning, "Failed", "Error: " + ReasonErrImagePull},
	}
}

// fail counts one more failure of an image for a pod; mu is held.
func (m *Manager) fail(k backoffKey, credentials string, err error) *backoff {
	now := m.opts.Clock.Now()
	delay := m.opts.Backoff
	if b := m.backoffs[k]; b != nil && now.Sub(b.retryAt) <= 2*m.opts.BackoffMax {
		delay = min(2*b.delay, m.opts.BackoffMax)
	}
	b := &backoff{
		delay: delay, retryAt: now.Add(delay), err: err.Error(), credentials: credentials,
		flip: now.Add(min(errImagePullShown, delay/2)),
	}
	m.backoffs[k] = b
	m.poke()
	return b
}

// waiting is the answer during a back-off; mu is held.
func (m *Manager) waiting(b *backoff, cs *containerState, p *v1.Pod, c *v1.Container) (State, []event) {
	if m.opts.Clock.Now().Before(b.flip) {
		return State{Reason: ReasonErrImagePull, Message: b.err, RetryAt: b.retryAt}, nil
	}
	msg := fmt.Sprintf("Back-off pulling image %q: %s: %s", c.Image, ReasonErrImagePull, b.err)
	evs := cs.once(nil, p, c, v1.EventTypeNormal, "BackOff", fmt.Sprintf("Back-off pulling image %q", c.Image))
	if len(evs) > 0 {
		evs = append(evs, event{p, c.Name, v1.EventTypeWarning, "Failed", "Error: " + ReasonBackOff})
	}
	return State{Reason: ReasonBackOff, Message: msg, RetryAt: b.retryAt}, evs
}

// Pull fetches an image for a user and waits for it. policy Never only looks,
// IfNotPresent (and "") pulls what lacks, Always pulls. progress may be nil; it
// is called from this call, at least once when something is pulled. Errors:
// errdefs.ErrInvalid for a name, errdefs.ErrNotFound for Never, else the
// runtime's. Ending ctx ends the pull when nobody else waits for it.
func (m *Manager) Pull(ctx context.Context, image string, policy v1.PullPolicy, progress func(Progress)) error {
	ref, err := Normalize(image)
	if err != nil {
		return err
	}
	if policy != v1.PullAlways {
		_, err := m.opts.Runtime.ImageStatus(ctx, ref)
		if err == nil {
			return nil
		}
		if !errors.Is(err, errdefs.ErrNotFound) || policy == v1.PullNever {
			return fmt.Errorf("inspect image %s: %w", ref, err)
		}
	}
	if progress == nil {
		progress = func(Progress) {}
	}
	w := &waiter{news: make(chan struct{}, 1), done: make(chan error, 1)}
	auths, _, err := m.credentials(nil, ref)
	if err != nil {
		return err
	}
	m.mu.Lock()
	pl := m.join(ref, auths, w)
	m.mu.Unlock()
	show := func() {
		m.mu.Lock()
		p := pl.progress()
		m.mu.Unlock()
		progress(p)
	}
	show()
	for {
		select {
		case <-w.news:
			show()
		case err := <-w.done:
			show()
			if err != nil {
				return fmt.Errorf("pull image %s: %w", ref, err)
			}
			return nil
		case <-ctx.Done():
			m.mu.Lock()
			m.leave(pl, func(o *waiter) bool { return o == w })
			m.mu.Unlock()
			return fmt.Errorf("pull image %s: %w", ref, context.Cause(ctx))
		}
	}
}

func (m *Manager) wakeAll(set map[types.UID]bool) {
	for _, uid := range sortedUIDs(set) {
		m.opts.Wake(uid)
	}
}

func sortedUIDs(set map[types.UID]bool) []types.UID {
	uids := make([]types.UID, 0, len(set))
	for uid := range set {
		if uid != "" { // a caller of Pull has no pod
			uids = append(uids, uid)
		}
	}
	slices.Sort(uids)
	return uids
}

func compareKeys(a, b pullKey) int {
	return cmp.Or(cmp.Compare(a.ref, b.ref), cmp.Compare(a.credentials, b.credentials))
}

// fingerprint tells sets of credentials apart without keeping them in a key.
func fingerprint(auths []runtime.Auth) string {
	if len(auths) == 0 {
		return ""
	}
	h := sha256.New()
	for _, a := range auths {
		fmt.Fprintf(h, "%q", []string{a.Username, a.Password, a.Encoded, a.ServerAddress, a.IdentityToken, a.RegistryToken})
	}
	return hex.EncodeToString(h.Sum(nil))
}

// registryOf is the host of a normalised reference.
func registryOf(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.Domain(named)
}
