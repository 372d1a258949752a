package agent

import (
	"context"
	"log/slog"
	"slices"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
)

// journalPrefix keeps our fields from being taken for journald's own.
const journalPrefix = "NODEAGENT_"

// journalHandler hands records to journald: the level as PRIORITY, each
// attribute as a field of its own, such as NODEAGENT_POD, and all of it in
// MESSAGE for people.
type journalHandler struct {
	send     func(message string, p journal.Priority, fields map[string]string) error
	fallback slog.Handler // says which levels count, and takes what journald does not
	attrs    []slog.Attr  // their keys are complete
	group    string       // what the keys of further attributes begin with
}

// Enabled implements slog.Handler.
func (h *journalHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.fallback.Enabled(ctx, l)
}

// Handle implements slog.Handler.
func (h *journalHandler) Handle(ctx context.Context, r slog.Record) error {
	attrs := slices.Clone(h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		attrs = flatten(attrs, h.group, a)
		return true
	})
	fields := map[string]string{"SYSLOG_IDENTIFIER": "nodeagent"}
	var message strings.Builder
	message.WriteString(r.Message)
	for _, a := range attrs {
		text := a.Value.String()
		fields[journalName(a.Key)] = text
		message.WriteString(" " + a.Key + "=")
		if text == "" || strings.ContainsAny(text, " =\"\n\t") {
			text = strconv.Quote(text)
		}
		message.WriteString(text)
	}
	if h.send(message.String(), priority(r.Level), fields) == nil {
		return nil
	}
	return h.fallback.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	next.attrs, next.fallback = slices.Clone(h.attrs), h.fallback.WithAttrs(attrs)
	for _, a := range attrs {
		next.attrs = flatten(next.attrs, h.group, a)
	}
	return &next
}

// WithGroup implements slog.Handler.
func (h *journalHandler) WithGroup(name string) slog.Handler {
	next := *h
	next.group, next.fallback = h.group+name+".", h.fallback.WithGroup(name)
	return &next
}

// flatten appends an attribute, a group as its members, with complete keys.
func flatten(to []slog.Attr, prefix string, a slog.Attr) []slog.Attr {
	v := a.Value.Resolve()
	if v.Kind() != slog.KindGroup {
		return append(to, slog.Attr{Key: prefix + a.Key, Value: v})
	}
	if a.Key != "" {
		prefix += a.Key + "."
	}
	for _, member := range v.Group() {
		to = flatten(to, prefix, member)
	}
	return to
}

// journalName makes a field's name: journald takes A to Z, digits and _.
func journalName(key string) string {
	return journalPrefix + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, key)
}

func priority(l slog.Level) journal.Priority {
	switch {
	case l >= slog.LevelError:
		return journal.PriErr
	case l >= slog.LevelWarn:
		return journal.PriWarning
	case l >= slog.LevelInfo:
		return journal.PriInfo
	}
	return journal.PriDebug
}
