package ipvs_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	mobyipvs "github.com/moby/ipvs"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/internal/testbed/services"
	nftables "github.com/nodeagent/nodeagent/pkg/nft"
	"github.com/nodeagent/nodeagent/pkg/proxy/backend/ipvs"
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

// BenchmarkOneMore adds and removes one Service beside others, while a Watch
// runs as in an agent. The floor is what nobody can do without: the messages to
// IPVS, and one transaction to nftables with the elements of a cluster IP, in a
// table without any others.
func BenchmarkOneMore(b *testing.B) { sizes(b, oneMore) }

func oneMore(b *testing.B, size int) {
	w := services.New(b)
	be := backend(b, w)
	watches(b, be)
	all := many(size + 1)
	old, now := less(all), all
	apply(b, be, ruleset.Ruleset{}, old)
	other := *all.Frontends[len(all.Frontends)-1]
	other.Key.Port++
	h := handle(b, w)
	tables := newBareElements(b, w)
	var ours, floor []time.Duration
	for b.Loop() {
		start := time.Now()
		apply(b, be, old, now)
		ours = append(ours, time.Since(start))
		gone := len(ours)%2 == 0
		batch := tables.batch(b, &other, gone)
		start = time.Now()
		bare(b, h, &other, gone)
		if err := tables.socket.Send(batch); err != nil {
			b.Fatal(err)
		}
		floor = append(floor, time.Since(start))
		old, now = now, old
	}
	report(b, ours, floor)
}

// watches has a Watch run as in an agent, until the benchmark ends.
func watches(b *testing.B, be *ipvs.Backend) {
	b.Helper()
	watch, err := be.Watch()
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() { ended <- watch.Run(ctx, func() { b.Error("it is all ours") }) }()
	b.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	})
}

// BenchmarkHeal has somebody else delete a server of one Service, and waits
// until it is there again.
func BenchmarkHeal(b *testing.B) { sizes(b, heal) }

func heal(b *testing.B, size int) {
	w := services.New(b)
	be := backend(b, w)
	r := many(size + 1)
	apply(b, be, ruleset.Ruleset{}, r)
	watches(b, be)
	h := handle(b, w)
	f := r.Frontends[len(r.Frontends)-1]
	s := &mobyipvs.Service{Address: f.Key.Addr.AsSlice(), Port: f.Key.Port, Protocol: uint16(f.Key.Proto), AddressFamily: unix.AF_INET, SchedName: "rr", Netmask: 0xffffffff}
	d := &mobyipvs.Destination{Address: f.Endpoints[0].Addr().AsSlice(), Port: f.Endpoints[0].Port(), Weight: 1}
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		if err := h.DelDestination(s, d); err != nil {
			b.Fatal(err)
		}
		for there := 0; there < len(f.Endpoints); {
			all, err := h.GetDestinations(s)
			if err != nil {
				b.Fatal(err)
			}
			if there = len(all); there < len(f.Endpoints) {
				time.Sleep(5 * time.Millisecond)
			}
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Milliseconds()), "p50-ms")
	b.ReportMetric(float64(took[len(took)-1].Milliseconds()), "max-ms")
}

// bareElements is a table of another program's.
type bareElements struct{ socket nftables.Socket }

func newBareElements(b *testing.B, w *services.World) *bareElements {
	b.Helper()
	err := nft(w, "table ip bare { map services { typeof ip daddr . meta l4proto . th dport : verdict; }; set ips { typeof ip daddr; }; set hairpin { typeof ip saddr . ip daddr; }; }")
	if err != nil {
		b.Fatal(err)
	}
	e := &bareElements{}
	if err := w.In(services.Node, e.socket.Open); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = e.socket.Close() })
	return e
}

func (e *bareElements) batch(b *testing.B, f *ruleset.Frontend, gone bool) *nftables.Batch {
	b.Helper()
	ip := f.Key.Addr.String()
	all := []nftables.Element{
		{In: "services", Key: fmt.Sprintf("%s . %s . %d", ip, f.Key.Proto, f.Key.Port), Value: "accept"},
		{In: "ips", Key: ip}, {In: "hairpin", Key: f.Endpoints[0].Addr().String() + " . " + f.Endpoints[0].Addr().String()},
	}
	elements, batch := nftables.NewElements(netip.Addr.Is4), nftables.NewBatch()
	if gone {
		elements.Difference(all, nil)
	} else {
		elements.Difference(nil, all)
	}
	if !batch.Elements(elements, false, "bare") {
		b.Fatal("there is no batch of these elements")
	}
	return batch
}

// report gives medians.
func report(b *testing.B, ours, floor []time.Duration) {
	slices.Sort(ours)
	slices.Sort(floor)
	half := len(ours) / 2
	b.ReportMetric(float64(floor[half].Microseconds())/1000, "floor-ms")
	b.ReportMetric(float64(ours[half].Microseconds())/1000, "ours-ms")
}
