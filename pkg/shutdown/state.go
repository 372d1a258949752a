package shutdown

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/nodeagent/nodeagent/pkg/store"
)

// State is what stays of the latest shutdown, for the agent after it.
type State struct {
	// Boot is the id of the boot that it ends; empty: it was cancelled.
	Boot string `json:"boot,omitempty"`
	// Start is when it was announced, End when the pods had ended.
	Start time.Time `json:"start,omitzero"`
	End   time.Time `json:"end,omitzero"`
}

// UnderWay says that it is this boot that ends.
func (s State) UnderWay(boot string) bool { return s.Boot != "" && s.Boot == boot }

// ReadState reads a State; a file that is not there is none.
func ReadState(file string) (s State, err error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return State{}, fmt.Errorf("cannot read what is known of the latest shutdown of the node: %w", err)
	}
	return s, nil
}

func (s State) write(file string) error {
	b, err := json.Marshal(s)
	if err == nil {
		err = store.WriteFile(file, b)
	}
	if err != nil {
		return fmt.Errorf("cannot note down that the node is shutting down: %w", err)
	}
	return nil
}
