package iptables

import (
	"bytes"
	"fmt"
	"os"
	"slices"

	"github.com/nodeagent/nodeagent/pkg/iptables"
)

// opened is an empty chain beside the one that keeps neighbours out of loopback
// addresses: it was us who turned route_localnet on.
const opened = Prefix + "OPENED"

const localnetFile = "/proc/sys/net/ipv4/conf/all/route_localnet"

// routeLocalnet turns net.ipv4.conf.all.route_localnet on or off.
func routeLocalnet(on bool) error {
	value := "0\n"
	if on {
		value = "1\n"
	}
	return os.WriteFile(localnetFile, []byte(value), 0o644)
}

// closeLoopback is called for the table raw before what is there is replaced by
// t. It leaves route_localnet on only behind our rules, or where somebody else
// turned it on.
func (t *table) closeLoopback(have iptables.Table) error {
	ours := slices.Contains(have.Chains, opened)
	if len(t.chains) == 0 {
		if !ours {
			return nil
		}
		if err := routeLocalnet(false); err != nil {
			return fmt.Errorf("turn net.ipv4.conf.all.route_localnet off: %w", err)
		}
		return nil
	}
	value, err := os.ReadFile(localnetFile)
	if err != nil {
		return fmt.Errorf("node ports on 127.0.0.1 need net.ipv4.conf.all.route_localnet: %w", err)
	}
	if ours || bytes.Equal(bytes.TrimSpace(value), []byte("0")) {
		t.chains = append(t.chains, chain{name: opened})
	}
	return nil
}
