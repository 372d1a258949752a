package apiserver

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/go-logr/logr"
)

// TestQuietLog: what client-go logs, errors too, is for who asked for debug
// messages.
func TestQuietLog(t *testing.T) {
	for level, want := range map[slog.Level]int{slog.LevelInfo: 0, slog.LevelDebug: 2} {
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: level}))
		ctx := withLog(context.Background(), log)
		l := logr.FromContextOrDiscard(ctx)
		l.Error(errors.New("refused"), "cannot list")
		l.Info("listed")
		l.V(9).Info("a body")
		if got := strings.Count(out.String(), "level=DEBUG"); got != want || strings.Count(out.String(), "\n") != want {
			t.Errorf("level %s: want %d lines:\n%s", level, want, out.String())
		}
	}
}
