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
	text, err := t.run(ctx, nil, t.Program("save"), "-t", table)
	if err != nil {
		return out, fmt.Errorf("read table %s: %w", table, err)
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if name, ok := strings.CutPrefix(line, ":"); ok {
			if name, _, _ = strings.Cut(name, " "); own(name) {
				name = strings.Clone(name)
				out.Chains, out.Rules[name] = append(out.Chains, name), Rules{}
			}
			continue
		}
		rule, ok := strings.CutPrefix(line, "-A ")
		if !ok {
			continue
		}
		chain, rest, _ := strings.Cut(rule, " ")
		if own(chain) {
			r := out.Rules[chain]
			out.Rules[chain] = Rules{r.Count + 1, r.Sum*prime ^ maphash.String(seed, rest)}
			continue
		}
		if _, there := out.First[chain]; !there {
			out.First[strings.Clone(chain)] = strings.Clone(line)
		}
		if own(target(rest)) {
			out.Jumps = append(out.Jumps, strings.Clone(line))
		}
	}
	return out, nil
}

// The sums mean something within one process only; their order counts.
var seed = maphash.MakeSeed()

const prime = 1099511628211

// First is the first rule of a chain as an -A command; "" when there is no rule
// or no chain.
func (t Tool) First(ctx context.Context, table, chain string) (string, error) {
	out, err := t.run(ctx, nil, t.Program(""), "--wait="+t.wait(), "-t", table, "-S", chain, "1")
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == exitOther {
		return "", nil
	}
	return strings.TrimSpace(string(out)), err
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
