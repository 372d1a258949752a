package nftables

import (
	"context"
	"fmt"
	"strings"
)

// generations is how many tables in a row are behind each other, see shift.
const generations = 40

// standing is what is in the kernel before everything is replaced.
type standing struct {
	opened bool // we have turned route_localnet on
	// next is the generation of the table that takes the place of this one.
	next int
}

// standing asks for chains only: a table may be large.
func (b *Backend) standing(ctx context.Context) (standing, error) {
	out, err := b.opts.Nft.Run(ctx, nil, "--numeric-priority", "list", "chains", ipv4.name)
	if err != nil {
		return standing{}, fmt.Errorf("look for the tables %s: %w", Table, err)
	}
	return readStanding(string(out)), nil
}

func readStanding(listing string) (s standing) {
	table, chain := "", ""
	for line := range strings.Lines(listing) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		name, _, _ := strings.Cut(rest, " ")
		switch {
		case word == "table":
			_, table, _ = strings.Cut(strings.TrimSuffix(rest, " {"), " ")
		case table != Table:
		case word == "chain":
			chain = name
			s.opened = s.opened || chain == opened
		case word == "type" && chain == natPrerouting:
			var at int
			_, text, _ := strings.Cut(line, "priority ")
			if n, err := fmt.Sscanf(text, "%d;", &at); n == 1 && err == nil && at >= natPriority && at < natPriority+generations {
				s.next = (at - natPriority + 1) % generations
			}
		}
	}
	return s
}

// shift moves a base chain behind that of the generation before. A packet that
// meets a change of generation within one of its hooks asks the old chain first,
// and where that is empty already, or its maps are, the new one. The other way
// round, which is what the kernel does with equal priorities, neither has an
// answer for it: the connection is refused, or leaves without its translation.
func shift(line string, generation int) string {
	before, text, _ := strings.Cut(line, "priority ")
	var at int
	if n, err := fmt.Sscanf(text, "%d;", &at); n != 1 || err != nil {
		return line
	}
	return fmt.Sprintf("%spriority %d;\n", before, at+generation)
}
