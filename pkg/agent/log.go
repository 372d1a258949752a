package agent

import (
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/coreos/go-systemd/v22/journal"

	"github.com/nodeagent/nodeagent/pkg/config"
)

// newLogger writes to w. Text for journald, which is what a service's standard
// error is, goes there in its own protocol, so that it keeps level and fields.
func newLogger(c config.Log, w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		return nil, fmt.Errorf("log.level %q: use debug, info, warn or error", c.Level)
	}
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o)), nil
	}
	text := slog.NewTextHandler(w, o)
	// A stream that cannot be examined is none of journald's.
	if ours, err := journal.StderrIsJournalStream(); err == nil && ours && w == io.Writer(os.Stderr) {
		return slog.New(&journalHandler{send: journal.Send, fallback: text}), nil
	}
	return slog.New(text), nil
}
