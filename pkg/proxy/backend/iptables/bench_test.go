package iptables_test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/internal/testbed/services"
	programs "github.com/nodeagent/nodeagent/pkg/iptables"
	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// many is that many Services of two endpoints.
func many(n int) ruleset.Ruleset {
	r := ruleset.Ruleset{Node: ruleset.Node{
		NodePortAddresses: []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()},
		LocalPods:         ruleset.LocalPods{Prefixes: services.PodCIDRs},
	}}
	for i := range n {
		ip := func(a, b byte) netip.Addr { return netip.AddrFrom4([4]byte{a, b, byte(i >> 8), byte(i)}) }
		r.Frontends = append(r.Frontends, &ruleset.Frontend{
			Key:     ruleset.Key{Addr: ip(10, 96), Proto: ruleset.TCP, Port: 80},
			Service: fmt.Sprintf("default/s-%d", i), Masquerade: ruleset.MasqueradeRemote,
			Endpoints: []netip.AddrPort{netip.AddrPortFrom(ip(10, 1), 8080), netip.AddrPortFrom(ip(10, 2), 8080)},
		})
		r.ClusterIPs = append(r.ClusterIPs, ip(10, 96))
		r.Hairpin = append(r.Hairpin, ip(10, 1))
	}
	return r
}

func BenchmarkLoad10000(b *testing.B) {
	for _, v := range []programs.Variant{programs.NFT, programs.Legacy} {
		b.Run(string(v), func(b *testing.B) {
			w := services.New(b)
			r := many(10_000)
			for b.Loop() {
				apply(b, backend(b, w, v), ruleset.Ruleset{}, r)
				b.StopTimer()
				apply(b, backend(b, w, v), ruleset.Ruleset{}, many(0))
				b.StartTimer()
			}
		})
	}
}

func BenchmarkOneMoreThan10000(b *testing.B) {
	for _, v := range []programs.Variant{programs.NFT, programs.Legacy} {
		b.Run(string(v), func(b *testing.B) {
			w := services.New(b)
			be := backend(b, w, v)
			all := many(10_001)
			less := all
			less.Frontends, less.ClusterIPs, less.Hairpin = all.Frontends[:10_000], all.ClusterIPs[:10_000], all.Hairpin[:10_000]
			apply(b, be, ruleset.Ruleset{}, less)
			old, now := less, all
			var took []time.Duration
			for b.Loop() {
				start := time.Now()
				apply(b, be, old, now)
				took = append(took, time.Since(start))
				old, now = now, old
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
		})
	}
}

// BenchmarkConnect connects through one Service, alone and among 10,000.
func BenchmarkConnect(b *testing.B) {
	for _, v := range []programs.Variant{programs.NFT, programs.Legacy} {
		b.Run(string(v), func(b *testing.B) {
			w := services.New(b)
			be := backend(b, w, v)
			to := netip.AddrPortFrom(services.Addr("cluster", false), 80)
			rulesets := []ruleset.Ruleset{many(11), many(10_000)}
			for _, r := range rulesets {
				f := r.Find(ruleset.Key{Addr: to.Addr(), Proto: ruleset.TCP, Port: 80})
				f.Endpoints = []netip.AddrPort{netip.AddrPortFrom(services.Addr(services.PodA, false), services.PortA)}
			}
			rulesets[0].Frontends, rulesets[0].ClusterIPs = rulesets[0].Frontends[10:], rulesets[0].ClusterIPs[10:]
			took := make([][]time.Duration, len(rulesets))
			var old ruleset.Ruleset
			for b.Loop() { // in turns: the machine does other things, too
				for i, r := range rulesets {
					apply(b, be, old, r)
					old = r
					err := w.In(services.Client, func() error {
						for range 500 {
							start := time.Now()
							c, err := net.Dial("tcp", to.String())
							if err != nil {
								return err
							}
							took[i] = append(took[i], time.Since(start))
							c.Close()
						}
						return nil
					})
					if err != nil {
						b.Fatal(err)
					}
				}
			}
			for i, name := range []string{"alone-p50-us", "among-p50-us"} {
				slices.Sort(took[i])
				b.ReportMetric(float64(took[i][len(took[i])/2].Nanoseconds())/1000, name)
			}
		})
	}
}
