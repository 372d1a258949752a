// Package servicemap keeps Services and their endpoints in the form that the
// proxy needs and no larger: addresses as netip, names interned, no API
// objects. Objects come in one by one; a Snapshot is what is there now.
package servicemap

//lint:file-ignore SA1019 Endpoints are deprecated, and still what people write by hand.

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// Text is an interned string.
type Text = unique.Handle[string]

func text(s string) Text { return unique.Make(s) }

// Name is the name of an object within its namespace. Few have the same name,
// so it is not worth an entry in the table of interned strings.
type Name struct {
	Namespace Text
	Name      string
}

// NewName copies the name out of the object it is in.
func NewName(namespace, name string) Name { return Name{text(namespace), strings.Clone(name)} }

func (n Name) String() string { return n.Namespace.Value() + "/" + n.Name }

// Compare orders names by namespace and name.
func (n Name) Compare(o Name) int {
	return cmp.Or(cmp.Compare(n.Namespace.Value(), o.Namespace.Value()), cmp.Compare(n.Name, o.Name))
}

// Service is one Service that has a cluster IP, with its endpoints. Nobody
// changes it once it is in a Snapshot.
type Service struct {
	Name       Name
	ClusterIPs []netip.Addr // one for each family at most
	// ExternalIPs and LoadBalancerIPs (with ipMode VIP) are of both families.
	ExternalIPs, LoadBalancerIPs []netip.Addr
	SourceRanges                 []netip.Prefix
	Ports                        []Port
	Affinity                     uint32 // seconds, 0 is none
	InternalLocal, ExternalLocal bool
	HealthCheckNodePort          uint16 // 0 is none
}

// Port is one port of a Service.
type Port struct {
	// ID is namespace/name:port of the Service, to name it by.
	ID        string
	Name      Text
	Proto     ruleset.Proto
	Port      uint16
	NodePort  uint16     // 0 is none
	Endpoints []Endpoint // of both families, sorted by address
}

// Condition is a set of what an endpoint is.
type Condition uint8

// The conditions, as in an EndpointSlice.
const (
	Ready Condition = 1 << iota
	Serving
	Terminating
)

// Has says that all of them hold.
func (c Condition) Has(all Condition) bool { return c&all == all }

// Endpoint is one address that serves a port.
type Endpoint struct {
	Addr       netip.AddrPort
	Node       Text // "" is unknown
	Hints      *Hints
	Conditions Condition
}

// Hints say for whom an endpoint is meant.
type Hints struct{ Zones, Nodes []Text }

// Snapshot is all Services at one moment, by name.
type Snapshot []*Service

// Map holds the objects. It is safe for concurrent use.
type Map struct {
	mu        sync.Mutex
	services  map[Name]*Service // as converted, or as in current: endpoints are never read from here
	slices    map[Name][]*slice // by Service, sorted by their own names
	owners    map[Name]Name     // the Service of each slice
	endpoints map[Name][]*slice // of the Endpoints object of that name, one for each subset
	current   Snapshot
}

// New is an empty map.
func New() *Map {
	return &Map{
		services:  map[Name]*Service{},
		slices:    map[Name][]*slice{},
		owners:    map[Name]Name{},
		endpoints: map[Name][]*slice{},
	}
}

// Upsert takes a Service, an EndpointSlice or an Endpoints object in; it keeps
// nothing of the object itself. It reports whether anything of interest is
// different now. An error names the parts of the object that were left out;
// what is right about the object counts all the same.
func (m *Map) Upsert(object any) (changed bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch o := object.(type) {
	case *corev1.Service:
		name := NewName(o.Namespace, o.Name)
		s, err := fromService(o)
		if s == nil {
			delete(m.services, name)
		} else {
			m.services[name] = s
		}
		return m.refresh(name), err
	case *discoveryv1.EndpointSlice:
		service := o.Labels[discoveryv1.LabelServiceName]
		name := NewName(o.Namespace, o.Name)
		owner := NewName(o.Namespace, service)
		changed := false
		if m.owners[name] != owner { // its label is another one now
			changed = m.removeSlice(name)
		}
		if service == "" {
			return changed, fmt.Errorf("EndpointSlice %s has no label %s: it belongs to no Service", name, discoveryv1.LabelServiceName)
		}
		s, err := fromSlice(o)
		m.owners[name] = owner
		s.name = name.Name
		all := m.slices[owner]
		if i, found := find(all, s.name); found {
			all[i] = s
		} else {
			m.slices[owner] = slices.Insert(all, i, s)
		}
		return m.refresh(owner) || changed, err
	case *corev1.Endpoints:
		name := NewName(o.Namespace, o.Name)
		s, err := fromEndpoints(o)
		m.endpoints[name] = s
		return m.refresh(name), err
	}
	return false, fmt.Errorf("%T is no Service, EndpointSlice or Endpoints object", object)
}

// Delete takes an object out, by its kind, namespace and name; it reports whether anything of interest is different now.
func (m *Map) Delete(object any) (changed bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch o := object.(type) {
	case *corev1.Service:
		name := NewName(o.Namespace, o.Name)
		delete(m.services, name)
		return m.refresh(name), nil
	case *discoveryv1.EndpointSlice:
		return m.removeSlice(NewName(o.Namespace, o.Name)), nil
	case *corev1.Endpoints:
		name := NewName(o.Namespace, o.Name)
		delete(m.endpoints, name)
		return m.refresh(name), nil
	}
	return false, fmt.Errorf("%T is no Service, EndpointSlice or Endpoints object", object)
}

func (m *Map) removeSlice(name Name) (changed bool) {
	owner, known := m.owners[name]
	if !known {
		return false
	}
	delete(m.owners, name)
	all := m.slices[owner]
	if i, found := find(all, name.Name); found {
		all = slices.Delete(all, i, i+1)
	}
	if len(all) == 0 {
		delete(m.slices, owner)
	} else {
		m.slices[owner] = all
	}
	return m.refresh(owner)
}

// Snapshot is what is there now; the caller may keep it.
func (m *Map) Snapshot() Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.current)
}

// refresh makes one Service anew from its objects.
func (m *Map) refresh(name Name) (changed bool) {
	i, found := slices.BinarySearchFunc(m.current, name, func(s *Service, n Name) int { return s.Name.Compare(n) })
	base := m.services[name]
	if base == nil {
		if found {
			m.current = slices.Delete(m.current, i, i+1)
		}
		return found
	}
	s := *base
	s.Ports = slices.Clone(base.Ports)
	sources := m.sources(name)
	for p := range s.Ports {
		s.Ports[p].Endpoints = merge(&s.Ports[p], sources)
	}
	if found && m.current[i].equal(&s) {
		m.services[name] = m.current[i]
		return false
	}
	if found {
		m.current[i] = &s
	} else {
		m.current = slices.Insert(m.current, i, &s)
	}
	m.services[name] = &s // in place of the one that was converted
	return true
}

// sources are the objects that hold a Service's endpoints, in a fixed order.
// Where there are slices an Endpoints object is only their older copy.
func (m *Map) sources(name Name) []*slice {
	if all := m.slices[name]; len(all) > 0 {
		return all
	}
	return m.endpoints[name]
}

func find(all []*slice, name string) (int, bool) {
	return slices.BinarySearchFunc(all, name, func(s *slice, name string) int { return cmp.Compare(s.name, name) })
}

// merge collects one port's endpoints. An address may be there twice, while
// it moves between slices or after another pod got it: what runs is preferred
// to what terminates.
func merge(p *Port, sources []*slice) []Endpoint {
	serves := func(sp slicePort) bool { return sp.name == p.Name && sp.proto == p.Proto }
	n := 0
	for _, s := range sources {
		for _, sp := range s.ports {
			if serves(sp) {
				n += len(s.endpoints)
			}
		}
	}
	out := make([]Endpoint, 0, n)
	for _, s := range sources {
		for _, sp := range s.ports {
			if !serves(sp) {
				continue
			}
			for i := range s.endpoints {
				e := &s.endpoints[i]
				out = append(out, Endpoint{netip.AddrPortFrom(e.addr, sp.port), e.node, e.hints, e.conditions})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b Endpoint) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Conditions&Terminating, b.Conditions&Terminating))
	})
	return slices.Clip(slices.CompactFunc(out, func(a, b Endpoint) bool { return a.Addr == b.Addr }))
}

func (s *Service) equal(o *Service) bool {
	return s.Affinity == o.Affinity && s.InternalLocal == o.InternalLocal && s.ExternalLocal == o.ExternalLocal &&
		s.HealthCheckNodePort == o.HealthCheckNodePort && slices.Equal(s.ClusterIPs, o.ClusterIPs) &&
		slices.Equal(s.ExternalIPs, o.ExternalIPs) && slices.Equal(s.LoadBalancerIPs, o.LoadBalancerIPs) &&
		slices.Equal(s.SourceRanges, o.SourceRanges) && slices.EqualFunc(s.Ports, o.Ports, Port.equal)
}

func (p Port) equal(o Port) bool {
	return p.Name == o.Name && p.Proto == o.Proto && p.Port == o.Port && p.NodePort == o.NodePort &&
		slices.EqualFunc(p.Endpoints, o.Endpoints, Endpoint.equal)
}

func (e Endpoint) equal(o Endpoint) bool {
	return e.Addr == o.Addr && e.Node == o.Node && e.Conditions == o.Conditions && e.Hints.equal(o.Hints)
}

func (h *Hints) equal(o *Hints) bool {
	if h == nil || o == nil {
		return h == o
	}
	return slices.Equal(h.Zones, o.Zones) && slices.Equal(h.Nodes, o.Nodes)
}

// problems are the parts of one object that cannot be used.
type problems struct {
	object string
	errs   []error
}

func (p *problems) add(format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf(p.object+": "+format, args...))
}

func (p *problems) err() error { return errors.Join(p.errs...) }

// ForNode says that one of the hints is for that node.
func (h *Hints) ForNode(name string) bool { return contains(h.Nodes, name) }

// ForZone says that one of the hints is for that zone.
func (h *Hints) ForZone(name string) bool { return contains(h.Zones, name) }

func contains(all []Text, s string) bool {
	return slices.ContainsFunc(all, func(t Text) bool { return t.Value() == s })
}
