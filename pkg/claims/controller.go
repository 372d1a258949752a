package claims

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/events"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/store"
)

const (
	volumeKind = "PersistentVolume"
	claimKind  = "PersistentVolumeClaim"
	// retry is when what could not be written down is tried again.
	retry = 5 * time.Second
)

// Store is where objects are read and what is made of them is written.
type Store interface {
	Records() []store.Record
	Resources(kind string) ([]store.Resource, uint64)
	Resource(kind string, key pod.Key) (store.Resource, bool)
	SetResource(store.Resource) error
	PutDerived(manifest.Resource) error
	DeleteDerived(kind string, key pod.Key)
	Notify(fn func(types.UID))
	NotifyResources(fn func(kind string, key pod.Key))
}

// Options are what a Controller needs; all are required.
type Options struct {
	Store Store
	// NodeMatches says whether the node is one that a volume is for.
	NodeMatches func(*v1.NodeSelector) bool
	Event       func(about events.ObjectRef, eventType, reason, message string)
	Clock       func() time.Time
	Log         *slog.Logger
}

// Controller follows volumes and claims.
type Controller struct {
	o Options

	mu   sync.Mutex // one look at a time
	said map[pod.Key]string
}

// New starts nothing.
func New(o Options) *Controller { return &Controller{o: o, said: map[pod.Key]string{}} }

// Run follows changes until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	wake := make(chan struct{}, 1)
	poke := func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	c.o.Store.Notify(func(types.UID) { poke() })
	c.o.Store.NotifyResources(func(kind string, _ pod.Key) {
		if kind == volumeKind || kind == claimKind {
			poke()
		}
	})
	again := time.NewTicker(retry)
	defer again.Stop()
	for {
		c.Look()
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-again.C:
		}
	}
}

// Look takes over what is there now and writes down what is different. When
// somebody else was faster, the change that he made is looked at next.
func (c *Controller) Look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ephemeral()
	volumes, _ := c.o.Store.Resources(volumeKind)
	claims, _ := c.o.Store.Resources(claimKind)
	s := &state{
		volumes: map[string]*v1.PersistentVolume{}, claims: map[pod.Key]*v1.PersistentVolumeClaim{}, named: map[string]bool{},
		here: c.here, now: c.o.Clock(),
	}
	for _, r := range volumes {
		s.volumes[r.Key().Name] = r.Object.(*v1.PersistentVolume).DeepCopy()
		s.named[r.Key().Name] = r.Wanted.(*v1.PersistentVolume).Spec.ClaimRef != nil
	}
	slices.SortFunc(claims, func(a, b store.Resource) int { return int(min(1, max(-1, int64(a.Order)-int64(b.Order)))) })
	for _, r := range claims {
		s.claims[r.Key()] = r.Object.(*v1.PersistentVolumeClaim).DeepCopy()
		s.order = append(s.order, r.Key())
	}
	s.bind()
	for _, r := range volumes {
		if now := s.volumes[r.Key().Name]; !sameVolume(now, r.Object.(*v1.PersistentVolume)) {
			if r.Object = now; !c.write(r) {
				return // a claim must not count on what is not on the disk
			}
		}
	}
	for _, r := range claims {
		if now := s.claims[r.Key()]; !sameClaim(now, r.Object.(*v1.PersistentVolumeClaim)) {
			r.Object = now
			c.write(r)
		}
	}
	c.tell(s)
}

func (c *Controller) here(v *v1.PersistentVolume) bool {
	a := v.Spec.NodeAffinity
	return a == nil || a.Required == nil || c.o.NodeMatches(a.Required)
}

func (c *Controller) write(r store.Resource) bool {
	err := c.o.Store.SetResource(r)
	if err != nil && !errors.Is(err, errdefs.ErrConflict) && !errors.Is(err, errdefs.ErrNotFound) {
		c.o.Log.Warn("what became of a volume cannot be kept; will try again", "object", r.Kind()+" "+r.Key().String(), "err", err)
	}
	return err == nil
}

// tell makes an event of each note that is new.
func (c *Controller) tell(s *state) {
	said := map[pod.Key]string{}
	for _, n := range s.notes {
		said[n.key] = n.message
		if c.said[n.key] == n.message {
			continue
		}
		ref := events.ObjectRef{Kind: volumeKind, Name: n.key.Name}
		kind := v1.EventTypeWarning
		if claim := s.claims[n.key]; claim != nil {
			ref = events.ObjectRef{Kind: claimKind, Namespace: n.key.Namespace, Name: n.key.Name, UID: claim.UID}
			if n.reason == "FailedBinding" {
				kind = v1.EventTypeNormal
			}
		}
		c.o.Event(ref, kind, n.reason, n.message)
	}
	c.said = said
}

// ephemeral makes the claims of pods' ephemeral volumes, and removes those whose
// pod is gone.
func (c *Controller) ephemeral() {
	wanted := map[pod.Key]types.UID{}
	for _, r := range c.o.Store.Records() {
		p := r.Pod
		for i := range p.Spec.Volumes {
			e := p.Spec.Volumes[i].Ephemeral
			if e == nil || e.VolumeClaimTemplate == nil {
				continue
			}
			claim := &v1.PersistentVolumeClaim{
				ObjectMeta: metav1.ObjectMeta{
					Namespace: p.Namespace, Name: pod.EphemeralClaim(p, p.Spec.Volumes[i].Name),
					Labels: e.VolumeClaimTemplate.Labels, Annotations: e.VolumeClaimTemplate.Annotations,
					OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID, Controller: new(true), BlockOwnerDeletion: new(true)}},
				},
				Spec: *e.VolumeClaimTemplate.Spec.DeepCopy(),
			}
			manifest.DefaultResource(claim)
			// A pod that takes the place of another has a claim of its own.
			claim.UID = manifest.UID(string(p.UID), claim.Namespace, claim.Name, claimKind)
			wanted[pod.KeyOf(claim)] = claim.UID
			if old, ok := c.o.Store.Resource(claimKind, pod.KeyOf(claim)); ok && old.Object.GetUID() != claim.UID {
				c.o.Store.DeleteDerived(claimKind, pod.KeyOf(claim))
			}
			// One that the user has under that name stays, and is not the pod's.
			if err := c.o.Store.PutDerived(claim); err != nil && !errors.Is(err, errdefs.ErrExists) {
				c.o.Log.Warn("the claim of an ephemeral volume cannot be made", "pod", pod.Describe(p), "claim", claim.Name, "err", err)
			}
		}
	}
	claims, _ := c.o.Store.Resources(claimKind)
	for _, r := range claims {
		if r.Source == store.SourceAgent && wanted[r.Key()] == "" {
			c.o.Store.DeleteDerived(claimKind, r.Key())
		}
	}
}
