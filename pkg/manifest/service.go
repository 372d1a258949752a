package manifest

import (
	"net/netip"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func serviceKind() kind {
	return kind{
		apiVersion: "v1", name: "Service", resource: "services", short: "svc", empty: &v1.Service{}, fields: serviceFields, nameRule: apivalidation.NameIsDNSLabel,
		complete: func(r Resource) { defaultService(r.(*v1.Service)) },
		carryOver: func(now, before, wanted Resource) {
			carryOverService(now.(*v1.Service), before.(*v1.Service), wanted.(*v1.Service))
		},
		validate: func(now, old Resource) field.ErrorList {
			if old == nil {
				return validateService(now.(*v1.Service), nil)
			}
			return validateServiceUpdate(now.(*v1.Service), old.(*v1.Service))
		},
	}
}

// A Service's status counts: without a cloud, a manifest may say which addresses
// a load balancer has.
var serviceFields = []typeFields{
	{of: v1.Service{}, supported: "apiVersion kind metadata spec status"},

	{of: v1.ServiceSpec{},
		supported: "ports selector clusterIP clusterIPs type externalIPs sessionAffinity loadBalancerIP " +
			"loadBalancerSourceRanges externalName externalTrafficPolicy healthCheckNodePort " +
			"publishNotReadyAddresses sessionAffinityConfig ipFamilies ipFamilyPolicy " +
			"allocateLoadBalancerNodePorts loadBalancerClass internalTrafficPolicy trafficDistribution"},

	{of: v1.ServicePort{}, supported: "name protocol appProtocol port targetPort nodePort"},
	{of: v1.SessionAffinityConfig{}, supported: "clientIP"},
	{of: v1.ClientIPConfig{}, supported: "timeoutSeconds"},
	{of: v1.ServiceStatus{}, supported: "loadBalancer", serverSide: "conditions"},
	{of: v1.LoadBalancerStatus{}, supported: "ingress"},
	{of: v1.LoadBalancerIngress{}, supported: "ip hostname ipMode", serverSide: "ports"},
}

func defaultService(s *v1.Service) {
	spec := &s.Spec
	orDefault(&spec.SessionAffinity, v1.ServiceAffinityNone)
	switch c := spec.SessionAffinityConfig; {
	case spec.SessionAffinity == v1.ServiceAffinityNone:
		spec.SessionAffinityConfig = nil
	case spec.SessionAffinity == v1.ServiceAffinityClientIP && (c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil):
		spec.SessionAffinityConfig = &v1.SessionAffinityConfig{
			ClientIP: &v1.ClientIPConfig{TimeoutSeconds: new(v1.DefaultClientIPServiceAffinitySeconds)}}
	}
	orDefault(&spec.Type, v1.ServiceTypeClusterIP)
	for i := range spec.Ports {
		p := &spec.Ports[i]
		orDefault(&p.Protocol, v1.ProtocolTCP)
		if p.TargetPort == intstr.FromInt32(0) || p.TargetPort == intstr.FromString("") {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	if isExternal(s) {
		orDefault(&spec.ExternalTrafficPolicy, v1.ServiceExternalTrafficPolicyCluster)
	}
	known := slices.Contains([]v1.ServiceType{v1.ServiceTypeClusterIP, v1.ServiceTypeNodePort, v1.ServiceTypeLoadBalancer}, spec.Type)
	if spec.InternalTrafficPolicy == nil && known {
		spec.InternalTrafficPolicy = new(v1.ServiceInternalTrafficPolicyCluster)
	}
	if spec.Type == v1.ServiceTypeLoadBalancer {
		if spec.AllocateLoadBalancerNodePorts == nil {
			spec.AllocateLoadBalancerNodePorts = new(true)
		}
		for i := range s.Status.LoadBalancer.Ingress {
			if in := &s.Status.LoadBalancer.Ingress[i]; in.IP != "" && in.IPMode == nil {
				in.IPMode = new(v1.LoadBalancerIPModeVIP)
			}
		}
	}
	// Not a default, but done before anybody looks: the two always agree.
	if spec.ClusterIP != "" && len(spec.ClusterIPs) == 0 {
		spec.ClusterIPs = []string{spec.ClusterIP}
	}
}

// isExternal says that a Service has addresses outside the cluster's.
func isExternal(s *v1.Service) bool {
	return s.Spec.Type == v1.ServiceTypeLoadBalancer || s.Spec.Type == v1.ServiceTypeNodePort ||
		s.Spec.Type == v1.ServiceTypeClusterIP && len(s.Spec.ExternalIPs) > 0
}

// hasHealthCheck says that load balancers ask a node port whether there are
// endpoints.
func hasHealthCheck(s *v1.Service) bool {
	return s.Spec.Type == v1.ServiceTypeLoadBalancer && s.Spec.ExternalTrafficPolicy == v1.ServiceExternalTrafficPolicyLocal
}

func isHeadless(s *v1.Service) bool {
	return len(s.Spec.ClusterIPs) == 1 && s.Spec.ClusterIPs[0] == v1.ClusterIPNone
}

func validateService(s, old *v1.Service) field.ErrorList {
	p, spec := field.NewPath("spec"), &s.Spec
	errs := validateTopologyAnnotations(s)
	if len(spec.Ports) == 0 && !isHeadless(s) && spec.Type != v1.ServiceTypeExternalName {
		errs = append(errs, field.Required(p.Child("ports"), ""))
	}
	errs = append(errs, validateServiceType(s, p)...)
	errs = append(errs, validateServicePorts(s, p.Child("ports"))...)
	errs = append(errs, metavalidation.ValidateLabels(spec.Selector, p.Child("selector"))...)
	errs = append(errs, validateAffinity(spec, p)...)
	errs = append(errs, validateClusterIPs(s, old, p)...)
	var had []string
	if old != nil {
		had = old.Spec.ExternalIPs
	}
	for i, ip := range spec.ExternalIPs {
		at := p.Child("externalIPs").Index(i)
		bad := validation.IsValidIPForLegacyField(at, ip, true, had)
		if len(bad) == 0 {
			bad = unusableAddress(at, ip)
		}
		errs = append(errs, bad...)
	}
	errs = append(errs, validateSourceRanges(s, old, p)...)
	errs = append(errs, validateLoadBalancer(s, p)...)
	errs = append(errs, validateTrafficPolicies(s, p)...)
	return append(errs, validateLoadBalancerStatus(s, old, field.NewPath("status", "loadBalancer", "ingress"))...)
}

// validateTopologyAnnotations: the old and the new name of one setting may not
// differ.
func validateTopologyAnnotations(s *v1.Service) field.ErrorList {
	hints, hasHints := s.Annotations[v1.DeprecatedAnnotationTopologyAwareHints]
	mode, hasMode := s.Annotations[v1.AnnotationTopologyMode]
	if !hasHints || !hasMode || hints == mode {
		return nil
	}
	return field.ErrorList{field.Invalid(field.NewPath("metadata", "annotations").Key(v1.AnnotationTopologyMode), mode,
		"must be the same as annotation "+v1.DeprecatedAnnotationTopologyAwareHints)}
}

func validateServiceType(s *v1.Service, p *field.Path) (errs field.ErrorList) {
	spec := &s.Spec
	switch spec.Type {
	case v1.ServiceTypeLoadBalancer, v1.ServiceTypeNodePort:
		if isHeadless(s) {
			errs = append(errs, field.Invalid(p.Child("clusterIPs").Index(0), v1.ClusterIPNone, "a "+string(spec.Type)+" Service needs a cluster IP"))
		}
	case v1.ServiceTypeExternalName:
		for name, set := range map[string]bool{
			"clusterIPs": len(spec.ClusterIPs) > 0, "ipFamilies": len(spec.IPFamilies) > 0, "ipFamilyPolicy": spec.IPFamilyPolicy != nil,
		} {
			if set {
				errs = append(errs, field.Forbidden(p.Child(name), "an ExternalName Service has none"))
			}
		}
		at := p.Child("externalName")
		if name := strings.TrimSuffix(spec.ExternalName, "."); name == "" {
			errs = append(errs, field.Required(at, ""))
		} else {
			errs = append(errs, invalid(at, name, validation.IsDNS1123Subdomain(name))...)
		}
	}
	return append(errs, oneOf(spec.Type, p.Child("type"),
		v1.ServiceTypeClusterIP, v1.ServiceTypeNodePort, v1.ServiceTypeLoadBalancer, v1.ServiceTypeExternalName)...)
}

func validateServicePorts(s *v1.Service, p *field.Path) (errs field.ErrorList) {
	type numbered struct {
		protocol v1.Protocol
		port     int32
	}
	names, ports, nodePorts := map[string]bool{}, map[numbered]bool{}, map[numbered]bool{}
	for i := range s.Spec.Ports {
		port, at := &s.Spec.Ports[i], p.Index(i)
		switch {
		case port.Name != "":
			errs = append(errs, dnsLabel(port.Name, at.Child("name"))...)
			if names[port.Name] {
				errs = append(errs, field.Duplicate(at.Child("name"), port.Name))
			}
			names[port.Name] = true
		case len(s.Spec.Ports) > 1:
			errs = append(errs, field.Required(at.Child("name"), "several ports need names"))
		}
		errs = append(errs, invalid(at.Child("port"), port.Port, validation.IsValidPortNum(int(port.Port)))...)
		errs = append(errs, oneOf(port.Protocol, at.Child("protocol"), v1.ProtocolTCP, v1.ProtocolUDP, v1.ProtocolSCTP)...)
		if port.TargetPort.Type == intstr.Int {
			errs = append(errs, invalid(at.Child("targetPort"), port.TargetPort.IntVal, validation.IsValidPortNum(int(port.TargetPort.IntVal)))...)
		} else {
			errs = append(errs, invalid(at.Child("targetPort"), port.TargetPort.StrVal, validation.IsValidPortName(port.TargetPort.StrVal))...)
		}
		if port.AppProtocol != nil {
			errs = append(errs, invalid(at.Child("appProtocol"), *port.AppProtocol, validation.IsQualifiedName(*port.AppProtocol))...)
		}
		number := numbered{port.Protocol, port.Port}
		if ports[number] {
			errs = append(errs, field.Duplicate(at, port.Port))
		}
		ports[number] = true
		if port.NodePort == 0 {
			continue
		}
		if s.Spec.Type == v1.ServiceTypeClusterIP {
			errs = append(errs, field.Forbidden(at.Child("nodePort"), "a ClusterIP Service has none; use type NodePort"))
		}
		number.port = port.NodePort
		if nodePorts[number] {
			errs = append(errs, field.Duplicate(at.Child("nodePort"), port.NodePort))
		}
		nodePorts[number] = true
	}
	return errs
}

// maxAffinity is in seconds.
const maxAffinity = 86400

func validateAffinity(spec *v1.ServiceSpec, p *field.Path) field.ErrorList {
	errs := oneOf(spec.SessionAffinity, p.Child("sessionAffinity"), v1.ServiceAffinityClientIP, v1.ServiceAffinityNone)
	at, c := p.Child("sessionAffinityConfig"), spec.SessionAffinityConfig
	if spec.SessionAffinity != v1.ServiceAffinityClientIP {
		return errs
	}
	// Defaults have filled the timeout in.
	if seconds := *c.ClientIP.TimeoutSeconds; seconds <= 0 || seconds > maxAffinity {
		errs = append(errs, field.Invalid(at.Child("clientIP", "timeoutSeconds"), seconds, "must be 1 to 86400 (a day)"))
	}
	return errs
}

func validateSourceRanges(s, old *v1.Service, p *field.Path) (errs field.ErrorList) {
	const onlyForLoadBalancers = "only a LoadBalancer Service has source ranges"
	ranges, isLoadBalancer := s.Spec.LoadBalancerSourceRanges, s.Spec.Type == v1.ServiceTypeLoadBalancer
	if len(ranges) > 0 {
		// The API server's errors name the field as Go does.
		at := p.Child("LoadBalancerSourceRanges")
		if !isLoadBalancer {
			errs = append(errs, field.Forbidden(at, onlyForLoadBalancers))
		}
		var had []string
		if old != nil {
			for _, r := range old.Spec.LoadBalancerSourceRanges {
				had = append(had, strings.TrimSpace(r))
			}
		}
		for i, r := range ranges {
			errs = append(errs, validation.IsValidCIDRForLegacyField(at.Index(i), strings.TrimSpace(r), true, had)...)
		}
		return errs
	}
	text, set := s.Annotations[v1.AnnotationLoadBalancerSourceRangesKey]
	if !set {
		return nil
	}
	at := field.NewPath("metadata", "annotations").Key(v1.AnnotationLoadBalancerSourceRangesKey)
	if !isLoadBalancer {
		errs = append(errs, field.Forbidden(at, onlyForLoadBalancers))
	}
	if text = strings.TrimSpace(text); text == "" || old != nil && old.Annotations[v1.AnnotationLoadBalancerSourceRangesKey] == s.Annotations[v1.AnnotationLoadBalancerSourceRangesKey] {
		return errs
	}
	for r := range strings.SplitSeq(text, ",") {
		errs = append(errs, validation.IsValidCIDRForLegacyField(at, strings.TrimSpace(r), true, nil)...)
	}
	return errs
}

func validateLoadBalancer(s *v1.Service, p *field.Path) (errs field.ErrorList) {
	if s.Spec.Type == v1.ServiceTypeLoadBalancer {
		if c := s.Spec.LoadBalancerClass; c != nil {
			errs = invalid(p.Child("loadBalancerClass"), *c, validation.IsQualifiedName(*c))
		}
		return errs
	}
	if s.Spec.AllocateLoadBalancerNodePorts != nil {
		errs = append(errs, field.Forbidden(p.Child("allocateLoadBalancerNodePorts"), "only a LoadBalancer Service has it"))
	}
	if s.Spec.LoadBalancerClass != nil {
		errs = append(errs, field.Forbidden(p.Child("loadBalancerClass"), "only a LoadBalancer Service has it"))
	}
	return errs
}

func validateTrafficPolicies(s *v1.Service, p *field.Path) (errs field.ErrorList) {
	spec := &s.Spec
	if at := p.Child("externalTrafficPolicy"); isExternal(s) {
		errs = append(errs, oneOf(spec.ExternalTrafficPolicy, at, v1.ServiceExternalTrafficPolicyCluster, v1.ServiceExternalTrafficPolicyLocal)...)
	} else if spec.ExternalTrafficPolicy != "" {
		errs = append(errs, field.Invalid(at, spec.ExternalTrafficPolicy, "the Service has no external address that it could be for"))
	}
	// None yet is one that is to be allocated.
	if port, at := spec.HealthCheckNodePort, p.Child("healthCheckNodePort"); port != 0 && hasHealthCheck(s) {
		errs = append(errs, invalid(at, port, validation.IsValidPortNum(int(port)))...)
	} else if port != 0 {
		errs = append(errs, field.Invalid(at, port, "only for type LoadBalancer with externalTrafficPolicy Local"))
	}
	if policy := spec.InternalTrafficPolicy; policy != nil {
		allowed := []v1.ServiceInternalTrafficPolicy{v1.ServiceInternalTrafficPolicyCluster, v1.ServiceInternalTrafficPolicyLocal}
		if !slices.Contains(allowed, *policy) {
			errs = append(errs, field.NotSupported(p.Child("internalTrafficPolicy"), *policy, allowed))
		}
	}
	if d := spec.TrafficDistribution; d != nil {
		allowed := []string{v1.ServiceTrafficDistributionPreferClose, v1.ServiceTrafficDistributionPreferSameZone, v1.ServiceTrafficDistributionPreferSameNode}
		if !slices.Contains(allowed, *d) {
			errs = append(errs, field.NotSupported(p.Child("trafficDistribution"), *d, allowed))
		}
	}
	return errs
}

// validateLoadBalancerStatus has the rules of an update of the status.
func validateLoadBalancerStatus(s, old *v1.Service, p *field.Path) (errs field.ErrorList) {
	ingress := s.Status.LoadBalancer.Ingress
	if s.Spec.Type != v1.ServiceTypeLoadBalancer && len(ingress) > 0 {
		return field.ErrorList{field.Forbidden(p, "only a LoadBalancer Service has a load balancer's addresses")}
	}
	var had []string
	if old != nil {
		for _, in := range old.Status.LoadBalancer.Ingress {
			had = append(had, in.IP)
		}
	}
	for i, in := range ingress {
		at := p.Index(i)
		if in.IP != "" {
			errs = append(errs, validation.IsValidIPForLegacyField(at.Child("ip"), in.IP, true, had)...)
		}
		modes := []v1.LoadBalancerIPMode{v1.LoadBalancerIPModeVIP, v1.LoadBalancerIPModeProxy}
		switch {
		case in.IPMode == nil: // defaults have filled it in where it is needed
		case in.IP == "":
			errs = append(errs, field.Forbidden(at.Child("ipMode"), "there is no ip that it could be for"))
		case !slices.Contains(modes, *in.IPMode):
			errs = append(errs, field.NotSupported(at.Child("ipMode"), *in.IPMode, modes))
		}
		if in.Hostname == "" {
			continue
		}
		errs = append(errs, invalid(at.Child("hostname"), in.Hostname, validation.IsDNS1123Subdomain(in.Hostname))...)
		if _, err := netip.ParseAddr(in.Hostname); err == nil {
			errs = append(errs, field.Invalid(at.Child("hostname"), in.Hostname, "is an address; use ip"))
		}
	}
	return errs
}
