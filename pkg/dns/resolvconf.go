package dns

import (
	"bufio"
	"bytes"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// resolvConfAge is how long a resolv.conf is trusted to be as it was read: a
// DHCP client may change it at any time.
const resolvConfAge = 5 * time.Second

// ResolvConf reads the host's resolvers from the first of Paths that names
// any. The stub of systemd-resolved (127.0.0.53, 127.0.0.54) is left out as
// long as a later file names the resolvers behind it: it may have been told to
// ask us.
type ResolvConf struct {
	Paths []string         // /etc/resolv.conf, /run/systemd/resolve/resolv.conf
	Now   func() time.Time // nil: time.Now

	mu      sync.Mutex
	checked time.Time
	servers []netip.AddrPort
}

// Upstreams is for Options. Files that cannot be read name nobody; when none
// can, as while one is being replaced, the servers stay those that were known.
func (c *ResolvConf) Upstreams() []netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if c.Now != nil {
		now = c.Now()
	}
	if !c.checked.IsZero() && now.Sub(c.checked) < resolvConfAge {
		return c.servers
	}
	c.checked = now
	var stubs []netip.AddrPort
	for _, path := range c.Paths {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		var servers []netip.AddrPort
		for _, ip := range parseResolvConf(text) {
			if isStub(ip) {
				stubs = append(stubs, netip.AddrPortFrom(ip, 53))
			} else {
				servers = append(servers, netip.AddrPortFrom(ip, 53))
			}
		}
		if len(servers) > 0 {
			c.servers = servers
			return servers
		}
	}
	if len(stubs) > 0 {
		c.servers = stubs
	}
	return c.servers
}

func isStub(ip netip.Addr) bool {
	return ip == netip.AddrFrom4([4]byte{127, 0, 0, 53}) || ip == netip.AddrFrom4([4]byte{127, 0, 0, 54})
}

// parseResolvConf returns the name servers of a resolv.conf(5); lines that it
// does not understand mean nothing, as for the C library.
func parseResolvConf(text []byte) (servers []netip.Addr) {
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if ip, err := netip.ParseAddr(fields[1]); err == nil {
			servers = append(servers, ip.Unmap())
		}
	}
	return servers
}
