package metrics

import (
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// dns are the measures of the cluster DNS that the agent serves.
type dns struct {
	queries  *prometheus.CounterVec
	duration *prometheus.HistogramVec
	cached   prometheus.Counter
	forwards *prometheus.CounterVec
}

func newDNS(r *prometheus.Registry) dns {
	d := dns{
		queries:  counters("nodeagent_dns_queries_total", "DNS queries answered, by where the answer is from (cluster or upstream), protocol and response code.", "zone", "proto", "rcode"),
		duration: histograms("nodeagent_dns_query_duration_seconds", "Seconds that answering a DNS query took.", prometheus.ExponentialBuckets(.00005, 4, 9), "zone"),
		cached:   counter("nodeagent_dns_cache_hits_total", "DNS queries answered from what an upstream said before."),
		forwards: counters("nodeagent_dns_forwards_total", "Tries at upstream resolvers, by result: success or error.", "to", "result"),
	}
	r.MustRegister(d.queries, d.duration, d.cached, d.forwards)
	return d
}

// DNSQuery measures one query; zone is cluster or upstream, proto udp or tcp,
// rcode the name of the response code.
func (m *Metrics) DNSQuery(zone, proto, rcode string, cacheHit bool, took time.Duration) {
	if m == nil {
		return
	}
	m.dns.queries.WithLabelValues(zone, proto, rcode).Inc()
	m.dns.duration.WithLabelValues(zone).Observe(took.Seconds())
	if cacheHit {
		m.dns.cached.Inc()
	}
}

// DNSForwarded counts one try at an upstream resolver.
func (m *Metrics) DNSForwarded(to netip.AddrPort, err error) {
	if m == nil {
		return
	}
	result := "success"
	if err != nil {
		result = "error"
	}
	m.dns.forwards.WithLabelValues(to.String(), result).Inc()
}
