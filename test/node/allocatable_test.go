package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/internal/testbed"
	"github.com/nodeagent/nodeagent/pkg/config"
)

// podsShare is the CPU share of all pods and their limit of processes, as the
// kernel has them.
func podsShare(n *testbed.Node) (share, pids string) {
	read := func(paths ...string) string {
		for _, p := range paths {
			if b, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", fmt.Sprintf(p, n.Name+"/kubepods"))); err == nil {
				return strings.TrimSpace(string(b))
			}
		}
		return ""
	}
	return read("cpu/%s/cpu.shares", "%s/cpu.weight"), read("pids/%s/pids.max", "%s/pids.max")
}

// TestNodeAllocatable: pods have what is not reserved, all together and each; who
// runs notices nothing of another configuration.
func TestNodeAllocatable(t *testing.T) {
	n := newNode(t)
	reserve := func(leave int) func(c *config.NodeAgentConfiguration) {
		return func(c *config.NodeAgentConfiguration) {
			c.SystemReserved = map[string]string{"cpu": fmt.Sprintf("%dm", runtime.NumCPU()*1000-leave), "memory": "64Mi"}
			c.KubeReserved = map[string]string{"memory": "64Mi", "pid": "1000"}
		}
	}
	n.EditConfig(reserve(1500))
	n.StartAgent()
	n.WriteManifest("a.yaml", manifest{name: "whole", spec: "resources: {requests: {cpu: \"1\", memory: 32Mi}, limits: {memory: 64Mi}}\n"}.String())
	n.WaitPods(long, testbed.Running("whole"))
	n.WriteManifest("b.yaml", manifest{name: "big", container: "resources: {requests: {cpu: 600m}}\n"}.String())
	n.WriteManifest("c.yaml", manifest{name: "small", container: "resources: {requests: {cpu: 500m}}\n"}.String())
	pods := n.WaitPods(long, all(testbed.Running("whole", "small"), failed("big", "OutOfcpu")))
	if m := pods["default/big"].Status.Message; !strings.Contains(m, "Node didn't have enough resource: cpu, requested: 600, used: ") || !strings.Contains(m, "capacity: 1500") {
		t.Errorf("the pod that does not fit: %s", m)
	}
	if q := pods["default/whole"].Status.QOSClass; q != v1.PodQOSBurstable {
		t.Errorf("QoS class %s", q)
	}
	limit, _ := n.ExecSync(runningID(t, n, "whole", "main"), "sh", "-c", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max")
	if strings.TrimSpace(limit) != "67108864" {
		t.Errorf("a container of a pod with a limit has %q", limit)
	}

	resp, err := n.API().Get("http://node/api/v1/nodes/" + n.Name)
	if err != nil {
		t.Fatal(err)
	}
	var self v1.Node
	if err := errors.Join(json.NewDecoder(resp.Body).Decode(&self), resp.Body.Close()); err != nil {
		t.Fatal(err)
	}
	st := self.Status
	reserved := st.Capacity.Memory().Value() - st.Allocatable.Memory().Value()
	if st.Allocatable.Cpu().MilliValue() != 1500 || st.Capacity.Cpu().Value() != int64(runtime.NumCPU()) || reserved < 128<<20 || st.Allocatable.Pods().Value() != 110 {
		t.Errorf("capacity %v, allocatable %v", st.Capacity, st.Allocatable)
	}

	share, pids := podsShare(n)
	if share != "1536" && share != "59" || pids == "" || pids == "max" {
		t.Errorf("all pods have the CPU share %q and %q processes", share, pids)
	}
	before := ids(t, n)
	n.EditConfig(reserve(1000))
	n.SignalAgent(syscall.SIGHUP)
	n.Eventually(long, "all pods have less", func() error {
		if share, _ := podsShare(n); share != "1024" && share != "39" {
			return fmt.Errorf("share %s", share)
		}
		return nil
	})
	n.WaitPods(long, testbed.Running("whole", "small"))
	for name, id := range ids(t, n) {
		if before[name] != id {
			t.Errorf("%s was %s and is %s", name, before[name], id)
		}
	}
}
