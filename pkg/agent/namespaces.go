package agent

import (
	"context"
	"errors"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// namespaceKind is the kind of the objects below.
const namespaceKind = "Namespace"

// sweepEvery is how soon a namespace goes that nothing is in any more.
const sweepEvery = 2 * time.Second

// usualNamespaces are those that every cluster has.
func usualNamespaces() []string {
	return []string{"default", "kube-node-lease", "kube-public", "kube-system"}
}

// keepNamespaces makes an object of every namespace that something is in, and of
// the usual ones: nobody has to make a namespace before using it. One that
// somebody did make has the name first.
func (a *agent) keepNamespaces(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := a.followNamespaces(ctx); err != nil {
			return err
		}
	}
	return nil
}

// followNamespaces returns when the store has gone on without it.
func (a *agent) followNamespaces(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	revision := a.store.Revision()
	pods, err := a.store.Watch(ctx, revision)
	if err != nil {
		return err
	}
	others, err := a.store.WatchResources(ctx, revision)
	if err != nil {
		return err
	}
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	used, gone := a.deriveNamespaces(), false
	for {
		what, namespace, open := store.Modified, "", true
		select {
		case <-sweep.C:
			if gone {
				used, gone = a.deriveNamespaces(), false
			}
		case c, ok := <-pods:
			if open = ok; ok {
				what, namespace = c.Type, c.Record.Pod.Namespace
			}
		case c, ok := <-others:
			if open = ok; ok {
				what, namespace = c.Type, c.Resource.Key().Namespace
			}
		}
		switch {
		case !open:
			return nil
		case what == store.Deleted:
			gone = true
		case namespace != "" && !used[namespace]:
			used = a.deriveNamespaces()
		}
	}
}

// deriveNamespaces makes the namespace objects what they should be, and says which
// namespaces are in use.
func (a *agent) deriveNamespaces() (used map[string]bool) {
	used = map[string]bool{}
	for _, name := range usualNamespaces() {
		used[name] = true
	}
	for _, r := range a.store.Records() {
		used[r.Pod.Namespace] = true
	}
	all, _ := a.store.Resources("")
	for _, r := range all {
		if ns := r.Object.GetNamespace(); ns != "" {
			used[ns] = true
		}
	}
	for name := range used {
		n := &v1.Namespace{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: namespaceKind},
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{v1.LabelMetadataName: name}},
			Spec:       v1.NamespaceSpec{Finalizers: []v1.FinalizerName{v1.FinalizerKubernetes}},
			Status:     v1.NamespaceStatus{Phase: v1.NamespaceActive},
		}
		if err := a.store.PutDerived(n); err != nil && !errors.Is(err, errdefs.ErrExists) {
			a.log.Warn("cannot show a namespace", "namespace", name, "err", err)
		}
	}
	for _, r := range all {
		if r.Kind() == namespaceKind && r.Source == store.SourceAgent && !used[r.Object.GetName()] {
			a.store.DeleteDerived(namespaceKind, pod.Key{Name: r.Object.GetName()})
		}
	}
	return used
}
