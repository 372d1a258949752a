package usage

import (
	"bytes"
	"os"
	"regexp"
	"slices"
	"testing"

	testbed "github.com/nodeagent/nodeagent/internal/testbed/usage"
)

// TestDocumentation holds docs/metrics.md against what there is.
func TestDocumentation(t *testing.T) {
	b, err := os.ReadFile("../../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, m := range regexp.MustCompile("`((?:container|machine|node|pod|cadvisor|resource|scrape)_[a-z0-9_]*[a-z0-9])`").FindAllStringSubmatch(string(b), -1) {
		documented = append(documented, m[1])
	}
	var names []string
	for _, f := range families() {
		names = append(names, f.name)
	}
	// What is no family of rows is always written.
	var out bytes.Buffer
	r := testbed.New(t, "v2").Reader()
	if err := CAdvisor(&out, r, Machine{}); err != nil {
		t.Fatal(err)
	}
	if err := Resource(&out, r); err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\S+)`).FindAllStringSubmatch(out.String(), -1) {
		names = append(names, m[1])
	}
	for _, n := range names {
		if !slices.Contains(documented, n) {
			t.Errorf("%s is not in docs/metrics.md", n)
		}
	}
	labels := []string{"machine_id", "container_type", "container_state", "resource_name", "node_name", "pod_uid"}
	for _, n := range documented {
		if !slices.Contains(names, n) && !slices.Contains(labels, n) {
			t.Errorf("docs/metrics.md has %s, which is not there", n)
		}
	}
}
