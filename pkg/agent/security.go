package agent

import (
	"context"
	"os"

	"github.com/nodeagent/nodeagent/pkg/podworker"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// seccompDir is where pods' Localhost seccomp profiles are, below the state
// folder as below kubelet's.
const seccompDir = "seccomp"

// nodeSecurity is what this node can enforce.
func (a *agent) nodeSecurity(ctx context.Context, client *runtime.Client) podworker.NodeSecurity {
	return podworker.NodeSecurity{
		AppArmor: appArmorEnabled("/"),
		GroupsPolicy: func() bool {
			f, err := client.Features(ctx)
			// A runtime that is away runs nothing: it is asked again then.
			return err != nil || f.SupplementalGroupsPolicy
		},
	}
}

// appArmorEnabled says that the kernel enforces profiles. That a profile is
// loaded is the runtime's to find out.
func appArmorEnabled(root string) bool {
	if _, err := os.Stat(root + "sys/kernel/security/apparmor"); err != nil {
		return false
	}
	b, err := os.ReadFile(root + "sys/module/apparmor/parameters/enabled")
	return err == nil && len(b) > 0 && b[0] == 'Y'
}
