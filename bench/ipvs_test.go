//go:build bench

package bench

import (
	"strings"
	"testing"

	"github.com/nodeagent/nodeagent/internal/testbed/vm"
)

// TestIPVS measures the backend beside IPVS's bare messages where there is
// IPVS: in the guest of the VM tier.
func TestIPVS(t *testing.T) {
	out := vm.Start(t).GoTest(t, "./pkg/proxy/backend/ipvs", "-test.run=^$", "-test.bench=.")
	for line := range strings.Lines(out) {
		if strings.Contains(line, "-p50-ms") || strings.Contains(line, "floor-ms") {
			t.Log(strings.TrimSpace(line))
		}
	}
}
