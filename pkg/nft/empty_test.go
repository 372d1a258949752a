package nft_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/internal/testbed/services"
	"github.com/nodeagent/nodeagent/pkg/nft"
)

// What decides something, or is not iptables' own, stays.
func TestRemoveEmpty(t *testing.T) {
	testbed.Require(t, "nft", "nsenter", "iptables-nft")
	w := services.New(t)
	run := func(command string) {
		t.Helper()
		c := append(slices.Clone(w.Command("sh")), "-c", command)
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
	}
	run(`set -e
		for p in iptables-nft ip6tables-nft; do for t in nat filter raw; do $p -t $t -N X; $p -t $t -A OUTPUT -j X; $p -t $t -F; $p -t $t -X; done; done
		iptables-nft -t filter -P FORWARD DROP
		ip6tables-nft -t raw -A OUTPUT -j ACCEPT
		ip6tables-nft -t nat -N THEIRS
		nft add table ip security; nft add set ip security theirs '{ type ipv4_addr; }'
		nft add table inet filter`)
	c := nft.Command(w.Command("nft"))
	removed, err := c.RemoveEmpty(t.Context())
	slices.Sort(removed)
	if want := []string{"ip nat", "ip raw", "ip6 filter"}; err != nil || !slices.Equal(removed, want) {
		t.Errorf("removed %v, %v, want %v", removed, err, want)
	}
	left, err := c.Run(t.Context(), nil, "list", "tables")
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{"ip filter", "ip6 raw", "ip6 nat", "ip security", "inet filter"} {
		if !strings.Contains(string(left), "table "+table+"\n") {
			t.Errorf("%s is gone; left are\n%s", table, left)
		}
	}
	if strings.Count(string(left), "\n") != 5 {
		t.Errorf("left are\n%s", left)
	}
}
