package services

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
)

// Where nobody serves Services they have no addresses, and get the same ones
// again later.
func TestUnserved(t *testing.T) {
	dir := t.TempDir()
	r := newRig(t, dir)
	const web = `{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 80}]}}`
	r.apply(web)
	var served string
	addresses := func() string {
		s, _ := r.service("web")
		served = fmt.Sprint(s.Spec.ClusterIP, s.Spec.ClusterIPs, s.Spec.Ports, s.Status.LoadBalancer.String())
		return s.Spec.ClusterIP
	}
	is := func(what, problem string, given bool) {
		t.Helper()
		r.eventually(what, func() error {
			if _, rec := r.service("web"); (addresses() != "") != given || rec.Problem != problem {
				return fmt.Errorf("%s, problem %q", served, rec.Problem)
			}
			return nil
		})
	}
	is("it is served", "", true)
	before := served
	r.stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = Unserved{Store: r.store, Changes: r.store, Reason: "not served: none", Log: slog.New(slog.DiscardHandler)}.Run(ctx)
	}()
	is("it is not served", "not served: none", false)
	r.apply(web + "\n---\n" + `{apiVersion: v1, kind: Service, metadata: {name: other}, spec: {ports: [{port: 80}]}}`)
	r.eventually("nor is one that comes", func() error {
		if s, rec := r.service("other"); s.Spec.ClusterIP != "" || rec.Problem == "" {
			return fmt.Errorf("%s, problem %q", s.Spec.ClusterIP, rec.Problem)
		}
		return nil
	})
	cancel()
	<-done
	r = newRig(t, dir)
	is("before the folder is read, nothing is", "", true)
	if served != before {
		t.Errorf("%s, before that %s", served, before)
	}
}
