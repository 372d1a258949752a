package eviction

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/config"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// saved is what a restarted agent needs to know: pods that were refused are not
// taken on a moment later, and a soft threshold's grace period does not begin
// anew.
type saved struct {
	Pressed map[v1.NodeConditionType]time.Time `json:"pressed,omitempty"`
	Since   map[string]time.Time               `json:"since,omitempty"` // by thresholdKey
}

// thresholdKey names a threshold in the file, whatever others there are.
func thresholdKey(t config.Threshold) string {
	if t.Grace == 0 {
		return string(t.Signal)
	}
	return string(t.Signal) + " soft"
}

func readSaved(file string) (s saved, err error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	return s, err
}

// Remembered are the conditions that the agent before has left in its StateFile;
// they hold until somebody has looked.
func Remembered(file string, transition time.Duration, now time.Time) []v1.NodeConditionType {
	s, err := readSaved(file)
	if err != nil {
		return nil // New tells
	}
	return pressure{pressed: s.Pressed}.conditions(transition, now)
}

func readState(o Options) pressure {
	p := pressure{since: make([]time.Time, len(o.Thresholds)), driving: make([]bool, len(o.Thresholds))}
	s, err := readSaved(o.StateFile)
	if err != nil {
		o.Log.Warn("what was known of the node's pressure is lost; it is looked at anew", "err", err)
		return p
	}
	p.pressed = s.Pressed
	for i, t := range o.Thresholds {
		p.since[i] = s.Since[thresholdKey(t)]
	}
	return p
}

func (m *Manager) writeState() {
	s := saved{Pressed: m.state.pressed, Since: map[string]time.Time{}}
	for i, t := range m.Thresholds {
		if !m.state.since[i].IsZero() {
			s.Since[thresholdKey(t)] = m.state.since[i]
		}
	}
	b, err := json.Marshal(s)
	if err == nil {
		err = store.WriteFile(m.StateFile, b)
	}
	if err != nil {
		// The disk may be what is full.
		m.Log.Warn("cannot note down that the node runs short; a restarted agent has to find out", "err", err)
	}
}

// sameShortage says that the same is short as before.
func (p pressure) sameShortage(old pressure) bool {
	for i := range p.since {
		if p.since[i].IsZero() != old.since[i].IsZero() {
			return false
		}
	}
	return true
}
