package nftables

import (
	"bytes"
	"fmt"
	"os"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// opened is an empty chain beside the one that keeps neighbours out of loopback
// addresses: it was us who turned route_localnet on.
const opened = "opened-loopback"

// Localnet is net.ipv4.conf.all.route_localnet, without which the kernel takes
// no packet from 127.0.0.1 to another device.
type Localnet struct {
	Get func() (on bool, err error)
	Set func(on bool) error
}

const localnetFile = "/proc/sys/net/ipv4/conf/all/route_localnet"

func ownLocalnet() Localnet {
	return Localnet{
		Get: func() (bool, error) {
			value, err := os.ReadFile(localnetFile)
			return !bytes.Equal(bytes.TrimSpace(value), []byte("0")), err
		},
		Set: func(on bool) error {
			value := "0\n"
			if on {
				value = "1\n"
			}
			return os.WriteFile(localnetFile, []byte(value), 0o644)
		},
	}
}

// openLoopback comes before the tables are replaced. It writes the mark to the
// new table, or turns off what must not be on without the guard. It is turned on
// behind the guard only, when the table is there (CVE-2020-8558).
func (b *Backend) openLoopback(ours bool, node ruleset.Node, text *bytes.Buffer) error {
	if !node.LoopbackNodePorts {
		return b.closeLoopback(ours)
	}
	on, err := b.opts.Localnet.Get()
	if err != nil {
		return fmt.Errorf("node ports on 127.0.0.1 need net.ipv4.conf.all.route_localnet: %w", err)
	}
	if ours || !on {
		fmt.Fprintf(text, "add chain ip %s %s\n", Table, opened)
	}
	return nil
}

func (b *Backend) closeLoopback(ours bool) error {
	if !ours {
		return nil
	}
	if err := b.opts.Localnet.Set(false); err != nil {
		return fmt.Errorf("turn net.ipv4.conf.all.route_localnet off: %w", err)
	}
	return nil
}
