package probe

import (
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

// TestThresholds: + and - are what the probes say, the verdict after each of
// them is Y or n.
func TestThresholds(t *testing.T) {
	for name, tc := range map[string]struct {
		ready            bool
		success, failure int32
		says, want       string
	}{
		"the defaults":                         {false, 1, 3, "-+--+---+", "nYYYYYYnY"},
		"ready after two":                      {false, 2, 1, "+-++-++", "nnnYnnY"},
		"one failure":                          {false, 1, 1, "+-+-", "YnYn"},
		"stays what it was, then fails":        {true, 3, 2, "-+--+++", "YYYnnnY"},
		"a probe that never agrees":            {false, 3, 3, "++-++-++-", "nnnnnnnnn"},
		"a run does not start over at a limit": {false, 2, 2, "++++--", "nYYYYn"},
	} {
		spec := &v1.Probe{SuccessThreshold: tc.success, FailureThreshold: tc.failure}
		st := state{good: tc.ready}
		var got strings.Builder
		for _, c := range tc.says {
			st = st.after(c == '+', spec)
			got.WriteByte(map[bool]byte{true: 'Y', false: 'n'}[st.good])
		}
		if got.String() != tc.want {
			t.Errorf("%s: %s gives %s, want %s", name, tc.says, got.String(), tc.want)
		}
	}
}

func TestWait(t *testing.T) {
	began := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	at := func(s float64) time.Time { return began.Add(time.Duration(s * float64(time.Second))) }
	for name, tc := range map[string]struct {
		delay, period int32
		previous, now float64 // seconds after the start; no previous below zero
		want          float64
	}{
		"at the start":               {0, 10, -1, 0, 0},
		"initial delay":              {5, 10, -1, 2, 3},
		"of an agent that restarted": {5, 10, -1, 3600, -3595},
		"a clock that was set back":  {5, 10, -1, -3600, 5},
		"next":                       {5, 10, 7, 7.2, 9.8},
		"one that took too long":     {0, 1, 7, 9, -1},
	} {
		var previous time.Time
		if tc.previous >= 0 {
			previous = at(tc.previous)
		}
		spec := &v1.Probe{InitialDelaySeconds: tc.delay, PeriodSeconds: tc.period}
		if got := wait(spec, 0, began, previous, at(tc.now)); got != at(tc.want).Sub(began) {
			t.Errorf("%s: %s, want %gs", name, got, tc.want)
		}
	}
}
