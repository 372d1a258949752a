package nftables

import (
	"maps"
	"testing"
)

func TestReadClients(t *testing.T) {
	const listing = `table ip nodeagent {
	set firewall {
		type ipv4_addr
		elements = { 203.0.113.5 }
	}

	set clients-a {
		type ipv4_addr
		size 65535
		flags dynamic,timeout
		timeout 3h
		elements = { 192.0.2.1 expires 2h59m59s996ms, 192.0.2.2 expires 1s,
			     192.0.2.4 expires 8s996ms }
	}

	set clients-b {
		type ipv4_addr
		timeout 3h
	}

	map services {
		elements = { 10.96.0.1 . tcp . 80 : goto to-services-1 }
	}

	set clients-c {
		elements = { 192.0.2.9 timeout 3h expires 5s }
	}

	chain clients-d {
		elements = { 192.0.2.9 }
	}
}
`
	want := map[string]string{
		"clients-a": "192.0.2.1 expires 2h59m59s996ms, 192.0.2.2 expires 1s,192.0.2.4 expires 8s996ms",
		"clients-c": "192.0.2.9 timeout 3h expires 5s",
	}
	if got := readClients([]byte(listing)); !maps.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
