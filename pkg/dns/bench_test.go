package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

// services makes n Services with two ports each.
func services(n int) (s Snapshot) {
	for i := range n {
		s.Services = append(s.Services, Service{
			Namespace: fmt.Sprintf("ns%d", i%50), Name: fmt.Sprintf("svc%d", i),
			ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})},
			Ports:      []Port{{"http", "TCP", 80}, {"metrics", "TCP", 9090}},
		})
	}
	return s
}

// BenchmarkQueries is what clients on this machine get over UDP, their own
// cost included.
func BenchmarkQueries(b *testing.B) {
	up := newUpstream(b, give(b, "www.example.com. 3600 IN A 192.0.2.1"))
	s := newServer(b, func(o *Options) { o.Sockets = listen(b, "127.0.0.1"); o.Upstreams = up.only })
	s.Replace(services(10_000))
	at := start(b, s)
	for _, name := range []string{"svc77.ns27.svc.cluster.local.", "no.ns27.svc.cluster.local.", "www.example.com."} {
		b.Run(name, func(b *testing.B) {
			packed, err := question(name, "A").Pack()
			if err != nil {
				b.Fatal(err)
			}
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				conn, err := net.Dial("udp", at)
				if err != nil {
					b.Error(err)
					return
				}
				defer conn.Close()
				buf := make([]byte, 512)
				for pb.Next() {
					if _, err := conn.Write(packed); err != nil {
						b.Error(err)
						return
					}
					if n, err := conn.Read(buf); err != nil || n < 12 || buf[2]&0x80 == 0 {
						b.Errorf("%d octets, %v", n, err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "queries/s")
		})
	}
}

// BenchmarkReply is the server's own part, without sockets.
func BenchmarkReply(b *testing.B) {
	s := newServer(b, nil)
	s.Replace(services(10_000))
	q := question("svc77.ns27.svc.cluster.local.", "A")
	b.ReportAllocs()
	for b.Loop() {
		if r := s.reply(context.Background(), q, &Observation{}); r.Rcode != dns.RcodeSuccess {
			b.Fatal(r)
		}
	}
}

// BenchmarkReplace is what one change costs with 10,000 Services.
func BenchmarkReplace(b *testing.B) {
	s := newServer(b, nil)
	snap := services(10_000)
	b.ReportAllocs()
	for b.Loop() {
		s.Replace(snap)
	}
}
