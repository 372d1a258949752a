package agent

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/config"
)

// Who only serves Services may have no cgroups to clean up; who had pods has
// to be told.
func TestCleanupWithoutCgroups(t *testing.T) {
	for _, tc := range []struct {
		uids map[types.UID]bool
		want string
	}{{map[types.UID]bool{}, ""}, {map[types.UID]bool{"u": true}, "cgroups"}} {
		cfg := &config.NodeAgentConfiguration{StateDir: t.TempDir(), PodLogDir: t.TempDir(), ContainerLogDir: t.TempDir()}
		cfg.Runtime.CgroupDriver = "none that there is"
		var out bytes.Buffer
		c := &cleaner{out: &out, agent: &agent{cfg: cfg, log: slog.New(slog.DiscardHandler)}}
		c.volumes = c.newVolumes()
		c.leftovers(t.Context(), tc.uids)
		if told := len(c.errs) == 1 && strings.Contains(c.errs[0].Error(), "cgroups: "); told != (tc.want != "") || len(c.errs) > 1 {
			t.Errorf("%d pods: %v\n%s", len(tc.uids), c.errs, &out)
		}
		if strings.Contains(out.String(), "removed cgroups") {
			t.Errorf("%d pods: %s", len(tc.uids), &out)
		}
	}
}
