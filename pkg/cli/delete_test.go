package cli

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// graces are the grace periods that deletions asked for; -1 for none.
func (f *fakeAgent) graces() func() []int64 {
	var all []int64
	f.extra = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodDelete {
			return false
		}
		b, err := io.ReadAll(r.Body)
		var o metav1.DeleteOptions
		if err = errors.Join(err, json.Unmarshal(b, &o)); err != nil || o.Kind != "DeleteOptions" || o.APIVersion != "v1" {
			f.t.Errorf("DELETE with %q: %v", b, err)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		all = append(all, -1)
		if o.GracePeriodSeconds != nil {
			all[len(all)-1] = *o.GracePeriodSeconds
		}
		return false
	}
	return func() []int64 {
		f.mu.Lock()
		defer f.mu.Unlock()
		return all
	}
}

func TestDeleteGrace(t *testing.T) {
	for name, tc := range map[string]struct {
		o    DeleteOptions
		want []int64
		err  string
	}{
		"the pod's own":    {DeleteOptions{GracePeriod: -1}, []int64{-1}, ""},
		"some":             {DeleteOptions{GracePeriod: 7}, []int64{7}, ""},
		"none is one":      {DeleteOptions{GracePeriod: 0}, []int64{1}, ""},
		"force":            {DeleteOptions{GracePeriod: -1, Force: true}, []int64{0}, "Warning: with --force"},
		"force after some": {DeleteOptions{GracePeriod: 7, Force: true}, nil, "error: --force means --grace-period 0"},
	} {
		t.Run(name, func(t *testing.T) {
			f, c, out, errs := newFake(t)
			graces := f.graces()
			f.put(fromSource("web", "api"))
			code := Report(errs, c.Delete(t.Context(), []string{"pod/web"}, tc.o))
			if got := graces(); !slices.Equal(got, tc.want) || code != 1-len(tc.want) || !strings.HasPrefix(errs.String(), tc.err) {
				t.Errorf("asked for %v, code %d, %q; want %v, %q", got, code, errs, tc.want, tc.err)
			}
			want := map[bool]string{false: "", true: `pod "web" deleted from default namespace` + "\n"}[tc.want != nil]
			if tc.o.Force && want != "" {
				want = strings.Replace(want, "deleted", "force deleted", 1)
			}
			if out.String() != want {
				t.Errorf("out %q, want %q", out, want)
			}
		})
	}
}

// TestDeleteWaits until each pod is gone, however it goes.
func TestDeleteWaits(t *testing.T) {
	gone := map[string]func(f *fakeAgent){
		"it ends": func(f *fakeAgent) { f.remove("default/web") },
		"it ends while others come and go": func(f *fakeAgent) {
			f.put(simplePod("default", "other", nil))
			f.remove("default/other")
			f.remove("default/web")
		},
		"another of its name has come, unseen": func(f *fakeAgent) {
			f.mu.Lock()
			defer f.mu.Unlock()
			delete(f.pods, "default/web")
			f.putLocked(fromSource("web", "api"))
			f.compacted = f.revision
			f.cond.Broadcast()
		},
	}
	for name, end := range gone {
		t.Run(name, func(t *testing.T) {
			f, c, _, _ := newFake(t)
			out := newSignalBuffer()
			c.Out = out
			f.put(fromSource("web", "api"))
			done := make(chan error, 1)
			go func() { done <- c.Delete(t.Context(), []string{"web"}, DeleteOptions{GracePeriod: -1, Wait: true}) }()
			out.lines(1)
			select {
			case err := <-done:
				t.Fatalf("it did not wait: %v", err)
			default:
			}
			end(f)
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// late is a context whose time is up when the test says so.
type late struct {
	context.Context
	done chan struct{}
}

func (l late) Done() <-chan struct{} { return l.done }

func (l late) Err() error {
	select {
	case <-l.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

func TestDeleteThatIsGivenUp(t *testing.T) {
	late := late{t.Context(), make(chan struct{})}
	interrupted, interrupt := context.WithCancel(t.Context())
	for name, tc := range map[string]struct {
		ctx  context.Context
		end  func()
		code int
		says []string
	}{
		"time is up":  {late, func() { close(late.done) }, 1, []string{"error: pod default/web has not ended yet", `"nodeagent describe pod web -n default"`}},
		"interrupted": {interrupted, interrupt, 130, nil},
	} {
		t.Run(name, func(t *testing.T) {
			f, c, _, errs := newFake(t)
			out := newSignalBuffer()
			c.Out = out
			f.put(fromSource("web", "api"))
			done := make(chan error, 1)
			go func() { done <- c.Delete(tc.ctx, []string{"web"}, DeleteOptions{GracePeriod: -1, Wait: true}) }()
			out.lines(1)
			tc.end()
			if code := Report(errs, <-done); code != tc.code || (errs.Len() == 0) != (tc.says == nil) {
				t.Errorf("code %d, %q", code, errs)
			}
			for _, want := range tc.says {
				if !strings.Contains(errs.String(), want) {
					t.Errorf("%q does not say %q", errs, want)
				}
			}
		})
	}
}
