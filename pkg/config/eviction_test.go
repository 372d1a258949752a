package config

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestThresholds(t *testing.T) {
	c := &NodeAgentConfiguration{
		EvictionHard: map[string]string{"memory.available": "200Mi", "nodefs.available": "10%", "imagefs.available": "0%", "pid.available": "100"},
		EvictionSoft: map[string]string{"nodefs.available": "20%"}, EvictionSoftGracePeriod: map[string]string{"nodefs.available": "1m30s"},
		EvictionMinimumReclaim: map[string]string{"memory.available": "10Mi", "nodefs.available": "5%"},
	}
	Default(c, testHost())
	if err := Validate(c); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, th := range c.Thresholds() {
		of, more := th.Value.Of(resource.MustParse("1000Mi")), th.Reclaim.Of(resource.MustParse("1000Mi"))
		got = append(got, fmt.Sprintf("%s %s +%s %s", th.Signal, &of, &more, th.Grace))
	}
	want := `memory.available 200Mi +10Mi 0s
allocatableMemory.available 200Mi +10Mi 0s
nodefs.available 100Mi +50Mi 0s
nodefs.available 200Mi +50Mi 1m30s
pid.available 100 +0 0s`
	if strings.Join(got, "\n") != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
}

func TestEvictionDefaults(t *testing.T) {
	c := &NodeAgentConfiguration{EvictionHard: map[string]string{"memory.available": "1Gi"}, ImageGCHighThresholdPercent: 60}
	Default(c, testHost())
	if len(c.EvictionHard) != 1 || c.ImageGCLowThresholdPercent != 59 {
		t.Errorf("what is given replaces the default: %v; the low percentage is below the high one: %d", c.EvictionHard, c.ImageGCLowThresholdPercent)
	}
	c.MergeDefaultEvictionSettings = true
	Default(c, testHost())
	if len(c.EvictionHard) != 5 || c.EvictionHard["memory.available"] != "1Gi" || c.EvictionHard["imagefs.available"] != "15%" {
		t.Errorf("it is added to the default: %v", c.EvictionHard)
	}
}

func TestEvictionMistakes(t *testing.T) {
	one := func(k, v string) map[string]string { return map[string]string{k: v} }
	for want, set := range map[string]func(*NodeAgentConfiguration){
		"evictionHard.memory.free: is no signal; there are memory.available ":              func(c *NodeAgentConfiguration) { c.EvictionHard = one("memory.free", "1Gi") },
		`evictionHard.nodefs.available: "110%" is no percentage from 0% to 100%`:           func(c *NodeAgentConfiguration) { c.EvictionHard = one("nodefs.available", "110%") },
		`evictionHard.nodefs.available: "NaN%" is no percentage`:                           func(c *NodeAgentConfiguration) { c.EvictionHard = one("nodefs.available", "NaN%") },
		`evictionHard.memory.available: "much" is neither a quantity`:                      func(c *NodeAgentConfiguration) { c.EvictionHard = one("memory.available", "much") },
		"evictionHard.memory.available: must be more than 0":                               func(c *NodeAgentConfiguration) { c.EvictionHard = one("memory.available", "0") },
		"evictionHard.memory.available: -1Gi is below 0":                                   func(c *NodeAgentConfiguration) { c.EvictionHard = one("memory.available", "-1Gi") },
		"evictionSoft.memory.available: needs evictionSoftGracePeriod.memory.available":    func(c *NodeAgentConfiguration) { c.EvictionSoft = one("memory.available", "1Gi") },
		"evictionSoftGracePeriod.memory.available: set without evictionSoft":               func(c *NodeAgentConfiguration) { c.EvictionSoftGracePeriod = one("memory.available", "1m") },
		"evictionSoftGracePeriod.memory.available: must be a duration":                     func(c *NodeAgentConfiguration) { c.EvictionSoftGracePeriod = one("memory.available", "90") },
		"evictionMinimumReclaim.x: is no signal":                                           func(c *NodeAgentConfiguration) { c.EvictionMinimumReclaim = one("x", "1Gi") },
		"imageGCHighThresholdPercent: 101 is not between 0 and 100":                        func(c *NodeAgentConfiguration) { c.ImageGCHighThresholdPercent = 101 },
		"imageGCLowThresholdPercent: 90 must be less than imageGCHighThresholdPercent, 85": func(c *NodeAgentConfiguration) { c.ImageGCLowThresholdPercent = 90 },
		"imageMaximumGCAge: 1m0s must be greater than imageMinimumGCAge, 2m0s":             func(c *NodeAgentConfiguration) { c.ImageMaximumGCAge.Duration = time.Minute },
		"evictionPressureTransitionPeriod: -1s is below the least, 1s":                     func(c *NodeAgentConfiguration) { c.EvictionPressureTransitionPeriod.Duration = -time.Second },
	} {
		c := &NodeAgentConfiguration{}
		Default(c, testHost())
		set(c)
		if err := Validate(c); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

func TestEvictionFlags(t *testing.T) {
	var set, c NodeAgentConfiguration
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	BindFlags(fs, &set)
	if err := fs.Parse([]string{"--eviction-hard", "memory.available<1Gi,nodefs.available<10%", "--eviction-soft-grace-period=memory.available=1m30s", "--image-gc-high-threshold=70"}); err != nil {
		t.Fatal(err)
	}
	Override(&c, &set, fs)
	if c.EvictionHard["memory.available"] != "1Gi" || c.EvictionHard["nodefs.available"] != "10%" || c.EvictionSoftGracePeriod["memory.available"] != "1m30s" || c.ImageGCHighThresholdPercent != 70 {
		t.Errorf("%+v", c)
	}
	if err := fs.Parse([]string{"--eviction-hard", "memory.available=1Gi"}); err == nil {
		t.Error("a sign that is not < passes")
	}
}
