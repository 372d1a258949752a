package services

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// RunInvalid tries what the backend does with a packet in conntrack state
// INVALID that a pod sends through the node: Forward or Drop. A reset that
// belongs to no connection is one; a SYN right behind it, which begins a
// connection, shows that there is nothing more to wait for.
func RunInvalid(t *testing.T, w *World, b Backend, want ruleset.Verdict) {
	now := row{services: one(nil, PodA)}.ruleset(t)
	if err := b.Apply(t.Context(), ruleset.Ruleset{}, now); err != nil {
		t.Fatal(err)
	}
	const reset, syn = 1 << 2, 1 << 1
	for _, v6 := range []bool{false, true} {
		from, to := Addr(PodA, v6), Addr(Client, v6)
		receiver := w.rawTCP(t, Client, to)
		sender := w.rawTCP(t, PodA, from)
		got := ruleset.Drop
		for _, flags := range []byte{reset, syn} {
			if _, err := sender.WriteTo(segment(from, to, flags), &net.IPAddr{IP: to.AsSlice()}); err != nil {
				t.Fatal(err)
			}
		}
		if err := receiver.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		for buf := make([]byte, 1500); ; {
			n, _, err := receiver.ReadFrom(buf)
			if err != nil {
				t.Fatalf("not even what is valid came (IPv6 %t): %v", v6, err)
			}
			if n < 14 || binary.BigEndian.Uint16(buf[0:]) != invalidPort {
				continue
			}
			if buf[13] == syn {
				break
			}
			got = ruleset.Forward
		}
		if got != want {
			t.Errorf("a packet in state INVALID (IPv6 %t): %s, want %s", v6, got, want)
		}
	}
}

// invalidPort is both ports of the packets.
const invalidPort = 4747

func (w *World) rawTCP(t *testing.T, host string, addr netip.Addr) net.PacketConn {
	t.Helper()
	network := "ip6:tcp"
	if addr.Is4() {
		network = "ip4:tcp"
	}
	var c net.PacketConn
	err := w.In(host, func() (err error) { c, err = net.ListenPacket(network, addr.String()); return err })
	if err != nil {
		t.Fatalf("a raw socket in %s: %v", host, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// segment is a TCP header and nothing more. Its checksum is right: a wrong one
// would make every packet INVALID.
func segment(from, to netip.Addr, flags byte) []byte {
	header := make([]byte, 20)
	binary.BigEndian.PutUint16(header[0:], invalidPort)
	binary.BigEndian.PutUint16(header[2:], invalidPort)
	binary.BigEndian.PutUint32(header[4:], 1)
	header[12], header[13] = 5<<4, flags
	binary.BigEndian.PutUint16(header[14:], 1024)
	pseudo := fmt.Appendf(nil, "%s%s\x00%c\x00%c", from.AsSlice(), to.AsSlice(), ruleset.TCP, len(header))
	sum := uint32(0)
	for _, part := range [][]byte{pseudo, header} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(part[i])<<8 | uint32(part[i+1])
		}
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(header[16:], ^uint16(sum))
	return header
}
