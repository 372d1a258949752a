package nftables

import (
	"fmt"
	"strings"
	"testing"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// Each table's base chains come behind those of the one before, and never leave
// their place among others'.
func TestGenerations(t *testing.T) {
	if s := readStanding("table ip other {\n\tchain nat-prerouting {\n\t\ttype nat hook prerouting priority -140; policy accept;\n\t}\n}\n"); s != (standing{}) {
		t.Errorf("no table: %+v", s)
	}
	next := 0
	for i := range 2 * generations {
		if next != i%generations {
			t.Fatalf("generation %d after %d", next, i)
		}
		text := baseTable(ipv4, ruleset.Node{LoopbackNodePorts: true}, next)
		for hook, limits := range map[string][2]int{
			"type nat hook prerouting": {-149, -101}, "type nat hook output": {-149, -101}, "type nat hook postrouting": {51, 99},
			"type filter hook forward": {-99, -1}, "type filter hook input": {-99, -1},
		} {
			_, rest, found := strings.Cut(text, hook+" priority ")
			var at int
			if _, err := fmt.Sscanf(rest, "%d;", &at); !found || err != nil || at < limits[0] || at > limits[1] {
				t.Errorf("generation %d: %s: %d, %v", next, hook, at, err)
			}
		}
		if strings.Contains(text, "priority -45;") != (next == 0) {
			t.Errorf("generation %d:\n%s", next, text)
		}
		next = readStanding("table ip filter {\n}\n" + text).next
	}
	if s := readStanding("table ip nodeagent {\n\tchain opened-loopback {\n\t}\n}\n"); !s.opened || s.next != 0 {
		t.Errorf("%+v", s)
	}
}
