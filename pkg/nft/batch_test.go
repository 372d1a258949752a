package nft

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestWords(t *testing.T) {
	slot := func(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }
	for text, want := range map[string][]byte{
		"10.96.0.1":               {10, 96, 0, 1},
		"10.96.0.1 . 10.96.0.1":   {10, 96, 0, 1, 10, 96, 0, 1},
		"10.96.0.1 . tcp . 80":    {10, 96, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0},
		"udp . 30053":             {17, 0, 0, 0, 0x75, 0x65, 0, 0},
		"sctp . 1 . 70000":        slices.Concat([]byte{132, 0, 0, 0, 0, 1, 0, 0}, slot(70000)),
		"10.0.0.1 . tcp . 80 . 1": slices.Concat([]byte{10, 0, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0}, slot(1)),
		"fd00::1 . 8080":          {0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x1f, 0x90, 0, 0},
		// What only nft says.
		"10.0.0.1 . tcp . 80 . 10.0.0.0/8": nil,
		"10.0.0.1 timeout 3h":              nil,
		"tcp . 70000":                      nil,
		"fe80::1%eth0":                     nil,
		"":                                 nil,
	} {
		if got, ok := words(text); ok != (want != nil) || ok && !slices.Equal(got, want) {
			t.Errorf("%q is %v, %v, want %v", text, got, ok, want)
		}
	}
}

// A batch takes what it has words for, and no more than the kernel takes at once.
func TestBatchIsForSmallChanges(t *testing.T) {
	v4 := func(a netip.Addr) bool { return a.Is4() }
	if b := NewBatch(); !b.Elements(NewElements(v4), false, "t") || !b.Empty() {
		t.Error("nothing is no empty batch")
	}
	for text, want := range map[string]bool{
		"10.96.0.1 . tcp . 80 : goto chain":                                      true,
		"10.96.0.1 . tcp . 80 : drop":                                            true,
		"10.96.0.1 . tcp . 80 . 0 : 10.1.0.1 . 8080":                             true,
		"10.96.0.1 . tcp . 80 : jump chain":                                      false,
		"tcp . 30080 : 0x4e000001":                                               true,
		"tcp . 30080 : 0x4e00000001":                                             false,
		"10.96.0.0/16":                                                           false,
		strings.Repeat("10.96.0.1, ", 100) + "10.96.0.1":                         true,
		strings.Repeat("10.96.0.1, ", maxBatch/len("10.96.0.1, ")) + "10.96.0.1": false,
	} {
		e := NewElements(v4)
		e.Add("set", text)
		b := NewBatch()
		if got := b.Elements(e, false, "t"); got != want {
			t.Errorf("%.60q: %v, want %v", text, got, want)
		} else if want && b.Empty() {
			t.Errorf("%.60q: an empty batch", text)
		}
	}
}
