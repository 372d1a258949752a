package usage

import (
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/stats"
)

// Machine is what does not change.
type Machine struct {
	System  v1.NodeSystemInfo
	Version string // of the agent
	// Cores are logical CPUs; PhysicalCores and Sockets are 0 where the machine
	// does not tell.
	Cores, PhysicalCores, Sockets int
}

func (m Machine) write(t *text, node *stats.Node) {
	ids := labels("boot_id", m.System.BootID, "machine_id", m.System.MachineID, "system_uuid", m.System.SystemUUID)
	for _, f := range []struct {
		name, help string
		value      float64
	}{
		{"machine_cpu_cores", "Logical CPUs.", float64(m.Cores)},
		{"machine_cpu_physical_cores", "Physical cores.", float64(m.PhysicalCores)},
		{"machine_cpu_sockets", "CPU sockets.", float64(m.Sockets)},
		{"machine_memory_bytes", "Memory of the machine.", float64(node.Capacity)},
		{"machine_swap_bytes", "Swap of the machine.", float64(node.SwapTotal)},
	} {
		t.family(f.name, gauge, f.help)
		t.sample(f.name, ids, f.value, time.Time{})
	}
	t.family("machine_scrape_error", gauge, "1 when something could not be read.")
	t.sample("machine_scrape_error", "", 0, time.Time{})
	t.family("cadvisor_version_info", gauge, "Always 1; the labels tell what answers in cAdvisor's place.")
	t.sample("cadvisor_version_info", labels("cadvisorRevision", "", "cadvisorVersion", "nodeagent-"+m.Version,
		"dockerVersion", "", "kernelVersion", m.System.KernelVersion, "osVersion", m.System.OSImage), 1, time.Time{})
}
