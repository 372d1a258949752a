package agent

import (
	"log/slog"
	"os"
	"strings"

	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// resolver hands the host's resolv.conf on to pods, see resolv.conf(5). It is
// read for each sandbox, so that a host that moves takes its pods along.
type resolver struct {
	path string
	log  *slog.Logger
}

func (r resolver) read() (d runtime.DNS) {
	b, err := os.ReadFile(r.path)
	if err != nil {
		r.log.Warn("pods get no resolvers", "err", err)
		return d
	}
	for line := range strings.Lines(string(b)) {
		line, _, _ = strings.Cut(line, "#")
		line, _, _ = strings.Cut(line, ";")
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			d.Servers = append(d.Servers, f[1])
		case "search", "domain":
			d.Searches = f[1:] // the last one counts
		case "options":
			d.Options = append(d.Options, f[1:]...)
		}
	}
	return d
}
