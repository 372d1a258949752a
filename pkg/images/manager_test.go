package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

const app = "example.org/app:1"

func TestPresentImage(t *testing.T) {
	bubble(t, func(t *testing.T, r *registry) {
		r.local[app] = "sha256:a"
		m := r.manager()
		for _, policy := range []v1.PullPolicy{v1.PullIfNotPresent, v1.PullNever, ""} {
			if s := ask(m, onePod("p"+string(policy), app, policy)); !s.Ready || s.ID != "sha256:a" {
				t.Errorf("policy %q: %+v", policy, s)
			}
		}
		if len(r.pulls) > 0 {
			t.Errorf("pulled: %v", r.pulls)
		}
		if e := r.said("already present"); len(e) != 3 {
			t.Errorf("events %v", e)
		}
	})
}

func TestMissingImageIsPulledOnceForAll(t *testing.T) {
	bubble(t, func(t *testing.T, r *registry) {
		r.remote[app] = remote{id: "sha256:a", size: 100, bytes: 10}
		m := r.manager()
		a, b := onePod("a", app, v1.PullIfNotPresent), onePod("b", app, v1.PullIfNotPresent)
		if s := ask(m, a); s.Ready || s.Reason != ReasonPulling {
			t.Errorf("%+v", s)
		}
		ask(m, b)
		settle(5700 * time.Millisecond)
		if s := ask(m, b); s.Message != `Pulling image "example.org/app:1": 50% (50 of 100 bytes)` || s.Progress.Done != 50 {
			t.Errorf("half way: %+v", s)
		}
		if p := m.Pulls(); len(p) != 1 || p[0].Ref != app || p[0].Total != 100 {
			t.Errorf("pulls: %+v", p)
		}
		settle(6 * time.Second)
		for _, p := range []*v1.Pod{a, b} {
			if r.woken(p) == 0 {
				t.Errorf("%s was not told", p.Name)
			}
			if s := ask(m, p); !s.Ready {
				t.Errorf("%s: %+v", p.Name, s)
			}
		}
		if len(r.pulls) != 1 {
			t.Errorf("pulls: %v", r.pulls)
		}
		if e := r.said("Successfully pulled"); len(e) != 2 || !strings.Contains(e[0], "in 10s (10s including waiting). Image size: 7 bytes.") {
			t.Errorf("events %v", e)
		}
	})
}

func TestAlwaysPullsOncePerStart(t *testing.T) {
	bubble(t, func(t *testing.T, r *registry) {
		r.local[app] = "sha256:old"
		r.remote[app] = remote{id: "sha256:new", size: 1, bytes: 1}
		m := r.manager()
		p := onePod("p", app, v1.PullAlways)
		ask(m, p)
		settle(2 * time.Second)
		for range 3 {
			if s := ask(m, p); !s.Ready || s.ID != "sha256:new" {
				t.Fatalf("%+v", s)
			}
		}
		if len(r.pulls) != 1 {
			t.Errorf("pulls for one start: %v", r.pulls)
		}
		if s := m.Request(t.Context(), p, &p.Spec.Containers[0], 1); s.Ready {
			t.Errorf("the next start did not pull: %+v", s)
		}
	})
}

func TestNeverWaitsForSomebodyElse(t *testing.T) {
	bubble(t, func(t *testing.T, r *registry) {
		m := r.manager()
		p := onePod("p", app, v1.PullNever)
		s := ask(m, p)
		if s.Reason != ReasonNeverPull || !s.RetryAt.After(time.Now()) {
			t.Errorf("%+v", s)
		}
		ask(m, p)
		if e := r.said(ReasonNeverPull); len(e) != 1 {
			t.Errorf("events %v", e)
		}
		r.local[app] = "sha256:a"
		if s := ask(m, p); !s.Ready || len(r.pulls) > 0 {
			t.Errorf("%+v, pulls %v", s, r.pulls)
		}
	})
}

func TestInvalidName(t *testing.T) {
	bubble(t, func(t *testing.T, r *registry) {
		s := ask(r.manager(), onePod("p", "UPPER/case::x", v1.PullIfNotPresent))
		if s.Reason != ReasonInvalidName || !s.RetryAt.IsZero() || len(r.pulls) > 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestBackOff: 10 s doubling to 300 s; ErrImagePull shows for half of the wait,
// at most 5 s; who waits is woken when either ends.
func TestBackOff(t *testing.T) {
	bubble(t, func(t *testing.T, r *registry) {
		m := r.manager()
		p := onePod("p", app, v1.PullIfNotPresent)
		for i, want := range []time.Duration{10, 20, 40, 80, 160, 300, 300} {
			want *= time.Second
			ask(m, p) // starts the pull, which fails at once
			s := ask(m, p)
			if s.Reason != ReasonErrImagePull || time.Until(s.RetryAt) != want {
				t.Fatalf("failure %d: %s, again in %v, want %v", i, s.Reason, time.Until(s.RetryAt), want)
			}
			woken := r.woken(p)
			settle(5 * time.Second)
			if s := ask(m, p); s.Reason != ReasonBackOff || !strings.HasPrefix(s.Message, `Back-off pulling image "example.org/app:1": ErrImagePull: `) {
				t.Errorf("failure %d, after 5 s: %+v", i, s)
			}
			settle(time.Until(s.RetryAt))
			if now := r.woken(p); now != woken+2 {
				t.Errorf("failure %d: woken %d times, want once for each change", i, now-woken)
			}
			if len(r.pulls) != i+1 {
				t.Errorf("failure %d: pulls %v", i, r.pulls)
			}
		}
		r.remote[app] = remote{id: "sha256:a", size: 1, bytes: 1}
		ask(m, p)
		settle(2 * time.Second)
		if s := ask(m, p); !s.Ready {
			t.Errorf("%+v", s)
		}
	})
}

func TestParallelAndFair(t *testing.T) {
	bubble(t, func(t *testing.T, r *registry) {
		m := r.manager(func(o *Options) { o.MaxParallel = 2 })
		greedy := onePod("greedy", "", v1.PullIfNotPresent)
		for i := range 6 {
			ref := fmt.Sprintf("example.org/big:%d", i)
			r.remote[ref] = remote{id: ref, size: 10, bytes: 1}
			greedy.Spec.Containers = append(greedy.Spec.Containers, v1.Container{Name: fmt.Sprint("c", i), Image: ref, ImagePullPolicy: v1.PullIfNotPresent})
		}
		for i := 1; i < len(greedy.Spec.Containers); i++ {
			m.Request(t.Context(), greedy, &greedy.Spec.Containers[i], 0)
		}
		synctest.Wait()
		r.remote[app] = remote{id: "sha256:a", size: 1, bytes: 1}
		small := onePod("small", app, v1.PullIfNotPresent)
		if s := ask(m, small); !strings.Contains(s.Message, "waiting for other pulls") {
			t.Errorf("%+v", s)
		}
		time.Sleep(12 * time.Second) // the first two are done, then it is small's turn
		if s := ask(m, small); !s.Ready {
			t.Errorf("the small pod waits behind the greedy one: %+v", s)
		}
		settle(time.Minute)
		if r.peak != 2 || len(r.pulls) != 7 {
			t.Errorf("at most %d at once, pulls %v", r.peak, r.pulls)
		}
	})
}

func TestStalledPullIsGivenUp(t *testing.T) {
	for name, c := range map[string]struct {
		img  remote
		want string
		took time.Duration // about
	}{
		"nothing comes":       {remote{}, "registry example.org sent nothing", 10 * time.Second},
		"stalls in the midst": {remote{size: 100}, "stalled at 0 of 100 bytes", 10 * time.Second},
		"does not unpack":     {remote{size: 4, bytes: 1, unpacks: time.Hour}, "all 4 bytes arrived but it was not unpacked", 64 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, r *registry) {
				r.remote[app] = c.img
				m := r.manager(func(o *Options) { o.ProgressDeadline = 10 * time.Second })
				p := onePod("p", app, v1.PullIfNotPresent)
				ask(m, p)
				settle(c.took - 2*time.Second)
				if s := ask(m, p); s.Reason != ReasonPulling {
					t.Errorf("given up early: %+v", s)
				}
				settle(4 * time.Second)
				if s := ask(m, p); s.RetryAt.IsZero() || !strings.Contains(s.Message, c.want) {
					t.Errorf("%+v, want %q", s, c.want)
				}
			})
		})
	}
}

func TestForgottenPodsPullEnds(t *testing.T) {
	bubble(t, func(t *testing.T, r *registry) {
		r.remote[app] = remote{} // for ever
		m := r.manager()
		a, b := onePod("a", app, v1.PullIfNotPresent), onePod("b", app, v1.PullIfNotPresent)
		ask(m, a)
		ask(m, b)
		m.Forget(a.UID)
		synctest.Wait()
		if len(m.Pulls()) != 1 {
			t.Error("a pull that b waits for was ended with a")
		}
		m.Forget(b.UID)
		synctest.Wait()
		if p := m.Pulls(); len(p) > 0 || len(r.now) > 0 {
			t.Errorf("a pull for nobody: %v", p)
		}
	})
}

func TestPullForAUser(t *testing.T) {
	bubble(t, func(t *testing.T, r *registry) {
		r.remote[app] = remote{id: "sha256:a", size: 4, bytes: 1}
		m := r.manager()
		var seen []int64
		if err := m.Pull(t.Context(), app, v1.PullIfNotPresent, func(p Progress) { seen = append(seen, p.Done) }); err != nil {
			t.Fatal(err)
		}
		if len(seen) < 3 || !slices.IsSorted(seen) || seen[len(seen)-1] != 4 {
			t.Errorf("progress %v", seen)
		}
		if err := m.Pull(t.Context(), app, v1.PullIfNotPresent, nil); err != nil || len(r.pulls) != 1 {
			t.Errorf("again: %v, pulls %v", err, r.pulls)
		}
		if err := m.Pull(t.Context(), "example.org/none:1", v1.PullNever, nil); !errors.Is(err, errdefs.ErrNotFound) {
			t.Errorf("never: %v", err)
		}
		if err := m.Pull(t.Context(), "::", v1.PullAlways, nil); !errors.Is(err, errdefs.ErrInvalid) {
			t.Errorf("name: %v", err)
		}
		r.remote["example.org/slow:1"] = remote{}
		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		if err := m.Pull(ctx, "example.org/slow:1", v1.PullAlways, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("given up by the user: %v", err)
		}
		synctest.Wait()
		if len(r.now) > 0 {
			t.Error("the pull goes on for nobody")
		}
	})
}

// TestAgentsEndIsNoFailure: a pull that the agent's own end interrupts is not
// held against the image.
func TestAgentsEndIsNoFailure(t *testing.T) {
	bubble(t, func(t *testing.T, r *registry) {
		r.remote[app] = remote{}
		m, err := New(Options{Runtime: r, Events: func(_ *v1.Pod, _, _, reason, _ string) {
			if reason == "Failed" {
				t.Error("an event says that the pull failed")
			}
		}, Wake: func(types.UID) {}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		ask(m, onePod("p", app, v1.PullIfNotPresent))
		stop()
		if err := <-done; err != nil || len(r.now) > 0 {
			t.Errorf("error %v, pulls %v", err, r.now)
		}
	})
}

func TestCredentialsAreTriedInTurn(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(file, []byte(`{"auths":{
		"example.org":{"username":"wide","password":"x"},
		"example.org/app":{"username":"narrow","password":"x"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	bubble(t, func(t *testing.T, r *registry) {
		r.remote[app] = remote{id: "sha256:a", size: 1, bytes: 1, user: "wide"}
		m := r.manager(func(o *Options) { o.Credentials = NewKeyring(file, nil) })
		p := onePod("p", app, v1.PullIfNotPresent)
		ask(m, p)
		settle(2 * time.Second)
		if s := ask(m, p); !s.Ready {
			t.Errorf("%+v", s)
		}
		if want := []string{app + " narrow", app + " wide"}; !slices.Equal(r.pulls, want) {
			t.Errorf("pulls %v, want %v", r.pulls, want)
		}
	})
}
