package ipvs_test

import (
	"slices"
	"testing"
	"time"

	mobyipvs "github.com/moby/ipvs"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/internal/testbed/services"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// bare is what IPVS itself must be told of a frontend, and nothing else.
func bare(b *testing.B, h *mobyipvs.Handle, f *ruleset.Frontend, gone bool) {
	b.Helper()
	s := &mobyipvs.Service{Address: f.Key.Addr.AsSlice(), Port: f.Key.Port, Protocol: uint16(f.Key.Proto), AddressFamily: unix.AF_INET, SchedName: "rr", Netmask: 0xffffffff}
	if gone {
		if err := h.DelService(s); err != nil {
			b.Fatal(err)
		}
		return
	}
	if err := h.NewService(s); err != nil {
		b.Fatal(err)
	}
	for _, e := range f.Endpoints {
		if err := h.NewDestination(s, &mobyipvs.Destination{Address: e.Addr().AsSlice(), Port: e.Port(), Weight: 1}); err != nil {
			b.Fatal(err)
		}
	}
}

func less(all ruleset.Ruleset) ruleset.Ruleset {
	all.Frontends = all.Frontends[:len(all.Frontends)-1]
	all.ClusterIPs = all.ClusterIPs[:len(all.ClusterIPs)-1]
	all.Hairpin = all.Hairpin[:len(all.Hairpin)-1]
	return all
}

// BenchmarkLoad10000 loads 10,000 Services of two endpoints into an empty
// kernel, beside IPVS's messages alone.
func BenchmarkLoad10000(b *testing.B) {
	requireIPVS(b)
	r := many(10_000)
	var ours, floor time.Duration
	for b.Loop() {
		w := services.New(b)
		start := time.Now()
		apply(b, backend(b, w), ruleset.Ruleset{}, r)
		ours += time.Since(start)
		h := handle(b, w)
		if err := h.Flush(); err != nil {
			b.Fatal(err)
		}
		start = time.Now()
		for i := range r.Frontends {
			if f := &r.Frontends[i]; !f.Key.NodePort() {
				bare(b, h, f, false)
			}
		}
		floor += time.Since(start)
		if err := backend(b, w).Cleanup(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(floor.Milliseconds())/float64(b.N), "floor-ms")
	b.ReportMetric(float64(ours.Milliseconds())/float64(b.N), "ours-ms")
	b.ReportMetric(float64(ours)/float64(floor), "times-floor")
}

// BenchmarkOneMoreThan10000 adds and removes one Service beside 10,000.
func BenchmarkOneMoreThan10000(b *testing.B) {
	requireIPVS(b)
	w := services.New(b)
	be := backend(b, w)
	all := many(10_001)
	old, now := less(all), all
	apply(b, be, ruleset.Ruleset{}, old)
	last := all.Frontends[10_001]
	other := last
	other.Key.Port++
	h := handle(b, w)
	var ours, floor []time.Duration
	for b.Loop() {
		start := time.Now()
		apply(b, be, old, now)
		ours = append(ours, time.Since(start))
		start = time.Now()
		bare(b, h, &other, len(ours)%2 == 0)
		floor = append(floor, time.Since(start))
		old, now = now, old
	}
	slices.Sort(ours)
	slices.Sort(floor)
	half := len(ours) / 2
	b.ReportMetric(float64(floor[half].Microseconds())/1000, "floor-p50-ms")
	b.ReportMetric(float64(ours[half].Microseconds())/1000, "ours-p50-ms")
}
