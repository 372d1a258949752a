package agent

import (
	"os"
	goruntime "runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	nodeapi "github.com/nodeagent/nodeagent/pkg/node"
)

// see takes up what the node is like now, for everybody who asks.
func (a *agent) see(c *conditions) {
	a.seen.Store(c)
	a.nodeObject.Set(a.nodeFacts(c).Object())
}

// nodeFacts are what the Node object is made of.
func (a *agent) nodeFacts(c *conditions) nodeapi.Facts {
	f := nodeapi.Facts{
		Name: a.cfg.NodeName, UID: manifest.UID(a.instance, "", a.cfg.NodeName, "v1/Node"), Labels: a.nodeLabels(), Created: a.firstStart(),
		Addresses: a.cfg.NodeIP, PodCIDRs: a.cfg.Network.PodCIDRs, CPUs: goruntime.NumCPU(),
		System: nodeapi.System("/", a.o.Build.Version), Handlers: c.runtime.Handlers, NotReady: c.runtimeReason,
	}
	if f.NotReady == "" {
		f.NotReady = c.networkReason
	}
	if c.runtime.Name != "" {
		f.System.ContainerRuntimeVersion = c.runtime.Name + "://" + c.runtime.Version
	}
	if memory, err := totalMemory(); err == nil {
		f.Memory = memory
	}
	var st unix.Statfs_t
	if err := unix.Statfs(a.cfg.StateDir, &st); err == nil {
		f.Disk = st.Blocks * uint64(st.Bsize)
	}
	return f
}

// firstStart is when this node began: its state folder keeps the name it had then.
func (a *agent) firstStart() time.Time {
	st, err := os.Stat(a.statePath(instFile))
	if err != nil {
		return a.started
	}
	return st.ModTime()
}
