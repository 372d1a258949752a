package metrics

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
)

// TestDocumentation holds docs/metrics.md against what there is.
func TestDocumentation(t *testing.T) {
	b, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile("`((?:kubelet|prober|nodeagent|kubeproxy)_[a-z0-9_]+)`").FindAllStringSubmatch(string(b), -1) {
		documented[m[1]] = true
	}
	var names []string
	m := New(Build{})
	m.WithProxy([]v1.IPFamily{v1.IPv4Protocol})
	name := regexp.MustCompile(`fqName: "([^"]+)"`)
	for _, r := range []*prometheus.Registry{m.registry, m.probing} {
		descs := make(chan *prometheus.Desc, 1000)
		r.Describe(descs)
		close(descs)
		for d := range descs {
			names = append(names, name.FindStringSubmatch(d.String())[1])
		}
	}
	for _, c := range claimMeasures() {
		names = append(names, c.name)
	}
	own := regexp.MustCompile(`^(kubelet|prober|nodeagent|kubeproxy)_`)
	for _, n := range names {
		if own.MatchString(n) && !documented[n] {
			t.Errorf("%s is not in docs/metrics.md", n)
		}
	}
	for n := range documented {
		if !slices.Contains(names, n) {
			t.Errorf("docs/metrics.md has %s, which is not there", n)
		}
	}
}
