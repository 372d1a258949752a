package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/nodeagent/nodeagent/pkg/cli/table"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	filesource "github.com/nodeagent/nodeagent/pkg/source/file"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// Validate checks manifests as the daemon would, without one: files, "-" for
// standard input, and folders, of which it reads what the daemon reads. It
// prints FILE:LINE messages for what is wrong and a line for each object that is
// not.
func (c *CLI) Validate(ctx context.Context, args []string, nodeName string) error {
	failed := false
	for _, a := range args {
		snap, err := c.look(ctx, a, nodeName)
		if err != nil {
			Report(c.Err, err)
			failed = true
			continue
		}
		var problems []string
		for _, p := range snap.Problems {
			problems = append(problems, p.String())
		}
		first := map[string]manifest.Object{}
		for _, o := range snap.Objects {
			key := o.Kind() + " " + o.Key().String()
			if other, taken := first[key]; taken {
				problems = append(problems, store.Conflict(o, other.Place()))
				continue
			}
			first[key] = o
			fmt.Fprintf(c.Out, "%s: %s is valid\n", table.Safe(o.Place()), table.Safe(key))
		}
		for _, p := range problems {
			fmt.Fprintln(c.Err, table.Safe(p))
		}
		if len(snap.Objects)+len(problems) == 0 {
			fmt.Fprintf(c.Err, "%s: holds no object\n", table.Safe(a))
		}
		failed = failed || len(problems) > 0
	}
	if failed {
		return errFailed()
	}
	return nil
}

// look is what the daemon would make of one argument.
func (c *CLI) look(ctx context.Context, path, nodeName string) (store.Snapshot, error) {
	if st, err := os.Stat(path); path != "-" && err == nil && st.IsDir() {
		return filesource.New(filesource.Options{
			Path: path, NodeName: nodeName, Decode: manifest.Decode, Log: slog.New(slog.DiscardHandler),
		}).Once(ctx)
	}
	// Not through the file source: a pipe is fine here, and a file that is named
	// is read whatever its name is.
	files, err := c.read([]string{path})
	if err != nil {
		return store.Snapshot{}, err
	}
	var snap store.Snapshot
	for _, f := range files {
		if len(f.data) == 0 {
			snap.Problems = append(snap.Problems, store.Problem{Origin: f.name, Err: errors.New("is empty")})
		}
		objects, errs := manifest.Decode(f.data, manifest.Options{Origin: f.name, NodeName: nodeName})
		snap.Objects = append(snap.Objects, objects...)
		for _, e := range errs {
			snap.Problems = append(snap.Problems, store.Problem{Origin: f.name, Object: e.Object, Err: e})
		}
	}
	return snap, nil
}
