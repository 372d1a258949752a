package nftables

import (
	"bytes"
	"context"
	"slices"
	"strings"

	"github.com/nodeagent/nodeagent/pkg/proxy/ruleset"
)

// clientsPrefix begins the name of each set of session affinity.
const clientsPrefix = "clients-"

// clients are the elements of the sets of session affinity, by family and
// name, as nft writes and reads them: with the time that each has left.
type clients map[string]map[string]string

// clients reads who has which endpoint, so that a full replacement keeps that.
// Without it clients may change their endpoint, which is no reason to leave the
// kernel as it is.
func (b *Backend) clients(ctx context.Context, now ruleset.Ruleset) clients {
	if !slices.ContainsFunc(now.Frontends, func(f *ruleset.Frontend) bool { return f.Affinity > 0 }) {
		return nil
	}
	tables, err := b.opts.Nft.Run(ctx, nil, "list", "tables")
	out := clients{}
	for _, f := range []family{ipv4, ipv6} {
		if !slices.Contains(strings.Split(string(tables), "\n"), "table "+f.name+" "+Table) {
			continue
		}
		var text []byte
		if text, err = b.opts.Nft.Run(ctx, nil, "list", "table", f.name, Table); err == nil {
			out[f.name] = readClients(text)
		}
	}
	if err != nil {
		b.opts.Log.Warn("clients with session affinity may change their endpoint now", "error", err)
	}
	return out
}

// readClients reads a listing of a table.
func readClients(listing []byte) map[string]string {
	out := map[string]string{}
	name, inside := "", false
	var elements strings.Builder
	for raw := range bytes.Lines(listing) {
		line := string(bytes.TrimSpace(raw))
		if kind, rest, _ := strings.Cut(line, " "); kind == "set" || kind == "map" || kind == "chain" {
			name, inside = "", false
			if kind == "set" && strings.HasPrefix(rest, clientsPrefix) {
				name = strings.TrimSuffix(rest, " {")
			}
			continue
		}
		if name == "" {
			continue
		}
		if rest, first := strings.CutPrefix(line, "elements = { "); first {
			line, inside = rest, true
		}
		if !inside {
			continue
		}
		text, last := strings.CutSuffix(line, " }")
		elements.WriteString(text)
		if last {
			out[name] = elements.String()
			elements.Reset()
			inside = false
		}
	}
	return out
}

// keep fills the sets of clients that are made anew.
func (t *transaction) keep(known map[string]string) {
	for _, o := range t.objects {
		if elements := known[o.name]; elements != "" && o.kind == "set" {
			t.Add(o.name, elements)
		}
	}
}
