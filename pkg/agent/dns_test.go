package agent

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	goruntime "runtime"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/pkg/config"
)

// ownNetwork runs the rest of the test in a network namespace that ends with it.
func ownNetwork(t *testing.T) {
	t.Helper()
	testbed.Require(t)
	goruntime.LockOSThread() // never unlocked: the thread ends with the test's goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

// TestDNSAddressesOfEarlierConfigurations do not stay on the loopback device,
// whatever became of the agent that put them there.
func TestDNSAddressesOfEarlierConfigurations(t *testing.T) {
	ownNetwork(t)
	dir := t.TempDir()
	others := netip.MustParseAddr("169.254.20.10") // a node-local DNS cache
	if err := addLocal([]netip.Addr{others}); err != nil {
		t.Fatal(err)
	}
	for _, want := range [][]string{{"10.96.0.10", "fd00::a"}, {"10.97.0.10", "fd00::a"}, {"10.97.0.10"}, nil, nil} {
		a := &agent{cfg: &config.NodeAgentConfiguration{StateDir: dir}}
		if err := a.settleLocal(addrs(want)); err != nil {
			t.Fatal(err)
		}
		var got []string
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			t.Fatal(err)
		}
		list, err := netlink.AddrList(lo, netlink.FAMILY_ALL)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range list {
			if !l.IP.IsLoopback() {
				got = append(got, l.IP.String())
			}
		}
		if all := append(slices.Clone(want), others.String()); !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(all))) {
			t.Errorf("want %q: the loopback device has %q", want, got)
		}
	}
	if _, err := os.Stat(dir + "/" + dnsFile); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the note stays: %v", err)
	}
}
