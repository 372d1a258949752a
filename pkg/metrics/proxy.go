package metrics

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
)

// proxyMetrics have kube-proxy's names (1.37, pkg/proxy/metrics there).
type proxyMetrics struct {
	families []corev1.IPFamily

	sync, full, partial              *prometheus.HistogramVec
	last, queued                     *prometheus.GaugeVec
	programming                      *prometheus.HistogramVec
	endpointsPending, servicePending prometheus.Gauge
	endpointsTotal, serviceTotal     prometheus.Counter
	noLocal                          *prometheus.GaugeVec
	healthz, livez                   *prometheus.CounterVec
	restoreFailures, nftFailures     *prometheus.CounterVec
	partialFailures                  *prometheus.CounterVec
	flows                            *prometheus.HistogramVec
	flowsDeleted                     *prometheus.CounterVec
}

// programmingBuckets are kube-proxy's, in seconds.
func programmingBuckets() []float64 {
	out := []float64{0.25, 0.5}
	out = append(out, prometheus.LinearBuckets(1, 1, 59)...)
	out = append(out, prometheus.LinearBuckets(60, 5, 12)...)
	return append(out, prometheus.LinearBuckets(120, 30, 7)...)
}

// WithProxy adds the measures of a proxy on a node of these families; one pass
// programs all of them and counts for each.
func (m *Metrics) WithProxy(families []corev1.IPFamily) {
	if m == nil {
		return
	}
	const family, sub = "ip_family", "kubeproxy_sync_proxy_rules_"
	buckets := prometheus.ExponentialBuckets(0.001, 2, 15)
	p := &proxyMetrics{
		families:         families,
		sync:             histograms(sub+"duration_seconds", "Seconds that one pass took, from the Services to the kernel.", buckets, family),
		full:             histograms("kubeproxy_sync_full_proxy_rules_duration_seconds", "Seconds of passes that replaced everything.", buckets, family),
		partial:          histograms("kubeproxy_sync_partial_proxy_rules_duration_seconds", "Seconds of passes that sent the difference.", buckets, family),
		last:             gauges(sub+"last_timestamp_seconds", "When the last pass succeeded.", family),
		queued:           gauges(sub+"last_queued_timestamp_seconds", "When a pass was asked for last.", family),
		programming:      histograms("kubeproxy_network_programming_duration_seconds", "Seconds from a change of the pods of an EndpointSlice to it being in the kernel.", programmingBuckets(), family),
		endpointsPending: gauge(sub+"endpoint_changes_pending", "Changes of endpoints that are not in the kernel yet."),
		endpointsTotal:   counter(sub+"endpoint_changes_total", "Changes of endpoints."),
		servicePending:   gauge(sub+"service_changes_pending", "Changes of Services that are not in the kernel yet."),
		serviceTotal:     counter(sub+"service_changes_total", "Changes of Services."),
		noLocal:          gauges(sub+"no_local_endpoints_total", "Service ports with a traffic policy Local and no endpoint on this node.", "traffic_policy", family),
		healthz:          counters("kubeproxy_proxy_healthz_total", "Answers of the proxy's /healthz, by HTTP status.", "code"),
		livez:            counters("kubeproxy_proxy_livez_total", "Answers of the proxy's /livez, by HTTP status.", "code"),
		restoreFailures:  counters(sub+"iptables_restore_failures_total", "Passes that failed in mode iptables.", family),
		partialFailures:  counters(sub+"iptables_partial_restore_failures_total", "Those of them that were to send the difference only.", family),
		nftFailures:      counters(sub+"nftables_sync_failures_total", "Passes that failed in mode nftables.", family),
		flows:            histograms("kubeproxy_conntrack_reconciler_sync_duration_seconds", "Seconds that a look at the kernel's UDP flows took.", buckets, family),
		flowsDeleted:     counters("kubeproxy_conntrack_reconciler_deleted_entries_total", "UDP flows removed because nobody serves them.", family),
	}
	for _, f := range families {
		p.restoreFailures.WithLabelValues(string(f))
		p.partialFailures.WithLabelValues(string(f))
		p.nftFailures.WithLabelValues(string(f))
		p.flowsDeleted.WithLabelValues(string(f))
		for _, policy := range []string{"internal", "external"} {
			p.noLocal.WithLabelValues(policy, string(f))
		}
	}
	m.registry.MustRegister(p.sync, p.full, p.partial, p.last, p.queued, p.programming, p.endpointsPending, p.endpointsTotal,
		p.servicePending, p.serviceTotal, p.noLocal, p.healthz, p.livez, p.restoreFailures, p.partialFailures, p.nftFailures, p.flows, p.flowsDeleted)
	m.proxy = p
}

// ProxyChange counts a Service, or endpoints, that came in; changed says that
// there is something to do for it.
func (m *Metrics) ProxyChange(service, changed bool) {
	if m == nil || m.proxy == nil {
		return
	}
	total, pending := m.proxy.endpointsTotal, m.proxy.endpointsPending
	if service {
		total, pending = m.proxy.serviceTotal, m.proxy.servicePending
	}
	total.Inc()
	if changed {
		pending.Inc()
	}
}

// ProxyQueued notes that a pass was asked for.
func (m *Metrics) ProxyQueued(at time.Time) {
	if m == nil || m.proxy == nil {
		return
	}
	for _, f := range m.proxy.families {
		m.proxy.queued.WithLabelValues(string(f)).Set(seconds(at))
	}
}

// ProxySynced measures a pass.
func (m *Metrics) ProxySynced(mode string, full bool, took time.Duration, at time.Time, err error) {
	if m == nil || m.proxy == nil {
		return
	}
	p := m.proxy
	for _, f := range p.families {
		family := string(f)
		p.sync.WithLabelValues(family).Observe(took.Seconds())
		if full {
			p.full.WithLabelValues(family).Observe(took.Seconds())
		} else {
			p.partial.WithLabelValues(family).Observe(took.Seconds())
		}
		switch {
		case err == nil:
			p.last.WithLabelValues(family).Set(seconds(at))
		case mode == "iptables":
			p.restoreFailures.WithLabelValues(family).Inc()
			if !full {
				p.partialFailures.WithLabelValues(family).Inc()
			}
		case mode == "nftables":
			p.nftFailures.WithLabelValues(family).Inc()
		}
	}
	if err == nil {
		p.endpointsPending.Set(0)
		p.servicePending.Set(0)
	}
}

// ProxyProgrammed measures how late an EndpointSlice was in the kernel.
func (m *Metrics) ProxyProgrammed(family corev1.IPFamily, took time.Duration) {
	if m != nil && m.proxy != nil {
		m.proxy.programming.WithLabelValues(string(family)).Observe(took.Seconds())
	}
}

// ProxyNoLocal sets how many Service ports drop connections because of a
// traffic policy, internal or external.
func (m *Metrics) ProxyNoLocal(policy string, family corev1.IPFamily, n int) {
	if m != nil && m.proxy != nil {
		m.proxy.noLocal.WithLabelValues(policy, string(family)).Set(float64(n))
	}
}

// ProxyAnswered counts an answer of /healthz or /livez.
func (m *Metrics) ProxyAnswered(path string, status int) {
	if m == nil || m.proxy == nil {
		return
	}
	answers := m.proxy.healthz
	if path == "/livez" {
		answers = m.proxy.livez
	}
	answers.WithLabelValues(strconv.Itoa(status)).Inc()
}

// FlowsCleaned measures a look at the kernel's UDP flows.
func (m *Metrics) FlowsCleaned(family corev1.IPFamily, took time.Duration, removed uint) {
	if m == nil || m.proxy == nil {
		return
	}
	m.proxy.flows.WithLabelValues(string(family)).Observe(took.Seconds())
	m.proxy.flowsDeleted.WithLabelValues(string(family)).Add(float64(removed))
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / float64(time.Second) }
