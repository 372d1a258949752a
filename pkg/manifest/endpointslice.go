package manifest

import (
	"slices"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func endpointSliceKind() kind {
	return kind{
		apiVersion: "discovery.k8s.io/v1", name: "EndpointSlice", resource: "endpointslices", empty: &discoveryv1.EndpointSlice{},
		fields: endpointSliceFields, nameRule: apivalidation.NameIsDNSSubdomain,
		complete: func(r Resource) { defaultEndpointSlice(r.(*discoveryv1.EndpointSlice)) },
		validate: func(now, old Resource) field.ErrorList {
			var was *discoveryv1.EndpointSlice
			if old != nil {
				was = old.(*discoveryv1.EndpointSlice)
			}
			return validateEndpointSlice(now.(*discoveryv1.EndpointSlice), was)
		},
	}
}

var endpointSliceFields = []typeFields{
	{of: discoveryv1.EndpointSlice{}, supported: "apiVersion kind metadata addressType endpoints ports"},
	// deprecatedTopology is dropped by the API server, too.
	{of: discoveryv1.Endpoint{}, supported: "addresses conditions hostname targetRef nodeName zone hints", serverSide: "deprecatedTopology"},
	{of: discoveryv1.EndpointConditions{}, supported: "ready serving terminating"},
	{of: discoveryv1.EndpointHints{}, supported: "forZones forNodes"},
	{of: discoveryv1.ForZone{}, supported: "name"},
	{of: discoveryv1.ForNode{}, supported: "name"},
	{of: discoveryv1.EndpointPort{}, supported: "name protocol port appProtocol"},
}

const (
	maxSliceEndpoints = 1000
	maxSliceAddresses = 100
	maxSlicePorts     = 20000
	maxSliceHints     = 8
)

func defaultEndpointSlice(s *discoveryv1.EndpointSlice) {
	for i := range s.Ports {
		p := &s.Ports[i]
		if p.Name == nil {
			p.Name = new("")
		}
		if p.Protocol == nil {
			p.Protocol = new(v1.ProtocolTCP)
		}
	}
}

func validateEndpointSlice(s, old *discoveryv1.EndpointSlice) field.ErrorList {
	errs := apivalidation.ValidateObjectMeta(&s.ObjectMeta, true, apivalidation.NameIsDNSSubdomain, field.NewPath("metadata"))
	errs = append(errs, oneOf(s.AddressType, field.NewPath("addressType"),
		discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN)...)
	errs = append(errs, validateSlicePorts(s.Ports, field.NewPath("ports"))...)
	if old != nil && old.AddressType != s.AddressType {
		errs = append(errs, field.Invalid(field.NewPath("addressType"), s.AddressType, apivalidation.FieldImmutableErrorMsg))
	}
	if old != nil && apiequality.Semantic.DeepEqual(old.Endpoints, s.Endpoints) {
		return errs
	}
	p := field.NewPath("endpoints")
	if n := len(s.Endpoints); n > maxSliceEndpoints {
		return append(errs, field.TooMany(p, n, maxSliceEndpoints))
	}
	for i := range s.Endpoints {
		errs = append(errs, validateEndpoint(&s.Endpoints[i], s.AddressType, p.Index(i))...)
	}
	return errs
}

func validateEndpoint(e *discoveryv1.Endpoint, family discoveryv1.AddressType, p *field.Path) (errs field.ErrorList) {
	at := p.Child("addresses")
	switch n := len(e.Addresses); {
	case n == 0:
		errs = append(errs, field.Required(at, "needs at least one address"))
	case n > maxSliceAddresses:
		errs = append(errs, field.TooMany(at, n, maxSliceAddresses))
	}
	for i, a := range e.Addresses {
		errs = append(errs, validateSliceAddress(a, family, at, i)...)
	}
	if e.NodeName != nil {
		errs = append(errs, invalid(p.Child("nodeName"), *e.NodeName, validation.IsDNS1123Subdomain(*e.NodeName))...)
	}
	if e.Hostname != nil {
		errs = append(errs, invalid(p.Child("hostname"), *e.Hostname, validation.IsDNS1123Label(*e.Hostname))...)
	}
	if e.Hints != nil {
		errs = append(errs, validateHints(e.Hints, p.Child("hints"))...)
	}
	return errs
}

func validateSliceAddress(a string, family discoveryv1.AddressType, list *field.Path, i int) (errs field.ErrorList) {
	p := list.Index(i)
	switch family {
	case discoveryv1.AddressTypeFQDN:
		return validation.IsFullyQualifiedDomainName(p, a)
	case discoveryv1.AddressTypeIPv4:
		errs = validation.IsValidIPForLegacyField(p, a, true, nil)
	case discoveryv1.AddressTypeIPv6:
		errs = validation.IsValidIP(p, a)
	default:
		return nil
	}
	if len(errs) > 0 {
		return errs
	}
	if isIPv6(a) != (family == discoveryv1.AddressTypeIPv6) {
		// The API server names the list.
		errs = append(errs, field.Invalid(list, a, "is no "+string(family)+" address"))
	}
	errs = append(errs, unusableAddress(p, a)...)
	return append(errs, multicastAddress(p, a)...)
}

func validateSlicePorts(ports []discoveryv1.EndpointPort, p *field.Path) (errs field.ErrorList) {
	if n := len(ports); n > maxSlicePorts {
		return field.ErrorList{field.TooMany(p, n, maxSlicePorts)}
	}
	names := map[string]bool{}
	for i := range ports {
		// Defaults have filled in name and protocol.
		port, at := &ports[i], p.Index(i)
		if *port.Name != "" {
			errs = append(errs, dnsLabel(*port.Name, at.Child("name"))...)
		}
		if names[*port.Name] {
			errs = append(errs, field.Duplicate(at.Child("name"), *port.Name))
		}
		names[*port.Name] = true
		protocols := []v1.Protocol{v1.ProtocolTCP, v1.ProtocolUDP, v1.ProtocolSCTP}
		if !slices.Contains(protocols, *port.Protocol) {
			errs = append(errs, field.NotSupported(at.Child("protocol"), *port.Protocol, protocols))
		}
		if port.AppProtocol != nil {
			errs = append(errs, invalid(at.Child("appProtocol"), *port.AppProtocol, validation.IsQualifiedName(*port.AppProtocol))...)
		}
	}
	return errs
}

func validateHints(h *discoveryv1.EndpointHints, p *field.Path) (errs field.ErrorList) {
	if n := len(h.ForZones); n > maxSliceHints {
		return field.ErrorList{field.TooMany(p.Child("forZones"), n, maxSliceHints)}
	}
	zones, nodes := map[string]bool{}, map[string]bool{}
	for i, z := range h.ForZones {
		at := p.Child("forZones").Index(i).Child("name")
		if zones[z.Name] {
			errs = append(errs, field.Duplicate(at, z.Name))
		}
		zones[z.Name] = true
		errs = append(errs, invalid(at, z.Name, validation.IsValidLabelValue(z.Name))...)
	}
	if n := len(h.ForNodes); n > maxSliceHints {
		return append(errs, field.TooMany(p.Child("forNodes"), n, maxSliceHints))
	}
	for i, z := range h.ForNodes {
		at := p.Child("forNodes").Index(i).Child("name")
		if nodes[z.Name] {
			errs = append(errs, field.Duplicate(at, z.Name))
		}
		nodes[z.Name] = true
		errs = append(errs, invalid(at, z.Name, validation.IsDNS1123Subdomain(z.Name))...)
	}
	return errs
}
