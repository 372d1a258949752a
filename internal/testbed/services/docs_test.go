package services

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nodeagent/nodeagent/internal/testbed"
)

// elsewhere are the tests of lines that no row of the suite is of: a folder
// below pkg/proxy and a test there.
var elsewhere = map[string][]string{
	"UDP flows":                          {"conntrack TestClean", ". TestFlowsOfNodePorts", "backend/nftables TestUDPFlows", "backend/iptables TestUDPFlows", "backend/ipvs TestUDPFlows", "backend/userspace TestUDPFlows"},
	"established TCP":                    {"backend/nftables TestLasting", "backend/iptables TestLasting", "backend/ipvs TestLasting", "backend/userspace TestLasting"},
	"packets in conntrack state INVALID": {"backend/nftables TestInvalid", "backend/iptables TestInvalid", "backend/ipvs TestInvalid", "backend/userspace TestInvalid"},
	"health-check node port":             {"plan TestHealthChecks", "healthcheck TestServiceAnswers"},
	"loopback, link-local, multicast and unspecified endpoints": {"servicemap TestLoopbackAndLinkLocalEndpointsAreRefused"},
	"slices of names, ports without a number":                   {"servicemap TestOddSlices"},
	"another proxy's Services":                                  {"servicemap TestWhatIsLeftOut"},
}

// The table of docs/services.md has a line for each row of the suite and none
// that nothing tests, and its notes are what the backends' tests leave out.
func TestTableSaysWhatIsTested(t *testing.T) {
	root, err := testbed.Root()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "docs/services.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "| what | rule | ")
	if !found {
		t.Fatal("docs/services.md has no table of what and rule")
	}
	table, notes, _ := strings.Cut(rest, "\n\n")
	lines := strings.Split(table, "\n")
	backends := cells(lines[0])
	documented := map[string][]Lack{}
	known := map[string]bool{}
	for _, line := range lines[2:] {
		all := cells(line)
		what := all[0]
		known[what] = true
		if len(all) != 2+len(backends) {
			t.Fatalf("%s: %d cells", what, len(all))
		}
		for i, cell := range all[2:] {
			for _, number := range regexp.MustCompile(`\((\d+)\)`).FindAllStringSubmatch(cell, -1) {
				documented[backends[i]] = append(documented[backends[i]], note(t, notes, number[1]))
			}
		}
		if !slices.ContainsFunc(rows, func(r row) bool { return r.line == what }) && len(elsewhere[what]) == 0 {
			t.Errorf("no test is of the line %q", what)
		}
	}
	for _, r := range rows {
		if !known[r.line] {
			t.Errorf("row %q is of no line of the table: %q", r.name, r.line)
		}
	}
	for what, tests := range elsewhere {
		if !known[what] {
			t.Errorf("there is no line %q", what)
		}
		for _, test := range tests {
			exists(t, filepath.Join(root, "pkg/proxy"), test)
		}
	}
	for _, b := range backends {
		got, want := slices.Sorted(slices.Values(documented[b])), slices.Sorted(slices.Values(Lacks[b]))
		if got = slices.Compact(got); !slices.Equal(got, want) {
			t.Errorf("%s: the notes are %q, its tests leave out %q", b, got, want)
		}
	}
}

func cells(line string) (out []string) {
	for cell := range strings.SplitSeq(strings.Trim(line, "| "), "|") {
		out = append(out, strings.TrimSpace(cell))
	}
	return out
}

// note is what a note is about.
func note(t *testing.T, notes, number string) Lack {
	t.Helper()
	m := regexp.MustCompile(`(?m)^` + number + `\. \*(.+?)\*`).FindStringSubmatch(notes)
	if m == nil {
		t.Fatalf("there is no note %s", number)
	}
	return Lack(m[1])
}

func exists(t *testing.T, dir, test string) {
	t.Helper()
	folder, name, _ := strings.Cut(test, " ")
	files, err := filepath.Glob(filepath.Join(dir, folder, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "\nfunc "+name+"(") {
			return
		}
	}
	t.Errorf("%s has no test %s", filepath.Join(dir, folder), name)
}
