package config

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestShutdownPeriods(t *testing.T) {
	c := &NodeAgentConfiguration{}
	if got := c.ShutdownPeriods(); got != nil {
		t.Errorf("by default it does not wait: %v", got)
	}
	c.ShutdownGracePeriod.Duration, c.ShutdownGracePeriodCriticalPods.Duration = 30*time.Second, 10*time.Second
	if got := c.ShutdownPeriods(); !slices.Equal(got, []ShutdownPeriod{{0, 20}, {2000000000, 10}}) || Validate(c) != nil {
		t.Errorf("%v %v", got, Validate(c))
	}
	c, err := Parse([]byte(head+"shutdownGracePeriodByPodPriority:\n- {priority: 1000, shutdownGracePeriodSeconds: 20}\n- {priority: 0, shutdownGracePeriodSeconds: 5}\n"), "c.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if got := c.ShutdownPeriods(); !slices.Equal(got, []ShutdownPeriod{{1000, 20}, {0, 5}}) {
		t.Errorf("%v", got)
	}
}

func TestShutdownErrors(t *testing.T) {
	for text, want := range map[string]string{
		"shutdownGracePeriod: 10s\nshutdownGracePeriodCriticalPods: 20s\n":                                                                    "shutdownGracePeriodCriticalPods: 20s must not be above shutdownGracePeriod, 10s",
		"shutdownGracePeriod: 100ms\n":                                                                                                        "shutdownGracePeriod: 100ms is below the least, 1s",
		"shutdownGracePeriodByPodPriority:\n- {priority: 0, shutdownGracePeriodSeconds: 5}\nshutdownGracePeriod: 10s\n":                       "shutdownGracePeriodByPodPriority: cannot be set together",
		"shutdownGracePeriodByPodPriority:\n- {priority: 0, shutdownGracePeriodSeconds: -5}\n":                                                "shutdownGracePeriodByPodPriority: -5s of priority 0 is below 0",
		"shutdownGracePeriodByPodPriority:\n- {priority: 0, shutdownGracePeriodSeconds: 5}\n- {priority: 0, shutdownGracePeriodSeconds: 6}\n": "shutdownGracePeriodByPodPriority: priority 0 is there twice",
		"shutdownGracePeriodByPodPriority:\n- {priority: 0, shutdownGracePeriodSecond: 5}\n":                                                  "unknown field",
	} {
		if _, err := Parse([]byte(head+text), "c.yaml"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}
