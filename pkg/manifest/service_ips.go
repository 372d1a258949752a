package manifest

import (
	"net/netip"
	"slices"

	v1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// validateClusterIPs checks clusterIP, clusterIPs, ipFamilies and
// ipFamilyPolicy against each other.
func validateClusterIPs(s, old *v1.Service, p *field.Path) (errs field.ErrorList) {
	if s.Spec.Type == v1.ServiceTypeExternalName {
		return nil // has none, which is checked with the type
	}
	ips, at := s.Spec.ClusterIPs, p.Child("clusterIPs")
	switch {
	case s.Spec.ClusterIP != "" && len(ips) == 0: // defaults fill it in
		errs = append(errs, field.Required(at, ""))
	case s.Spec.ClusterIP == "" && len(ips) > 0:
		errs = append(errs, field.Invalid(at, ips, "must be empty without clusterIP"))
	case s.Spec.ClusterIP != "" && ips[0] != s.Spec.ClusterIP:
		errs = append(errs, field.Invalid(at, ips, "the first one must be clusterIP"))
	}
	errs = append(errs, validateFamilies(&s.Spec, p)...)

	var had []string
	if old != nil {
		had = old.Spec.ClusterIPs
	}
	wrong := false
	for i, ip := range ips {
		if i == 0 && ip == v1.ClusterIPNone {
			if len(ips) > 1 {
				wrong = true
				errs = append(errs, field.Invalid(at, ips, "None must be the only one"))
			}
			continue
		}
		bad := validation.IsValidIPForLegacyField(at.Index(i), ip, true, had)
		wrong = wrong || len(bad) > 0
		errs = append(errs, bad...)
	}
	if len(ips) > 2 {
		errs = append(errs, field.Invalid(at, ips, "one for each IP family at most"))
	}
	if wrong {
		return errs
	}
	if len(ips) > 1 && !isDualStack(ips) {
		errs = append(errs, field.Invalid(at, ips, "one for each IP family at most"))
	}
	if isHeadless(s) {
		return errs
	}
	for i := range min(len(ips), len(s.Spec.IPFamilies)) {
		if want := s.Spec.IPFamilies[i]; want == v1.IPv4Protocol && isIPv6(ips[i]) || want == v1.IPv6Protocol && !isIPv6(ips[i]) {
			errs = append(errs, field.Invalid(at.Index(i), ips[i], "is no address of ipFamilies' "+string(want)))
		}
	}
	return errs
}

func validateFamilies(spec *v1.ServiceSpec, p *field.Path) (errs field.ErrorList) {
	families := []v1.IPFamily{v1.IPv4Protocol, v1.IPv6Protocol}
	for i, f := range spec.IPFamilies {
		at := p.Child("ipFamilies").Index(i)
		if !slices.Contains(families, f) {
			errs = append(errs, field.NotSupported(at, f, families))
		}
		if slices.Contains(spec.IPFamilies[:i], f) {
			errs = append(errs, field.Duplicate(at, f))
		}
	}
	policies := []v1.IPFamilyPolicy{v1.IPFamilyPolicySingleStack, v1.IPFamilyPolicyPreferDualStack, v1.IPFamilyPolicyRequireDualStack}
	if policy := spec.IPFamilyPolicy; policy != nil && !slices.Contains(policies, *policy) {
		errs = append(errs, field.NotSupported(p.Child("ipFamilyPolicy"), *policy, policies))
	}
	return errs
}

func isIPv6(ip string) bool {
	a, err := netip.ParseAddr(ip)
	return err == nil && a.Is6() && !a.Is4In6()
}

func isDualStack(ips []string) bool {
	first := isIPv6(ips[0])
	return slices.ContainsFunc(ips, func(ip string) bool { return isIPv6(ip) != first })
}

// carryOverService keeps what was allocated, and drops what was allocated for a
// type that the Service no longer has.
func carryOverService(now, before, wanted *v1.Service) {
	spec, old := &now.Spec, &before.Spec
	hadIP, hasIP := old.Type != v1.ServiceTypeExternalName, spec.Type != v1.ServiceTypeExternalName
	switch {
	case hadIP && hasIP:
		orDefault(&spec.ClusterIP, old.ClusterIP)
		carryOverClusterIPs(spec, old)
		if len(spec.IPFamilies) == 0 {
			spec.IPFamilies = slices.Clone(old.IPFamilies)
		}
		if spec.IPFamilyPolicy == nil {
			spec.IPFamilyPolicy = old.IPFamilyPolicy
		}
	case hadIP:
		if spec.ClusterIP == old.ClusterIP && slices.Equal(spec.ClusterIPs, old.ClusterIPs) {
			spec.ClusterIP, spec.ClusterIPs = "", nil
		}
		if slices.Equal(spec.IPFamilies, old.IPFamilies) {
			spec.IPFamilies = nil
		}
		if p, o := spec.IPFamilyPolicy, old.IPFamilyPolicy; p != nil && o != nil && *p == *o {
			spec.IPFamilyPolicy = nil
		}
	}
	carryOverNodePorts(spec, old)
	switch had, has := hasHealthCheck(before), hasHealthCheck(now); {
	case had && has:
		orDefault(&spec.HealthCheckNodePort, old.HealthCheckNodePort)
	case had && spec.HealthCheckNodePort == old.HealthCheckNodePort:
		spec.HealthCheckNodePort = 0
	}
	if old.Type == v1.ServiceTypeLoadBalancer && spec.Type != v1.ServiceTypeLoadBalancer {
		if a, o := spec.AllocateLoadBalancerNodePorts, old.AllocateLoadBalancerNodePorts; a != nil && o != nil && *a == *o {
			spec.AllocateLoadBalancerNodePorts = nil
		}
		if c, o := spec.LoadBalancerClass, old.LoadBalancerClass; c != nil && o != nil && *c == *o {
			spec.LoadBalancerClass = nil
		}
	}
	if isExternal(before) && !isExternal(now) && spec.ExternalTrafficPolicy == old.ExternalTrafficPolicy {
		spec.ExternalTrafficPolicy = ""
	}
	switch {
	case spec.Type != v1.ServiceTypeLoadBalancer && old.Type == v1.ServiceTypeLoadBalancer:
		now.Status.LoadBalancer = v1.LoadBalancerStatus{}
	case spec.Type == v1.ServiceTypeLoadBalancer && len(now.Status.LoadBalancer.Ingress)+len(wanted.Status.LoadBalancer.Ingress) == 0:
		now.Status.LoadBalancer = before.Status.LoadBalancer
	}
}

// carryOverClusterIPs finds out what is meant where clusterIP and clusterIPs
// say two things: clients that know only one of them leave the other as it was.
func carryOverClusterIPs(spec, old *v1.ServiceSpec) {
	same := slices.Equal(spec.ClusterIPs, old.ClusterIPs)
	// Defaults made a list of one of a clusterIP that stood alone.
	alone := len(spec.ClusterIPs) == 0 || len(spec.ClusterIPs) == 1 && spec.ClusterIPs[0] == spec.ClusterIP &&
		(spec.IPFamilyPolicy == nil || *spec.IPFamilyPolicy != v1.IPFamilyPolicySingleStack)
	switch {
	case spec.ClusterIP == old.ClusterIP && alone:
		spec.ClusterIPs = slices.Clone(old.ClusterIPs)
	case spec.ClusterIP == old.ClusterIP || !same:
	case spec.ClusterIP == "":
		spec.ClusterIPs = nil
	default:
		spec.ClusterIPs = []string{spec.ClusterIP}
	}
}

func hasNodePorts(spec *v1.ServiceSpec) bool {
	return spec.Type == v1.ServiceTypeNodePort || spec.Type == v1.ServiceTypeLoadBalancer
}

// carryOverNodePorts keeps node ports by the name of their port.
func carryOverNodePorts(spec, old *v1.ServiceSpec) {
	if !hasNodePorts(old) {
		return
	}
	type numbered struct {
		protocol v1.Protocol
		port     int32
	}
	byName, was, used := map[string]int32{}, map[int32]bool{}, map[numbered]bool{}
	for _, p := range old.Ports {
		byName[p.Name], was[p.NodePort] = p.NodePort, true
	}
	fresh := false
	for _, p := range spec.Ports {
		used[numbered{p.Protocol, p.NodePort}] = true
		fresh = fresh || p.NodePort != 0 && !was[p.NodePort]
	}
	for i := range spec.Ports {
		p := &spec.Ports[i]
		switch {
		case !hasNodePorts(spec) && !fresh:
			p.NodePort = 0
		case hasNodePorts(spec) && p.NodePort == 0:
			if kept := byName[p.Name]; !used[numbered{p.Protocol, kept}] {
				p.NodePort = kept
				used[numbered{p.Protocol, kept}] = true
			}
		}
	}
}

// validateServiceUpdate adds what may not change. An address may be added for
// the second family, or given back; the first one stays.
func validateServiceUpdate(s, old *v1.Service) (errs field.ErrorList) {
	p := field.NewPath("spec")
	if s.Spec.Type != v1.ServiceTypeExternalName && old.Spec.Type != v1.ServiceTypeExternalName {
		wasHeadless, headless := isHeadless(old), isHeadless(s)
		if !wasHeadless || !headless {
			errs = append(errs, keepsFirst(s.Spec.ClusterIPs, old.Spec.ClusterIPs, p.Child("clusterIPs"), s.Spec.IPFamilyPolicy, p)...)
		}
		if !wasHeadless && !headless {
			errs = append(errs, keepsFirstFamily(s, old, p)...)
		}
	}
	if s.Spec.Type == v1.ServiceTypeLoadBalancer && old.Spec.Type == v1.ServiceTypeLoadBalancer {
		if a, b := s.Spec.LoadBalancerClass, old.Spec.LoadBalancerClass; (a == nil) != (b == nil) || a != nil && *a != *b {
			errs = append(errs, field.Invalid(p.Child("loadBalancerClass"), a, apivalidation.FieldImmutableErrorMsg))
		}
	}
	if hasHealthCheck(old) && hasHealthCheck(s) && s.Spec.HealthCheckNodePort != old.Spec.HealthCheckNodePort {
		errs = append(errs, field.Forbidden(p.Child("healthCheckNodePort"), apivalidation.FieldImmutableErrorMsg))
	}
	return append(errs, validateService(s, old)...)
}

const needsSingleStack = "must be SingleStack to give back the second cluster IP"

func keepsFirst(now, old []string, at *field.Path, policy *v1.IPFamilyPolicy, p *field.Path) (errs field.ErrorList) {
	switch {
	case len(now) == len(old):
		for i := range old {
			if now[i] != old[i] {
				errs = append(errs, field.Invalid(at.Index(i), now, apivalidation.FieldImmutableErrorMsg))
			}
		}
		return errs
	case len(now) == 0:
		return field.ErrorList{field.Invalid(at.Index(0), now, "the first cluster IP cannot be given back")}
	case len(old) > 0 && now[0] != old[0]:
		errs = append(errs, field.Invalid(at.Index(0), now, apivalidation.FieldImmutableErrorMsg))
	}
	if len(now) == 1 && len(old) > 1 && (policy == nil || *policy != v1.IPFamilyPolicySingleStack) {
		errs = append(errs, field.Invalid(p.Child("ipFamilyPolicy"), policy, needsSingleStack))
	}
	return errs
}

func keepsFirstFamily(s, old *v1.Service, p *field.Path) (errs field.ErrorList) {
	at, now, was := p.Child("ipFamilies").Index(0), s.Spec.IPFamilies, old.Spec.IPFamilies
	if len(now) == len(was) {
		for i := range was {
			if now[i] != was[i] {
				errs = append(errs, field.Invalid(at, now, apivalidation.FieldImmutableErrorMsg))
			}
		}
		return errs
	}
	if len(now) < len(was) && len(s.Spec.ClusterIPs) == 0 {
		errs = append(errs, field.Invalid(at, now, "the first IP family cannot be given back"))
	}
	if len(now) > 0 && len(was) > 0 && now[0] != was[0] {
		errs = append(errs, field.Invalid(at, now, apivalidation.FieldImmutableErrorMsg))
	}
	if policy := s.Spec.IPFamilyPolicy; len(now) == 1 && len(was) > 1 && (policy == nil || *policy != v1.IPFamilyPolicySingleStack) {
		errs = append(errs, field.Invalid(p.Child("ipFamilyPolicy"), policy, needsSingleStack))
	}
	return errs
}
