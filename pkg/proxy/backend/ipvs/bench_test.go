package ipvs_test

import (
	"slices"
	"strconv"
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

// sizes are numbers of Services of two endpoints.
func sizes(b *testing.B, f func(b *testing.B, size int)) {
	requireIPVS(b)
	for _, n := range []int{0, 100, 1_000, 10_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) { f(b, n) })
	}
}

// BenchmarkLoad loads Services into an empty kernel, beside IPVS's messages
// alone.
func BenchmarkLoad(b *testing.B) { sizes(b, load) }

func load(b *testing.B, size int) {
	r := many(size)
	var ours, floor []time.Duration
	for b.Loop() {
		w := services.New(b)
		start := time.Now()
		apply(b, backend(b, w), ruleset.Ruleset{}, r)
		ours = append(ours, time.Since(start))
		h := handle(b, w)
		if err := h.Flush(); err != nil {
			b.Fatal(err)
		}
		start = time.Now()
		for _, f := range r.Frontends {
			if !f.Key.NodePort() {
				bare(b, h, f, false)
			}
		}
		floor = append(floor, time.Since(start))
		if err := backend(b, w).Cleanup(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	report(b, ours, floor)
}

// BenchmarkOneMore adds and removes one Service beside others.
func BenchmarkOneMore(b *testing.B) { sizes(b, oneMore) }

func oneMore(b *testing.B, size int) {
	w := services.New(b)
	be := backend(b, w)
	all := many(size + 1)
	old, now := less(all), all
	apply(b, be, ruleset.Ruleset{}, old)
	other := *all.Frontends[len(all.Frontends)-1]
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
	report(b, ours, floor)
}

// report gives medians.
func report(b *testing.B, ours, floor []time.Duration) {
	slices.Sort(ours)
	slices.Sort(floor)
	half := len(ours) / 2
	b.ReportMetric(float64(floor[half].Microseconds())/1000, "floor-ms")
	b.ReportMetric(float64(ours[half].Microseconds())/1000, "ours-ms")
}
