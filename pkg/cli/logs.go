package cli

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// LogsOptions are the flags of `logs`.
type LogsOptions struct {
	Container  string
	Follow     bool
	Previous   bool
	Timestamps bool
	Tail       int64         // lines; below 0: all
	Since      time.Duration // 0: all
}

// Logs copies a container's log to standard output, as it was written.
func (c *CLI) Logs(ctx context.Context, name string, o LogsOptions) error {
	p, err := c.pod(ctx, name)
	if err != nil {
		return err
	}
	ctr, err := c.container(p, o.Container)
	if err != nil {
		return err
	}
	q := url.Values{"container": {ctr.Name}}
	for k, on := range map[string]bool{"follow": o.Follow, "previous": o.Previous, "timestamps": o.Timestamps} {
		if on {
			q.Set(k, "true")
		}
	}
	if o.Tail >= 0 {
		q.Set("tailLines", strconv.FormatInt(o.Tail, 10))
	}
	if o.Since > 0 {
		// The API counts whole seconds; a part of one counts as one.
		q.Set("sinceSeconds", strconv.FormatInt(int64((o.Since+time.Second-1)/time.Second), 10))
	}
	body, err := c.client.open(ctx, http.MethodGet, podPath(c.Namespace, p.Name)+"/log", q, "", nil)
	if err != nil {
		return endOf(ctx, err)
	}
	defer body.Close()
	if _, err := io.Copy(c.Out, body); err != nil {
		return endOf(ctx, fmt.Errorf("log of %s: %w", p.Name, err))
	}
	return nil
}
