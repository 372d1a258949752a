// Package metrics is the agent's Prometheus registry.
//
// Names, labels and buckets are kubelet's and kube-proxy's wherever they have the
// same measure, so that their dashboards and alerts work unchanged; what only this
// agent has starts with nodeagent_. A nil *Metrics is valid and measures
// nothing, so that no component needs a switch.
package metrics

import (
	"net/http"
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"
	v1 "k8s.io/api/core/v1"
)

// Metrics holds every measure. Make it with New; all methods may be called from
// any goroutine.
type Metrics struct {
	registry *prometheus.Registry
	probing  *prometheus.Registry // what /metrics/probes has

	runtimeOps       *prometheus.CounterVec
	runtimeErrors    *prometheus.CounterVec
	runtimeDuration  *prometheus.HistogramVec
	runningPods      prometheus.Gauge
	runningContainer *prometheus.GaugeVec
	podStart         prometheus.Histogram
	podWorker        *prometheus.HistogramVec
	startedPods      prometheus.Counter
	startedPodErrors prometheus.Counter
	startedContainer *prometheus.CounterVec
	startedErrors    *prometheus.CounterVec
	relist           prometheus.Histogram
	exitHandled      prometheus.Histogram
	httpRequests     *prometheus.CounterVec
	httpInflight     *prometheus.GaugeVec
	sourceSynced     *prometheus.GaugeVec
	sourceProblems   *prometheus.GaugeVec
	probes           *prometheus.CounterVec
	probeDuration    *prometheus.HistogramVec
	evictions        *prometheus.CounterVec
	shutdownStart    prometheus.Gauge
	shutdownEnd      prometheus.Gauge
	imagesCollected  *prometheus.CounterVec

	kubelet kubelet

	proxy *proxyMetrics // nil without a proxy
	dns   dns
}

// Build is what nodeagent_build_info and kubelet_node_name say.
type Build struct {
	Version, Revision, NodeName string
}

// startBuckets are kubelet's for pod start, in seconds.
func startBuckets() []float64 {
	return []float64{0.5, 1, 2, 3, 4, 5, 6, 8, 10, 20, 30, 45, 60, 120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600}
}

// New makes a registry of its own; nothing is shared with the process-wide one.
func New(b Build) *Metrics {
	m := &Metrics{
		registry:         prometheus.NewRegistry(),
		runtimeOps:       counters("kubelet_runtime_operations_total", "Calls to the container runtime by operation.", "operation_type"),
		runtimeErrors:    counters("kubelet_runtime_operations_errors_total", "Failed calls to the container runtime by operation.", "operation_type"),
		runtimeDuration:  histograms("kubelet_runtime_operations_duration_seconds", "Seconds that calls to the container runtime took, by operation.", prometheus.ExponentialBuckets(.005, 2.5, 14), "operation_type"),
		runningPods:      gauge("kubelet_running_pods", "Pods with a ready sandbox."),
		runningContainer: gauges("kubelet_running_containers", "Containers by state.", "container_state"),
		podStart:         histogram("kubelet_pod_start_duration_seconds", "Seconds from a pod being seen first to it running.", startBuckets()),
		podWorker:        histograms("kubelet_pod_worker_duration_seconds", "Seconds that one pass of a pod worker took, by operation: create, update or sync.", prometheus.DefBuckets, "operation_type"),
		startedPods:      counter("kubelet_started_pods_total", "Sandboxes started."),
		startedPodErrors: counter("kubelet_started_pods_errors_total", "Sandboxes that failed to start."),
		startedContainer: counters("kubelet_started_containers_total", "Containers started, by type: container or init_container.", "container_type"),
		startedErrors:    counters("kubelet_started_containers_errors_total", "Containers that failed to start, by type and reason.", "container_type", "code"),
		relist:           histogram("kubelet_pleg_relist_duration_seconds", "Seconds that listing all pods of the runtime took.", prometheus.DefBuckets),
		exitHandled:      histogram("nodeagent_exit_handled_seconds", "Seconds from a container's exit to its pod's worker deciding what follows.", []float64{.001, .0025, .005, .01, .02, .05, .1, .25, .5, 1, 2.5, 5, 10}),
		httpRequests:     counters("kubelet_http_requests_total", "Requests to the agent's APIs.", "method", "path", "server_type", "long_running"),
		httpInflight:     gauges("kubelet_http_inflight_requests", "Requests to the agent's APIs that run now.", "method", "path", "server_type", "long_running"),
		sourceSynced:     gauges("nodeagent_source_synced", "1 when the source was read well at least once since start.", "source"),
		sourceProblems:   gauges("nodeagent_source_problems", "Objects of the source that are refused or unreadable now.", "source"),
	}
	m.probes = counters("prober_probe_total", "Probes of containers by result: successful or failed.", "probe_type", "result", "container", "pod", "namespace", "pod_uid")
	m.probeDuration = histograms("prober_probe_duration_seconds", "Seconds that successful probes took.", prometheus.DefBuckets, "probe_type", "container", "pod", "namespace")
	m.evictions = counters("kubelet_evictions", "Pods evicted, by what was short.", "eviction_signal")
	m.shutdownStart = gauge("kubelet_graceful_shutdown_start_time_seconds", "When the latest shutdown of the node began, in seconds since 1970; 0: none was seen.")
	m.shutdownEnd = gauge("kubelet_graceful_shutdown_end_time_seconds", "When pods had ended in the latest shutdown of the node, in seconds since 1970; 0 while they end.")
	m.imagesCollected = counters("kubelet_image_garbage_collected_total", "Images removed that nobody used, by reason: space or age.", "reason")
	info := gauges("nodeagent_build_info", "Always 1; the labels tell the build.", "version", "revision", "go_version")
	info.WithLabelValues(b.Version, b.Revision, runtime.Version()).Set(1)
	node := gauges("kubelet_node_name", "Always 1; the label tells the node.", "node")
	node.WithLabelValues(b.NodeName).Set(1)
	m.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m.runtimeOps, m.runtimeErrors, m.runtimeDuration, m.runningPods, m.runningContainer,
		m.podStart, m.podWorker, m.startedPods, m.startedPodErrors, m.startedContainer, m.startedErrors,
		m.relist, m.exitHandled, m.httpRequests, m.httpInflight, m.sourceSynced, m.sourceProblems, m.evictions, m.imagesCollected, m.shutdownStart, m.shutdownEnd, info, node,
	)
	m.probing = prometheus.NewRegistry()
	m.probing.MustRegister(m.probes, m.probeDuration)
	m.dns = newDNS(m.registry)
	m.kubelet = newKubelet(m.registry)
	return m
}

// RuntimeOperation counts one call to the runtime. The operation is kubelet's
// word: run_podsandbox, create_container, start_container, stop_container,
// list_podsandbox, pull_image, …
func (m *Metrics) RuntimeOperation(operation string, took time.Duration, err error) {
	if m == nil {
		return
	}
	m.runtimeOps.WithLabelValues(operation).Inc()
	m.runtimeDuration.WithLabelValues(operation).Observe(took.Seconds())
	if err != nil {
		m.runtimeErrors.WithLabelValues(operation).Inc()
	}
}

// Relisted measures one listing of all pods.
func (m *Metrics) Relisted(took time.Duration) {
	if m != nil {
		m.relist.Observe(took.Seconds())
		m.kubelet.relisted(time.Now())
	}
}

// ExitHandled measures how late after a container's exit its worker decided.
func (m *Metrics) ExitHandled(late time.Duration) {
	if m != nil {
		m.exitHandled.Observe(late.Seconds())
	}
}

// Running sets how many pods run, and how many containers there are by state
// (created, running, exited, unknown). States that are missing become 0.
func (m *Metrics) Running(pods int, containers map[string]int) {
	if m == nil {
		return
	}
	m.runningPods.Set(float64(pods))
	for _, state := range []string{"created", "running", "exited", "unknown"} {
		m.runningContainer.WithLabelValues(state).Set(float64(containers[state]))
	}
}

// PodStarted measures a pod from first sight to all of it running.
func (m *Metrics) PodStarted(took time.Duration) {
	if m != nil {
		m.podStart.Observe(took.Seconds())
	}
}

// PodWorker measures one pass of a worker: create, update or sync.
func (m *Metrics) PodWorker(operation string, took time.Duration) {
	if m != nil {
		m.podWorker.WithLabelValues(operation).Observe(took.Seconds())
	}
}

// SandboxStarted counts an attempt to start a sandbox.
func (m *Metrics) SandboxStarted(err error) {
	switch {
	case m == nil:
	case err != nil:
		m.startedPodErrors.Inc()
	default:
		m.startedPods.Inc()
	}
}

// ContainerStarted counts an attempt to start a container; reason is empty when
// it succeeded, else the waiting reason (CreateContainerError, …), which is one
// of few.
func (m *Metrics) ContainerStarted(init bool, reason string) {
	if m == nil {
		return
	}
	kind := "container"
	if init {
		kind = "init_container"
	}
	m.startedContainer.WithLabelValues(kind).Inc()
	if reason != "" {
		m.startedErrors.WithLabelValues(kind, reason).Inc()
	}
}

// Source sets how a source stands.
func (m *Metrics) Source(name string, synced bool, problems int) {
	if m == nil {
		return
	}
	v := 0.0
	if synced {
		v = 1
	}
	m.sourceSynced.WithLabelValues(name).Set(v)
	m.sourceProblems.WithLabelValues(name).Set(float64(problems))
}

// Probed counts one probe of a container. kind is Readiness.
func (m *Metrics) Probed(p *v1.Pod, container, kind string, good bool, took time.Duration) {
	if m == nil {
		return
	}
	result := "failed"
	if good {
		result = "successful"
		m.probeDuration.WithLabelValues(kind, container, p.Name, p.Namespace).Observe(took.Seconds())
	}
	m.probes.WithLabelValues(kind, result, container, p.Name, p.Namespace, string(p.UID)).Inc()
}

// ProbesEnded forgets what was counted for a container of a pod that is gone.
func (m *Metrics) ProbesEnded(p *v1.Pod, container string) {
	if m == nil {
		return
	}
	labels := prometheus.Labels{"container": container, "pod": p.Name, "namespace": p.Namespace}
	m.probeDuration.DeletePartialMatch(labels)
	labels["pod_uid"] = string(p.UID)
	m.probes.DeletePartialMatch(labels)
}

// Evicted counts a pod that was evicted; signal is kubelet's word for what was
// short: memory.available, …, or for the limit that the pod exceeded.
func (m *Metrics) Evicted(signal string) {
	if m != nil {
		m.evictions.WithLabelValues(signal).Inc()
	}
}

// Shutdown says when the node's latest shutdown began and when pods had ended;
// zero: it has not.
func (m *Metrics) Shutdown(start, end time.Time) {
	if m == nil {
		return
	}
	for g, t := range map[prometheus.Gauge]time.Time{m.shutdownStart: start, m.shutdownEnd: end} {
		g.Set(0)
		if !t.IsZero() {
			g.Set(float64(t.UnixNano()) / float64(time.Second))
		}
	}
}

// ImageCollected counts an image that was removed because nobody used it: for
// space, or for its age.
func (m *Metrics) ImageCollected(reason string) {
	if m != nil {
		m.imagesCollected.WithLabelValues(reason).Inc()
	}
}

// Request counts one request and returns what to call at its end. Path is a
// route of ours, never what the client sent: labels must stay few. Server is
// "local", "tls" or "health".
func (m *Metrics) Request(method, path, server string, long bool) (done func()) {
	if m == nil {
		return func() {}
	}
	labels := []string{method, path, server, strconv.FormatBool(long)}
	m.httpRequests.WithLabelValues(labels...).Inc()
	inflight := m.httpInflight.WithLabelValues(labels...)
	inflight.Inc()
	began := time.Now()
	return func() {
		inflight.Dec()
		m.kubelet.httpDuration.WithLabelValues(labels...).Observe(time.Since(began).Seconds())
	}
}

// ServeHTTP writes all metrics but those of probes, in the format that the client
// accepts: text, OpenMetrics or protobuf.
func (m *Metrics) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if m == nil {
		http.Error(w, "no metrics", http.StatusNotFound)
		return
	}
	serve(m.registry, w, r)
}

// Probes writes those of probes.
func (m *Metrics) Probes(w http.ResponseWriter, r *http.Request) {
	if m == nil {
		http.Error(w, "no metrics", http.StatusNotFound)
		return
	}
	serve(m.probing, w, r)
}

func serve(from *prometheus.Registry, w http.ResponseWriter, r *http.Request) {
	families, err := from.Gather()
	if err != nil && len(families) == 0 {
		http.Error(w, "gathering metrics: "+err.Error(), http.StatusInternalServerError)
		return
	}
	format := expfmt.NegotiateAccept(r.Header, expfmt.DefaultOpenMetricsAcceptedFormats()...)
	w.Header().Set("Content-Type", string(format))
	enc := expfmt.NewEncoder(w, format)
	for _, f := range families {
		if enc.Encode(f) != nil {
			return // the client went away
		}
	}
	if c, ok := enc.(expfmt.Closer); ok {
		_ = c.Close()
	}
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

func counters(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

func gauge(name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
}

func gauges(name, help string, labels ...string) *prometheus.GaugeVec {
	return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
}

func histogram(name, help string, buckets []float64) prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
}

func histograms(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
}
