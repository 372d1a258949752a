package iptables

import (
	"testing"

	"github.com/nodeagent/nodeagent/pkg/iptables"
)

func TestLegacyWatchKnowsItsChains(t *testing.T) {
	id := tableID{false, "nat"}
	w := &legacyWatch{count: map[tableID]map[string]int{}, read: map[tableID]map[string]iptables.Rules{}}
	rules := func(n int) []string { return make([]string, n) }
	w.made(id, script{set: []chain{{"A", rules(1)}, {"B", rules(2)}, {"C", nil}}}, true)
	w.made(id, script{set: []chain{{"B", rules(3)}}, gone: []string{"C"}}, false)
	have := iptables.Table{Rules: map[string]iptables.Rules{"A": {Count: 1, Sum: 7}, "B": {Count: 3, Sum: 8}}}
	if !w.same(id, have) {
		t.Fatal("what was made is not the same")
	}
	w.read[id] = have.Rules
	for what, other := range map[string]map[string]iptables.Rules{
		"a chain is gone":        {"A": {Count: 1, Sum: 7}},
		"a chain is another one": {"A": {Count: 1, Sum: 7}, "D": {Count: 3, Sum: 8}},
		"a chain more":           {"A": {Count: 1, Sum: 7}, "B": {Count: 3, Sum: 8}, "D": {}},
		"a rule more":            {"A": {Count: 2, Sum: 7}, "B": {Count: 3, Sum: 8}},
		"another rule":           {"A": {Count: 1, Sum: 9}, "B": {Count: 3, Sum: 8}},
	} {
		if w.same(id, iptables.Table{Rules: other}) {
			t.Errorf("%s, and it is the same", what)
		}
	}
	w.made(id, script{set: []chain{{"A", rules(1)}}}, false)
	if !w.same(id, iptables.Table{Rules: map[string]iptables.Rules{"A": {Count: 1, Sum: 9}, "B": {Count: 3, Sum: 8}}}) {
		t.Error("a chain that was made anew is compared with what it was")
	}
	w.made(id, script{set: []chain{{"E", nil}}}, true)
	if !w.same(id, iptables.Table{Rules: map[string]iptables.Rules{"E": {}}}) {
		t.Error("a table that was made anew is compared with what it was")
	}
}
