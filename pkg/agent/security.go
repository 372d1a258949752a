package agent

import (
	"context"
	"os"

	v1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"

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
		Sysctls:  a.cfg.Pods.AllowedUnsafeSysctls,
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

func (o objects) RuntimeClass(name string) (*nodev1.RuntimeClass, error) {
	return find[*nodev1.RuntimeClass](o, "RuntimeClass", "", name)
}

func (o objects) ServiceAccount(namespace, name string) (*v1.ServiceAccount, error) {
	return find[*v1.ServiceAccount](o, "ServiceAccount", namespace, name)
}
