package manifest

//lint:file-ignore SA1019 Endpoints are deprecated, and still what people write by hand.

import (
	"net/netip"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func endpointsKind() kind {
	return kind{
		apiVersion: "v1", name: "Endpoints", resource: "endpoints", short: "ep", empty: &v1.Endpoints{}, fields: endpointsFields, nameRule: apivalidation.NameIsDNSSubdomain,
		complete: func(r Resource) { defaultEndpoints(r.(*v1.Endpoints)) }, recheckMeta: true,
		validate: func(now, old Resource) field.ErrorList {
			e := now.(*v1.Endpoints)
			if old != nil && apiequality.Semantic.DeepEqual(old.(*v1.Endpoints).Subsets, e.Subsets) {
				return nil
			}
			return validateSubsets(e.Subsets, field.NewPath("subsets"))
		},
	}
}

var endpointsFields = []typeFields{
	{of: v1.Endpoints{}, supported: "apiVersion kind metadata subsets"},
	{of: v1.EndpointSubset{}, supported: "addresses notReadyAddresses ports"},
	{of: v1.EndpointAddress{}, supported: "ip hostname nodeName targetRef"},
	{of: v1.EndpointPort{}, supported: "name port protocol appProtocol"},
	{of: v1.ObjectReference{}, supported: "kind namespace name uid apiVersion resourceVersion fieldPath"},
}

func defaultEndpoints(e *v1.Endpoints) {
	for i := range e.Subsets {
		for j := range e.Subsets[i].Ports {
			orDefault(&e.Subsets[i].Ports[j].Protocol, v1.ProtocolTCP)
		}
	}
}

func validateSubsets(subsets []v1.EndpointSubset, p *field.Path) (errs field.ErrorList) {
	for i := range subsets {
		s, at := &subsets[i], p.Index(i)
		if len(s.Addresses)+len(s.NotReadyAddresses) == 0 {
			errs = append(errs, field.Required(at, "needs addresses or notReadyAddresses"))
		}
		for j := range s.Addresses {
			errs = append(errs, validateEndpointAddress(&s.Addresses[j], at.Child("addresses").Index(j))...)
		}
		for j := range s.NotReadyAddresses {
			errs = append(errs, validateEndpointAddress(&s.NotReadyAddresses[j], at.Child("notReadyAddresses").Index(j))...)
		}
		for j := range s.Ports {
			port, at := &s.Ports[j], at.Child("ports").Index(j)
			if port.Name != "" || len(s.Ports) > 1 {
				errs = append(errs, dnsLabel(port.Name, at.Child("name"))...)
			}
			errs = append(errs, invalid(at.Child("port"), port.Port, validation.IsValidPortNum(int(port.Port)))...)
			errs = append(errs, oneOf(port.Protocol, at.Child("protocol"), v1.ProtocolTCP, v1.ProtocolUDP, v1.ProtocolSCTP)...)
			if port.AppProtocol != nil {
				errs = append(errs, invalid(at.Child("appProtocol"), *port.AppProtocol, validation.IsQualifiedName(*port.AppProtocol))...)
			}
		}
	}
	return errs
}

func validateEndpointAddress(a *v1.EndpointAddress, p *field.Path) field.ErrorList {
	errs := validation.IsValidIPForLegacyField(p.Child("ip"), a.IP, true, nil)
	if a.Hostname != "" {
		errs = append(errs, dnsLabel(a.Hostname, p.Child("hostname"))...)
	}
	if a.NodeName != nil {
		errs = append(errs, invalid(p.Child("nodeName"), *a.NodeName, validation.IsDNS1123Subdomain(*a.NodeName))...)
	}
	errs = append(errs, unusableAddress(p.Child("ip"), a.IP)...)
	return append(errs, multicastAddress(p.Child("ip"), a.IP)...)
}

// unusableAddress refuses addresses that would let who may write endpoints reach
// what listens only for the node itself (CVE-2021-25737).
func unusableAddress(p *field.Path, ip string) (errs field.ErrorList) {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return nil // which its format's check has said
	}
	a = a.Unmap().WithZone("")
	for what, is := range map[string]bool{
		"the unspecified address": a.IsUnspecified(), "a loopback address": a.IsLoopback(),
		"a link-local address": a.IsLinkLocalUnicast(), "a link-local multicast address": a.IsLinkLocalMulticast(),
	} {
		if is {
			errs = append(errs, field.Invalid(p, ip, "is "+what))
		}
	}
	return errs
}

// multicastAddress refuses what the API server lets through and no connection
// can be made to.
func multicastAddress(p *field.Path, ip string) field.ErrorList {
	a, err := netip.ParseAddr(ip)
	if err != nil || !a.Unmap().IsMulticast() || a.Unmap().IsLinkLocalMulticast() {
		return nil
	}
	return field.ErrorList{field.Invalid(p, ip, "is a multicast address")}
}
