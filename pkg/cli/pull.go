package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/nodeagent/nodeagent/pkg/cli/table"
	"github.com/nodeagent/nodeagent/pkg/server/api"
)

// barWidth is the progress bar's, in cells.
const barWidth = 30

// Pull has the agent pull an image and shows how far it is: a bar on a
// terminal, else a line at the start and the end.
func (c *CLI) Pull(ctx context.Context, image string) error {
	body, err := json.Marshal(api.PullRequest{Image: image})
	if err != nil {
		return err
	}
	stream, err := c.client.open(ctx, http.MethodPost, api.Prefix+api.PathPull, nil, "application/json", body)
	if err != nil {
		return err
	}
	defer stream.Close()
	bar := c.Terminal.Out()
	if !bar {
		fmt.Fprintf(c.Out, "%s: pulling\n", table.Safe(image))
	}
	for dec := json.NewDecoder(stream); ; {
		var p api.PullProgress
		if err := dec.Decode(&p); err != nil {
			if bar {
				fmt.Fprintln(c.Out)
			}
			if errors.Is(err, io.EOF) {
				return fmt.Errorf("pull of %s: the agent went away before it was complete", image)
			}
			return fmt.Errorf("pull of %s: %w", image, err)
		}
		if bar {
			// The rest of a longer line before it is erased.
			fmt.Fprintf(c.Out, "\r%s\x1b[K", progressLine(image, p))
		}
		if p.Error == "" && !p.Complete {
			continue
		}
		if bar {
			fmt.Fprintln(c.Out)
		}
		if p.Error != "" {
			return fmt.Errorf("pull of %s: %s", image, p.Error)
		}
		fmt.Fprintf(c.Out, "%s: complete, %s\n", table.Safe(image), table.Safe(firstOf(p.Ref, p.ID)))
		return nil
	}
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func progressLine(image string, p api.PullProgress) string {
	name := table.Safe(image)
	if p.Total <= 0 {
		return fmt.Sprintf("%s: %s", name, bytesText(p.Done))
	}
	done := min(p.Done, p.Total)
	n := int(done * barWidth / p.Total)
	return fmt.Sprintf("%s: [%s%s]%s  %s/%s", name, strings.Repeat("#", n), strings.Repeat("-", barWidth-n),
		percent(done, p.Total), bytesText(done), bytesText(p.Total))
}
