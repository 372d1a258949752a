package nftables

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// Detect says what of kernel or tools is missing. It asks the kernel to check
// the tables with one Service of each kind, which changes nothing.
func Detect(ctx context.Context, opts Options) error {
	b := New(opts)
	if _, err := b.opts.Nft.Run(ctx, nil, "--version"); err != nil {
		return err
	}
	b.opts.Nft = b.opts.Nft.Check()
	// An agent before us may have left node ports on loopback open: to look is
	// not to close them.
	b.opts.Localnet = Localnet{Get: func() (bool, error) { return true, nil }, Set: func(bool) error { return nil }}
	var sample ruleset.Ruleset
	for i, addrs := range [][]string{{"192.0.2.1", "192.0.2.2", "192.0.2.3"}, {"2001:db8::1", "2001:db8::2", "2001:db8::3"}} {
		service, a, c := netip.MustParseAddr(addrs[0]), netip.MustParseAddr(addrs[1]), netip.MustParseAddr(addrs[2])
		sample.Node.NodePortAddresses = append(sample.Node.NodePortAddresses, ruleset.AnyAddr(service))
		for port, affinity := range map[uint16]uint32{1: 0, 2: 10} {
			sample.Frontends = append(sample.Frontends, &ruleset.Frontend{
				Key: ruleset.Key{Addr: service, Proto: ruleset.TCP, Port: port}, Service: fmt.Sprintf("check/check%d:%d", i, port),
				Endpoints: []netip.AddrPort{netip.AddrPortFrom(a, 1), netip.AddrPortFrom(c, 1)},
				Affinity:  affinity, Masquerade: ruleset.MasqueradeRemote,
			})
		}
	}
	return b.Apply(ctx, ruleset.Ruleset{}, sample)
}
