package dns

import "net/netip"

// Snapshot is all that the cluster domain knows at one moment. It is given
// away with Replace: whoever made it changes nothing of it afterwards. Names
// are in lower case, as Kubernetes allows no others.
type Snapshot struct {
	Services []Service
}

// Service is one Service. With an ExternalName it is an alias; with cluster
// addresses its name has these; with neither it is headless, and its
// endpoints are its records.
type Service struct {
	Namespace, Name string
	ExternalName    string
	ClusterIPs      []netip.Addr
	// Ports give a Service with cluster addresses its SRV records.
	Ports []Port
	// Endpoints are needed of headless Services only.
	Endpoints []EndpointSet
	// PublishNotReady: endpoints that are not ready are served, too.
	PublishNotReady bool
}

// Port is a port as clients dial it. Without a name it has no SRV record of
// its own.
type Port struct {
	Name     string
	Protocol string // tcp, udp or sctp, in any case
	Number   uint16
}

// EndpointSet are endpoints that have the same ports: an EndpointSlice.
type EndpointSet struct {
	Ports     []Port
	Endpoints []Endpoint
}

// Endpoint is one address of a headless Service. Hostname is what an
// EndpointSlice has there: the pod's spec.hostname when its spec.subdomain
// names the Service, and otherwise nothing.
type Endpoint struct {
	Addr     netip.Addr
	Hostname string
	Ready    bool
}
