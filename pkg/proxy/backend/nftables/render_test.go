package nftables

import (
	"net/netip"
	"testing"
)

// Every endpoint has a slot of its own, enough slots are filled, and one
// endpoint less moves few of the others.
func TestLayout(t *testing.T) {
	for _, n := range []int{1, 2, exact, exact + 1, 100, 1000, 5000, 30000} {
		var to []netip.AddrPort
		for a := netip.MustParseAddr("10.244.0.1"); len(to) < n; a = a.Next() {
			to = append(to, netip.AddrPortFrom(a, 8080))
		}
		places, size := layout(to)
		at := map[netip.AddrPort]int{}
		taken := map[int]bool{}
		for i, p := range places {
			if taken[p] || p < 0 || p >= size {
				t.Fatalf("%d endpoints: slot %d of %d for two", n, p, size)
			}
			taken[p], at[to[i]] = true, p
		}
		if n <= exact {
			if size != n {
				t.Errorf("%d endpoints: %d slots", n, size)
			}
			continue
		}
		if share := float64(n) / float64(size); share < 0.3 {
			t.Errorf("%d endpoints: %.2f of the slots", n, share)
		}
		less := append(append([]netip.AddrPort{}, to[:n/2]...), to[n/2+1:]...)
		places, _ = layout(less)
		moved := 0
		for i, p := range places {
			if at[less[i]] != p {
				moved++
			}
		}
		if moved > 2*crowd && n != exact+1 { // there every endpoint gets the slot of its rank
			t.Errorf("%d endpoints: one less moves %d", n, moved)
		}
	}
}
