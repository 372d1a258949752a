package services

import (
	"context"
	"errors"
	"log/slog"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// Unserved stands in for a Controller where nobody serves Services: they are
// shown as they were written, without addresses that an earlier run gave them,
// and with the reason. A later Controller gives them the same again.
type Unserved struct {
	Store   Store
	Changes Changes
	Reason  string
	Log     *slog.Logger
}

// Run follows changes until ctx ends.
func (u Unserved) Run(ctx context.Context) error {
	wake := make(chan struct{}, 1)
	wake <- struct{}{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		follow(ctx, u.Changes.WatchResources, wake)
	}()
	defer func() { <-done }()
	var again <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-again:
		}
		again = nil
		if !u.look() {
			again = time.After(retry)
		}
	}
}

// look says that nothing is left to be written.
func (u Unserved) look() bool {
	done := true
	services, _ := u.Store.Resources("Service")
	for _, r := range services {
		want, ok := r.Wanted.(*v1.Service)
		if !ok || r.Problem == u.Reason {
			continue
		}
		o := r.Object.DeepCopyObject().(*v1.Service)
		want.Spec.DeepCopyInto(&o.Spec)
		want.Status.DeepCopyInto(&o.Status)
		r.Object, r.Problem = o, u.Reason
		switch err := u.Store.SetResource(r); {
		case err == nil, errors.Is(err, errdefs.ErrNotFound), errors.Is(err, errdefs.ErrConflict): // a change wakes us
		default:
			u.Log.Warn("a Service is shown with addresses that it does not have", "service", r.Key(), "err", err)
			done = false
		}
	}
	return done
}
