package services

//lint:file-ignore SA1019 Endpoints are deprecated, and still what people write by hand.

import (
	"cmp"
	"reflect"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/dns"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// Service is a Service of the store.
type Service struct {
	// Want is what its manifest says, with defaults.
	Want *v1.Service
	// Before is how it was served before the agent restarted; nil if it was not.
	Before *v1.Service
	// Order grows from one Service to the next: who came first.
	Order uint64
}

// Desired is all that there is at one moment. Objects are told apart by
// identity: a changed one is a new one.
type Desired struct {
	Services  []Service
	Slices    []*discoveryv1.EndpointSlice // of the user
	Endpoints []*v1.Endpoints              // of the user
	Pods      []*v1.Pod
}

// entry is one Service and what came of it.
type entry struct {
	want   *v1.Service
	order  uint64
	served *v1.Service // nil while it cannot be
	err    error
	slices []*discoveryv1.EndpointSlice
	// endpoints is the Endpoints object of a Service with a selector.
	endpoints *v1.Endpoints
}

// state is what was made of the last Desired.
type state struct {
	place     Place
	clock     func() time.Time
	allocator *allocator
	services  map[pod.Key]*entry
	pods      map[types.UID]*v1.Pod
	slices    map[pod.Key]*discoveryv1.EndpointSlice
	endpoints map[pod.Key]*v1.Endpoints
}

func newState(p Pools, at Place, clock func() time.Time) *state {
	return &state{
		place: at, clock: clock, allocator: newAllocator(p), services: map[pod.Key]*entry{}, pods: map[types.UID]*v1.Pod{},
		slices: map[pod.Key]*discoveryv1.EndpointSlice{}, endpoints: map[pod.Key]*v1.Endpoints{},
	}
}

// changes are objects that came, changed and went. Of an object that went, the
// last version is given.
type changes struct {
	upserted, deleted []any
	// made and withdrawn are those of them that are endpoints made here.
	made, withdrawn []manifest.Resource
	// resolved are Services that are served otherwise than before, or have
	// another problem.
	resolved []*entry
}

func (c *changes) make(o manifest.Resource) {
	c.upserted, c.made = append(c.upserted, o), append(c.made, o)
}

func (c *changes) withdraw(o manifest.Resource) {
	c.deleted, c.withdrawn = append(c.deleted, o), append(c.withdrawn, o)
}

func (c changes) any() bool { return len(c.upserted)+len(c.deleted)+len(c.resolved) > 0 }

// update takes over what there is now. It looks at all of it and works on what
// is different.
func (s *state) update(d Desired) (c changes) {
	dirty := s.updateServices(d.Services, &c)
	s.updatePods(d.Pods, dirty)
	pass(s.slices, d.Slices, &c)
	for key, e := range s.services {
		if slices.ContainsFunc(e.slices, func(ours *discoveryv1.EndpointSlice) bool { return s.slices[pod.KeyOf(ours)] != nil }) {
			dirty[key] = true // the user's has the name now
		}
	}
	for _, key := range sortedKeys(dirty) {
		s.follow(s.services[key], d.Pods, &c)
	}
	pass(s.endpoints, slices.DeleteFunc(slices.Clone(d.Endpoints), func(o *v1.Endpoints) bool { return s.followsPods(pod.KeyOf(o)) }), &c)
	return c
}

// followsPods says that the endpoints of the Service of that name are pods: an
// Endpoints object of the user's counts for nothing then.
func (s *state) followsPods(key pod.Key) bool {
	e := s.services[key]
	return e != nil && e.endpoints != nil
}

// updateServices gives the Services what they need and returns those whose
// endpoints have to be looked at. Who had something before goes first, then
// who was accepted first.
func (s *state) updateServices(all []Service, c *changes) map[pod.Key]bool {
	dirty, seen := map[pod.Key]bool{}, make(map[pod.Key]bool, len(all))
	var todo []*entry
	wanted, before := newClaims(), map[*entry]*v1.Service{}
	for _, in := range all {
		key := pod.KeyOf(in.Want)
		seen[key] = true
		wanted.add(in.Want)
		e := s.services[key]
		if e == nil {
			e = &entry{}
			s.services[key] = e
			before[e] = in.Before
		} else {
			before[e] = e.served
		}
		if e.want != in.Want || e.err != nil {
			e.want, e.order = in.Want, in.Order
			todo = append(todo, e)
		}
	}
	for key, e := range s.services {
		if !seen[key] {
			s.remove(key, e, c)
		}
	}
	slices.SortStableFunc(todo, func(a, b *entry) int {
		return cmp.Or(boolCompare(before[a] == nil, before[b] == nil), cmp.Compare(a.order, b.order), compareKeys(pod.KeyOf(a.want), pod.KeyOf(b.want)))
	})
	for _, e := range todo {
		if s.resolve(e, before[e], wanted, c) {
			dirty[pod.KeyOf(e.want)] = true
		}
	}
	return dirty
}

// resolve reports whether the Service is served otherwise now.
func (s *state) resolve(e *entry, before *v1.Service, wanted claims, c *changes) bool {
	served, err := s.allocator.assign(e.want, before, wanted)
	news := !reflect.DeepEqual(served, e.served)
	if news || !sameError(err, e.err) {
		c.resolved = append(c.resolved, e)
	}
	e.err = err
	if !news {
		return false
	}
	switch {
	case served != nil:
		c.upserted = append(c.upserted, served)
	case e.served != nil:
		c.deleted = append(c.deleted, e.served)
	}
	e.served = served
	return true
}

func (s *state) remove(key pod.Key, e *entry, c *changes) {
	s.allocator.release(key)
	delete(s.services, key)
	if e.served != nil {
		c.deleted = append(c.deleted, e.served)
	}
	s.replaceEndpoints(e, nil, nil, c)
}

// updatePods marks the Services whose endpoints a changed pod is or was.
func (s *state) updatePods(pods []*v1.Pod, dirty map[pod.Key]bool) {
	now := make(map[types.UID]*v1.Pod, len(pods))
	var changed []*v1.Pod
	for _, p := range pods {
		now[p.UID] = p
		if old := s.pods[p.UID]; old != p {
			changed = append(changed, p)
			if old != nil {
				changed = append(changed, old)
			}
		}
	}
	for uid, p := range s.pods {
		if now[uid] == nil {
			changed = append(changed, p)
		}
	}
	s.pods = now
	for key, e := range s.services {
		if !dirty[key] && slices.ContainsFunc(changed, func(p *v1.Pod) bool { return selects(e.want, p) }) {
			dirty[key] = true
		}
	}
}

// follow makes the endpoints of a Service anew.
func (s *state) follow(e *entry, pods []*v1.Pod, c *changes) {
	if e.served == nil || len(e.served.Spec.Selector) == 0 || e.served.Spec.Type == v1.ServiceTypeExternalName {
		s.replaceEndpoints(e, nil, nil, c)
		return
	}
	mine := slices.DeleteFunc(slices.Clone(pods), func(p *v1.Pod) bool { return !selects(e.served, p) })
	all := endpointSlices(e.served, mine, s.place, func(name string) bool {
		return s.slices[pod.Key{Namespace: e.served.Namespace, Name: name}] != nil
	})
	s.replaceEndpoints(e, all, endpointsObject(e.served, all), c)
}

func (s *state) replaceEndpoints(e *entry, all []*discoveryv1.EndpointSlice, endpoints *v1.Endpoints, c *changes) {
	for i, now := range all {
		old := findSlice(e.slices, now.Name)
		if old != nil {
			now.Annotations = old.Annotations
		}
		if reflect.DeepEqual(old, now) {
			all[i] = old
			continue
		}
		// From then on the proxy measures how long it took.
		now.Annotations = map[string]string{v1.EndpointsLastChangeTriggerTime: s.clock().UTC().Format(time.RFC3339Nano)}
		c.make(now)
	}
	for _, old := range e.slices {
		if findSlice(all, old.Name) == nil {
			c.withdraw(old)
		}
	}
	switch {
	case reflect.DeepEqual(endpoints, e.endpoints):
		endpoints = e.endpoints
	case endpoints != nil:
		c.make(endpoints)
	default:
		c.withdraw(e.endpoints)
	}
	e.slices, e.endpoints = all, endpoints
}

func findSlice(all []*discoveryv1.EndpointSlice, name string) *discoveryv1.EndpointSlice {
	for _, s := range all {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// pass hands the user's own objects on as they are.
func pass[T interface {
	comparable
	GetNamespace() string
	GetName() string
}](known map[pod.Key]T, now []T, c *changes) {
	seen := make(map[pod.Key]bool, len(now))
	for _, o := range now {
		key := pod.Key{Namespace: o.GetNamespace(), Name: o.GetName()}
		seen[key] = true
		if known[key] != o {
			known[key] = o
			c.upserted = append(c.upserted, o)
		}
	}
	for key, o := range known {
		if !seen[key] {
			delete(known, key)
			c.deleted = append(c.deleted, o)
		}
	}
}

// names is all that the DNS server has to know.
func (s *state) names() dns.Snapshot {
	byService := map[pod.Key][]*discoveryv1.EndpointSlice{}
	for key, slice := range s.slices {
		owner := pod.Key{Namespace: key.Namespace, Name: slice.Labels[discoveryv1.LabelServiceName]}
		byService[owner] = append(byService[owner], slice)
	}
	var out dns.Snapshot
	for key, e := range s.services {
		if e.served != nil {
			out.Services = append(out.Services, name(e.served, slices.Concat(e.slices, byService[key]), s.endpoints[key]))
		}
	}
	return out
}

func sortedKeys(set map[pod.Key]bool) []pod.Key {
	out := make([]pod.Key, 0, len(set))
	for k := range set {
		out = append(out, k)
	}
	slices.SortFunc(out, compareKeys)
	return out
}

func compareKeys(a, b pod.Key) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func sameError(a, b error) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Error() == b.Error()
}
