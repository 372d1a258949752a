package config

import (
	"strings"
	"testing"
)

func TestResourceSettings(t *testing.T) {
	for text, want := range map[string]string{
		"systemReserved: {cpu: 500m, memory: 1Gi, ephemeral-storage: 5%}":     "systemReserved.ephemeral-storage",
		"kubeReserved: {hugepages-2Mi: 2Mi}":                                  "kubeReserved.hugepages-2Mi",
		"kubeReserved: {memory: -1}":                                          "kubeReserved.memory",
		"enforceNodeAllocatable: [pods, none]":                                "enforceNodeAllocatable: none stands alone",
		"enforceNodeAllocatable: [everything]":                                "enforceNodeAllocatable[0]",
		"enforceNodeAllocatable: [system-reserved]\nsystemReserved: {cpu: 1}": "systemReservedCgroup",
		"enforceNodeAllocatable: [kube-reserved]\nkubeReservedCgroup: /agent": "kubeReserved: names nothing",
		"enforceNodeAllocatable: [kube-reserved, kube-reserved-compressible]\nkubeReservedCgroup: /a\nkubeReserved: {cpu: 1}": "exclude each other",
		"maxPods: -1":                                               "maxPods",
		"maxPods: 5\npodsPerCore: 6":                                "podsPerCore",
		"cpuCFSQuotaPeriod: 2s":                                     "cpuCFSQuotaPeriod",
		"cpuCFSQuota: maybe":                                        "cpuCFSQuota: must be true or false",
		"memoryThrottlingFactor: 1.5":                               "memoryThrottlingFactor",
		"memoryThrottlingFactor: much":                              "memoryThrottlingFactor: must be a number",
		"memoryReservationPolicy: Hard":                             "memoryReservationPolicy",
		"memorySwap: {swapBehavior: Swap}":                          "memorySwap.swapBehavior",
		"failSwapOn: true\nmemorySwap: {swapBehavior: LimitedSwap}": "failSwapOn",
	} {
		if _, err := Parse([]byte(head+strings.ReplaceAll(text, "cpu: 1}", `cpu: "1"}`)+"\n"), "c"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
	c, err := Parse([]byte(head+`systemReserved: {cpu: 500m, pid: "100"}
cpuCFSQuota: false
memoryThrottlingFactor: 1
enforceNodeAllocatable: [pods, system-reserved-compressible]
systemReservedCgroup: /system.slice
`), "c")
	if err != nil {
		t.Fatal(err)
	}
	Default(c, testHost())
	amounts, pids := Reserved(c.SystemReserved)
	if amounts.Cpu().MilliValue() != 500 || len(amounts) != 1 || pids != 100 {
		t.Errorf("reserved %v, %d", amounts, pids)
	}
	if c.EnforcesCFSQuota() || c.MemoryThrottlingFactor != 1 || c.MaxPods != 110 || !c.Enforces(EnforceSystem, EnforceSystemCPU) || c.Enforces(EnforceKube) {
		t.Errorf("%+v", c)
	}
}
