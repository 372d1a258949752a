// Package services does for a node without a control plane what an API server
// and its controllers do for Services: it gives them cluster IPs, node ports
// and load balancer addresses, and follows the node's own pods into
// EndpointSlices. What comes of it feeds the proxy and the DNS server, and
// stands in the store for everybody to see.
package services
