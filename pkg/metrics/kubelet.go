package metrics

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Claim is the file system of a PersistentVolumeClaim.
type Claim struct {
	Namespace, Name                string
	Capacity, Available, Used      uint64 // bytes
	Inodes, InodesFree, InodesUsed uint64
}

// kubelet are those of kubelet's measures that are computed from others.
type kubelet struct {
	relistInterval prometheus.Histogram
	lastSeen       prometheus.Gauge
	httpDuration   *prometheus.HistogramVec
	cgroupVersion  prometheus.Gauge
	last           *lastRelist
	claims         *claims
}

type lastRelist struct {
	mu sync.Mutex
	at time.Time
}

func newKubelet(r *prometheus.Registry) kubelet {
	k := kubelet{
		relistInterval: histogram("kubelet_pleg_relist_interval_seconds", "Seconds between listings of all pods of the runtime.", prometheus.DefBuckets),
		lastSeen:       gauge("kubelet_pleg_last_seen_seconds", "When all pods of the runtime were listed last, in seconds since 1970."),
		httpDuration:   histograms("kubelet_http_requests_duration_seconds", "Seconds that requests to the agent's APIs took.", prometheus.ExponentialBuckets(.001, 4, 8), "method", "path", "server_type", "long_running"),
		cgroupVersion:  gauge("kubelet_cgroup_version", "1 or 2: the cgroups that the host has."),
		last:           &lastRelist{},
		claims:         &claims{},
	}
	r.MustRegister(k.relistInterval, k.lastSeen, k.httpDuration, k.cgroupVersion, k.claims)
	return k
}

func (k kubelet) relisted(now time.Time) {
	k.last.mu.Lock()
	defer k.last.mu.Unlock()
	if !k.last.at.IsZero() {
		k.relistInterval.Observe(now.Sub(k.last.at).Seconds())
	}
	k.last.at = now
	k.lastSeen.Set(float64(now.Unix()))
}

// CgroupVersion says which cgroups the host has: 1 or 2.
func (m *Metrics) CgroupVersion(version int) {
	if m != nil {
		m.kubelet.cgroupVersion.Set(float64(version))
	}
}

// Claims sets who tells of the file systems of PersistentVolumeClaims. It is asked
// at every scrape and must answer at once.
func (m *Metrics) Claims(list func() []Claim) {
	if m == nil {
		return
	}
	m.kubelet.claims.mu.Lock()
	defer m.kubelet.claims.mu.Unlock()
	m.kubelet.claims.list = list
}

// claims collects kubelet_volume_stats_*, for as long as there are such volumes.
type claims struct {
	mu   sync.Mutex
	list func() []Claim
}

// claimMeasures are kubelet's names, and what each is of a claim.
func claimMeasures() []struct {
	name, help string
	value      func(c Claim) uint64
} {
	return []struct {
		name, help string
		value      func(c Claim) uint64
	}{
		{"kubelet_volume_stats_capacity_bytes", "Size of the volume's file system.", func(c Claim) uint64 { return c.Capacity }},
		{"kubelet_volume_stats_available_bytes", "Free bytes of the volume's file system.", func(c Claim) uint64 { return c.Available }},
		{"kubelet_volume_stats_used_bytes", "Bytes in use of the volume's file system.", func(c Claim) uint64 { return c.Used }},
		{"kubelet_volume_stats_inodes", "Inodes of the volume's file system.", func(c Claim) uint64 { return c.Inodes }},
		{"kubelet_volume_stats_inodes_free", "Free inodes of the volume's file system.", func(c Claim) uint64 { return c.InodesFree }},
		{"kubelet_volume_stats_inodes_used", "Inodes in use of the volume's file system.", func(c Claim) uint64 { return c.InodesUsed }},
	}
}

// Describe sends nothing: which volumes there are changes.
func (*claims) Describe(chan<- *prometheus.Desc) {}

// Collect sends what is known now.
func (c *claims) Collect(to chan<- prometheus.Metric) {
	c.mu.Lock()
	list := c.list
	c.mu.Unlock()
	if list == nil {
		return
	}
	all := list()
	for _, m := range claimMeasures() {
		desc := prometheus.NewDesc(m.name, m.help, []string{"namespace", "persistentvolumeclaim"}, nil)
		for _, claim := range all {
			to <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(m.value(claim)), claim.Namespace, claim.Name)
		}
	}
}
