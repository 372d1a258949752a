package userspace_test

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/nodeagent/nodeagent/internal/testbed/services"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// many is that many Services of two endpoints.
func many(n int) ruleset.Ruleset {
	r := ruleset.Ruleset{Node: ruleset.Node{ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}}}
	for i := range n {
		f := &ruleset.Frontend{
			Key:       ruleset.Key{Addr: netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), Proto: ruleset.TCP, Port: 80},
			Service:   fmt.Sprintf("default/s-%d", i),
			Endpoints: []netip.AddrPort{at(services.PodA, services.PortA), at(services.PodB, services.PortA)},
		}
		r.Frontends = append(r.Frontends, f)
		r.ClusterIPs = append(r.ClusterIPs, f.Key.Addr)
	}
	return r
}

func BenchmarkLoad10000(b *testing.B) {
	w := services.New(b)
	now := many(10_000)
	for b.Loop() {
		be := backend(b, w)
		apply(b, be, ruleset.Ruleset{}, now)
		b.StopTimer()
		if err := be.Cleanup(context.Background()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkOneMoreThan10000(b *testing.B) {
	w := services.New(b)
	be := backend(b, w)
	now := many(10_001)
	old := now
	old.Frontends, old.ClusterIPs = now.Frontends[:10_000], now.ClusterIPs[:10_000]
	apply(b, be, ruleset.Ruleset{}, old)
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	for b.Loop() {
		apply(b, be, old, now)
		old, now = now, old
	}
	b.ReportMetric(float64(m.HeapAlloc+m.StackInuse)/(1<<20), "MB")
}
