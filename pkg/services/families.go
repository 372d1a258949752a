package services

import (
	"net/netip"
	"slices"

	v1 "k8s.io/api/core/v1"
)

// families fills in spec.ipFamilies and ipFamilyPolicy as the API server does:
// from the cluster IPs, the families or the policy that the Service names, else
// one of the first service range's family.
func (t *attempt) families() error {
	s := &t.out.Spec
	if s.Type == v1.ServiceTypeExternalName {
		s.IPFamilies, s.IPFamilyPolicy = nil, nil
		return nil
	}
	headless := s.ClusterIP == v1.ClusterIPNone
	alone := headless && len(s.Selector) == 0 // its endpoints are its own business
	families, err := t.askedFamilies(alone)
	if err != nil {
		return err
	}
	policy := v1.IPFamilyPolicySingleStack
	switch {
	case s.IPFamilyPolicy != nil:
		policy = *s.IPFamilyPolicy
	case alone:
		policy = v1.IPFamilyPolicyRequireDualStack
	}
	if len(families) == 0 {
		families = []v1.IPFamily{familyOf(t.pools.ServiceCIDRs[0].Addr())}
	}
	other := v1.IPv6Protocol
	if families[0] == other {
		other = v1.IPv4Protocol
	}
	_, can := t.cidr(other)
	can = can || alone
	switch {
	case policy == v1.IPFamilyPolicySingleStack && len(families) > 1:
		return wrong("spec.ipFamilyPolicy", "two families need RequireDualStack or PreferDualStack")
	case policy == v1.IPFamilyPolicyRequireDualStack && !can:
		return wrong("spec.ipFamilyPolicy", "this node has no service range of %s: give --service-cidr a second one", other)
	case policy != v1.IPFamilyPolicySingleStack && len(families) == 1 && can:
		families = append(families, other)
	}
	s.IPFamilies, s.IPFamilyPolicy = families, &policy
	return nil
}

// askedFamilies are those that the Service names, by its cluster IPs or as such.
func (t *attempt) askedFamilies(any bool) ([]v1.IPFamily, error) {
	s := &t.out.Spec
	var families []v1.IPFamily
	for _, ip := range explicitIPs(t.out) {
		if a, err := netip.ParseAddr(ip); err == nil { // "None" is none
			families = append(families, familyOf(a))
		}
	}
	for i, f := range s.IPFamilies {
		if i < len(families) && families[i] != f {
			return nil, wrong("spec.ipFamilies", "%s is not the family of cluster IP %s", f, explicitIPs(t.out)[i])
		}
	}
	if len(s.IPFamilies) > len(families) {
		families = slices.Clone(s.IPFamilies)
	}
	for _, f := range families {
		if _, ok := t.cidr(f); !ok && !any {
			return nil, wrong("spec.ipFamilies", "this node has no service range of %s: give --service-cidr one", f)
		}
	}
	return families, nil
}
