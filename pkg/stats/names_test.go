package stats

import (
	"strings"
	"testing"
)

// Sample is what Run does now and then.
func (r *Reader) Sample() { r.sample() }

func TestContainerID(t *testing.T) {
	id := strings.Repeat("b", 64)
	for name, want := range map[string]string{
		id: id, "cri-containerd-" + id + ".scope": id, "crio-" + id: id, "crio-conmon-" + id + ".scope": "", "init": "",
	} {
		if got, ok := containerID(name); ok != (want != "") || ok && got != want {
			t.Errorf("%s: %q, %v", name, got, ok)
		}
	}
}
