//go:build bench

package bench

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A comparison is one system of ours beside what it is measured by.
type comparison struct {
	ours, floor, peer string
}

func comparisons() []comparison {
	return []comparison{
		{"nodeagent nftables", "floor nft", "kube-proxy nftables"},
		{"nodeagent iptables", "floor iptables-nft", "kube-proxy iptables"},
		{"nodeagent iptables-legacy", "floor iptables-legacy", "kube-proxy iptables"},
		{"nodeagent userspace", "", "kube-proxy iptables"},
	}
}

// serviceMeasure is one row for each size. more says that more is better.
type serviceMeasure struct {
	id, text, unit string
	more           bool
	// targets at 10,000 Services, by system: see the verdict.
	targets map[string]target
}

// target is a figure; perFloor is a multiple of the floor and perEmpty one of
// the same measure without Services. What is 0 is not asked.
type target struct{ figure, perFloor, perEmpty float64 }

const targetSize = 10000

func serviceMeasures() []serviceMeasure {
	const nft, ipt, legacy = "nodeagent nftables", "nodeagent iptables", "nodeagent iptables-legacy"
	connect := target{perEmpty: 1.1}
	memory := target{figure: 70}
	return []serviceMeasure{
		{"first", "start → all Services answer", "s", false, map[string]target{nft: {figure: 1}, ipt: {figure: 2}, legacy: {perFloor: 2}}},
		{"received", "… its objects received by a bare reflector", "s", false, nil},
		{"loaded", "… its rules loaded by the bare program", "s", false, nil},
		{"new", "a new Service asked for → its first connect succeeds", "ms", false, map[string]target{nft: {figure: 20}, ipt: {figure: 60}, legacy: {perFloor: 2}}},
		{"had", "… the API server's answer, which comes first", "ms", false, nil},
		{"connect", "connect through the last Service", "µs", false, map[string]target{nft: connect, ipt: connect, legacy: connect}},
		{"rate", "requests through it, 4 at once", "1/s", true, nil},
		{"lost", "requests without an answer", "", false, nil},
		{"changes", "endpoint changes that the API server managed", "1/s", true, nil},
		{"cpu", "CPU of one core meanwhile, with children", "%", false, nil},
		{"mem", "highest memory meanwhile (VmRSS)", "MB", false, map[string]target{nft: memory, ipt: memory, legacy: memory}},
		{"peak", "highest memory since its start (VmHWM)", "MB", false, nil},
		{"rules", "rules in the kernel", "", false, nil},
		{"chains", "chains", "", false, nil},
		{"elements", "elements of maps and sets", "", false, nil},
	}
}

// servicesTable is one table of all figures, and one of the ratios and targets.
func servicesTable(r results, p servicesPlan) string {
	var names []string
	for _, f := range bareFloors() {
		names = append(names, f.name)
	}
	for _, s := range proxies() {
		names = append(names, s.name)
	}
	var used []string
	for _, name := range names {
		for m := range r {
			if len(r[m][name]) > 0 {
				used = append(used, name)
				break
			}
		}
	}
	var figures, ratios strings.Builder
	fmt.Fprintf(&figures, "| measured | Services | unit | %s |\n| --- | --- | --- |%s\n", strings.Join(used, " | "), strings.Repeat(" --- |", len(used)))
	fmt.Fprint(&ratios, "| measured | Services | system | ÷ floor | better than kube-proxy in that mode by | ÷ the same without Services | target |\n"+
		"| --- | --- | --- | --- | --- | --- | --- |\n")
	for _, m := range serviceMeasures() {
		for _, size := range p.sizes {
			of := r[sized(m.id, size)]
			if len(of) == 0 {
				continue
			}
			cells := []string{m.text, strconv.Itoa(size), m.unit}
			for _, name := range used {
				cells = append(cells, finite(cell(of[name])))
			}
			fmt.Fprintln(&figures, "| "+strings.Join(cells, " | ")+" |")
			for _, c := range comparisons() {
				if len(of[c.ours]) > 0 && !strings.HasPrefix(m.text, "…") { // a part of the row before
					fmt.Fprintln(&ratios, "| "+strings.Join(m.compare(r, c, size), " | ")+" |")
				}
			}
		}
	}
	return figures.String() + "\n" + ratios.String()
}

// compare is one row of the ratios.
func (m serviceMeasure) compare(r results, c comparison, size int) []string {
	of := r[sized(m.id, size)]
	ours, floor, peer := median(of[c.ours]), median(of[c.floor]), median(of[c.peer])
	empty := median(r[sized(m.id, 0)][c.ours])
	better := ratio(peer, ours)
	if m.more {
		better = ratio(ours, peer)
	}
	if math.IsInf(peer, 1) {
		better = "it was given up"
	}
	verdict := ""
	if t, ok := m.targets[c.ours]; ok && size == targetSize {
		verdict = t.verdict(ours, floor, empty, m.unit)
	}
	if bare := median(r[sized("received", size)][c.ours]) + median(r[sized("loaded", size)][c.ours]); m.id == "first" && !math.IsNaN(bare) {
		verdict = strings.TrimPrefix(verdict+"; "+ratio(ours, bare)+" of its objects received and its rules loaded alone", "; ")
	}
	return []string{m.text, strconv.Itoa(size), c.ours, ratio(ours, floor), better, ratio(ours, empty), verdict}
}

// verdict says whether the target holds; it is printed and never asserted.
func (t target) verdict(ours, floor, empty float64, unit string) string {
	text, limit := fmt.Sprintf("≤ %v %s", t.figure, unit), t.figure
	switch {
	case t.perFloor > 0:
		text, limit = fmt.Sprintf("≤ %v × floor", t.perFloor), t.perFloor*floor
	case t.perEmpty > 0:
		text, limit = fmt.Sprintf("≤ %v × without Services", t.perEmpty), t.perEmpty*empty
	}
	switch {
	case math.IsNaN(limit) || math.IsNaN(ours):
		return text + ": not measured"
	case ours <= limit:
		return text + ": met"
	}
	return text + ": missed"
}

func finite(cell string) string { return strings.ReplaceAll(cell, "+Inf", "given up") }

// withChildren is a process's user and system time and that of the children
// that it has waited for.
func withChildren(t *testing.T, pid int) time.Duration {
	t.Helper()
	file := fmt.Sprintf("/proc/%d/stat", pid)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	var ticks int64
	for _, word := range f[11:15] { // utime, stime, cutime, cstime
		n, err := strconv.ParseInt(word, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
