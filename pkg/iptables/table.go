package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// Tables are all that iptables knows, in the order in which it is safe to
// empty them: who is sent nowhere any more is no longer refused.
var Tables = []string{"nat", "mangle", "filter", "raw", "security"}

// Table is what a table holds of some chains.
type Table struct {
	// Chains are the chains themselves.
	Chains []string
	// Jumps are the rules of other chains that lead to them, as -A commands.
	Jumps []string
	// First is the first rule of each other chain, as an -A command.
	First map[string]string
	// Rules are those of the chains themselves.
	Rules map[string]Rules
}

// Rules are what can be compared of a chain's rules without keeping them.
type Rules struct {
	Count int
	Sum   uint64
}

// Read reads who is in a table: the chains that own tells, and the jumps to
// them. A table that the kernel does not have is empty.
func (t Tool) Read(ctx context.Context, table string, own func(chain string) bool) (Table, error) {
	out := Table{First: map[string]string{}, Rules: map[string]Rules{}}
	if !t.loaded(table) {
		return out, nil
	}
	r := reader{Table: &out, own: own}
	if err := t.run(ctx, nil, &r, t.Program("save"), "-t", table); err != nil {
		return Table{}, fmt.Errorf("read table %s: %w", table, err)
	}
	return out, nil
}

// The sums mean something within one process only; their order counts.
var seed = maphash.MakeSeed()

const prime = 1099511628211

// reader takes in what iptables-save prints, line by line: a large table is
// megabytes, of which next to nothing is kept.
type reader struct {
	*Table
	own   func(chain string) bool
	rest  []byte // of a line that has not ended
	chain string // of the last rule
	mine  bool   // that is our own
}

// Write implements io.Writer.
func (r *reader) Write(p []byte) (int, error) {
	written := len(p)
	for {
		line, after, ended := bytes.Cut(p, []byte("\n"))
		if len(r.rest) > 0 || !ended {
			r.rest = append(r.rest, line...)
			line = r.rest
		}
		if !ended {
			return written, nil
		}
		r.line(line)
		p, r.rest = after, r.rest[:0]
	}
}

func (r *reader) line(line []byte) {
	if name, ok := bytes.CutPrefix(line, []byte(":")); ok {
		name, _, _ = bytes.Cut(name, []byte(" "))
		if chain := string(name); r.own(chain) {
			r.Chains, r.Rules[chain] = append(r.Chains, chain), Rules{}
		}
		return
	}
	rule, ok := bytes.CutPrefix(line, []byte("-A "))
	if !ok {
		return
	}
	chain, rest, _ := bytes.Cut(rule, []byte(" "))
	if string(chain) != r.chain { // a chain's rules come one after the other
		r.chain = string(chain)
		r.mine = r.own(r.chain)
	}
	if r.mine {
		sum := r.Rules[r.chain]
		r.Rules[r.chain] = Rules{sum.Count + 1, sum.Sum*prime ^ maphash.Bytes(seed, rest)}
		return
	}
	if _, there := r.First[r.chain]; !there {
		r.First[r.chain] = string(line)
	}
	if r.own(target(string(rest))) {
		r.Jumps = append(r.Jumps, string(line))
	}
}

// First is the first rule of a chain as an -A command; "" when there is no rule
// or no chain.
func (t Tool) First(ctx context.Context, table, chain string) (string, error) {
	var out bytes.Buffer
	err := t.run(ctx, nil, &out, t.Program(""), "--wait="+t.wait(), "-t", table, "-S", chain, "1")
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == exitOther {
		return "", nil
	}
	return strings.TrimSpace(out.String()), err
}

// target is where a rule leads.
func target(rule string) string {
	words := strings.Fields(rule)
	for i := len(words) - 2; i >= 0; i-- {
		if words[i] == "-j" || words[i] == "-g" {
			return words[i+1]
		}
	}
	return ""
}

// loaded says that the kernel has that table. The older variant makes one by
// asking for it, which costs every packet something from then on.
func (t Tool) loaded(table string) bool {
	mode := t.Mode
	if mode == Default {
		info, err := t.Info()
		if err != nil {
			return true // who runs the programs will see why
		}
		mode = info.Variant
	}
	if mode != Legacy {
		return true
	}
	names := "/proc/thread-self/net/ip_tables_names"
	if t.V6 {
		names = "/proc/thread-self/net/ip6_tables_names"
	}
	b, err := os.ReadFile(names)
	if err != nil {
		return false // no module, no tables
	}
	return slices.Contains(strings.Fields(string(b)), table)
}

// Remove removes chains and the jumps to them from all tables, and returns
// what it removed as TABLE/CHAIN.
func (t Tool) Remove(ctx context.Context, own func(chain string) bool) ([]string, error) {
	return t.each(ctx, own, func(table string, have Table) error {
		return t.Restore(ctx, have.removal(table))
	})
}

// Find returns what Remove would remove.
func (t Tool) Find(ctx context.Context, own func(chain string) bool) ([]string, error) {
	return t.each(ctx, own, func(string, Table) error { return nil })
}

func (t Tool) each(ctx context.Context, own func(chain string) bool, do func(table string, have Table) error) (found []string, err error) {
	for _, table := range Tables {
		have, err := t.Read(ctx, table, own)
		if err != nil {
			return found, err
		}
		if len(have.Chains) == 0 {
			continue
		}
		if err := do(table, have); err != nil {
			return found, fmt.Errorf("remove chains from table %s: %w", table, err)
		}
		for _, c := range have.Chains {
			found = append(found, table+"/"+c)
		}
	}
	return found, nil
}

// removal is the transaction that removes all of it.
func (have Table) removal(table string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "*%s\n", table)
	for _, c := range have.Chains {
		fmt.Fprintf(&b, ":%s - [0:0]\n", c)
	}
	for _, j := range have.Jumps {
		fmt.Fprintf(&b, "-D%s\n", strings.TrimPrefix(j, "-A"))
	}
	for _, c := range have.Chains {
		fmt.Fprintf(&b, "-X %s\n", c)
	}
	b.WriteString("COMMIT\n")
	return b.Bytes()
}

// All are the programs that the host has, of both variants and families, with
// their Mode. A variant that only plain iptables offers is the Default one.
func All() []Tool {
	var out []Tool
	for _, v6 := range []bool{false, true} {
		plain := Tool{V6: v6}
		have, err := plain.Info()
		if err == nil {
			plain.Mode = have.Variant
			out = append(out, plain)
		}
		for _, v := range []Variant{NFT, Legacy} {
			other := Tool{Variant: v, V6: v6}
			if info, err := other.Info(); err == nil && info.Variant != have.Variant {
				other.Mode = info.Variant
				out = append(out, other)
			}
		}
	}
	return out
}
