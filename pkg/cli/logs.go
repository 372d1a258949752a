package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
)

// LogsOptions are the flags of `logs`.
type LogsOptions struct {
	Container string
	// AllContainers prints the logs of all of them, init containers first.
	AllContainers bool
	// Prefix puts pod and container before each line.
	Prefix     bool
	Follow     bool
	Previous   bool
	Timestamps bool
	Tail       int64         // lines; -1: all
	Since      time.Duration // 0: all
}

func (o LogsOptions) check() error {
	switch {
	case o.Tail < -1:
		return fmt.Errorf("--tail %d: must be -1, for all lines, or more", o.Tail)
	case o.Since < 0:
		return fmt.Errorf("--since %s: must not be negative", o.Since)
	case o.AllContainers && o.Container != "":
		return errors.New("--all-containers and a container exclude each other")
	}
	return nil
}

// Logs copies the log of a container, or of all containers, to standard output,
// as it was written.
func (c *CLI) Logs(ctx context.Context, name string, o LogsOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	p, err := c.pod(ctx, name)
	if err != nil {
		return err
	}
	if o.AllContainers {
		return c.logsOfAll(ctx, p, o)
	}
	ctr, err := c.container(p, o.Container)
	if err != nil {
		return err
	}
	return endOf(ctx, c.copyLog(ctx, p, ctr.Name, o, c.Out))
}

// logsOfAll prints one log after the other, or all at once when they are
// followed; lines stay whole. A container without a log hides no other's.
func (c *CLI) logsOfAll(ctx context.Context, p *v1.Pod, o LogsOptions) error {
	var names []string
	for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			names = append(names, list[i].Name)
		}
	}
	for i := range p.Spec.EphemeralContainers {
		names = append(names, p.Spec.EphemeralContainers[i].Name)
	}
	var out sync.Mutex
	errs := make([]error, len(names))
	g := errgroup.Group{}
	if !o.Follow {
		g.SetLimit(1)
	}
	for i, n := range names {
		g.Go(func() error {
			errs[i] = c.copyLog(ctx, p, n, o, &lockedWriter{mu: &out, w: c.Out})
			return nil
		})
	}
	_ = g.Wait() // errs has them, in the order of the pod
	for _, err := range errs {
		if err != nil && ctx.Err() == nil {
			Report(c.Err, err)
		}
	}
	if ctx.Err() == nil && errors.Join(errs...) != nil {
		return errFailed()
	}
	return nil
}

// lockedWriter lets several logs write to one output, a whole write at a time.
type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

func (c *CLI) copyLog(ctx context.Context, p *v1.Pod, container string, o LogsOptions, w io.Writer) error {
	q := url.Values{"container": {container}}
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
		return err
	}
	defer body.Close()
	if o.AllContainers || o.Prefix {
		prefix := ""
		if o.Prefix {
			prefix = fmt.Sprintf("[pod/%s/%s] ", p.Name, container)
		}
		err = copyLines(w, body, prefix)
	} else {
		_, err = io.Copy(w, body)
	}
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("the agent broke off the log of container %s of pod %s; it may have been stopped: run the command again", container, p.Name)
	case err != nil:
		return fmt.Errorf("log of container %s of pod %s: %w", container, p.Name, err)
	}
	return nil
}

// copyLines writes each line with one call, so that the lines of several logs do
// not mix; a last line without an end gets one.
func copyLines(w io.Writer, r io.Reader, prefix string) error {
	for br := bufio.NewReader(r); ; {
		line, err := br.ReadString('\n')
		if line != "" {
			if err != nil {
				line += "\n"
			}
			if _, werr := io.WriteString(w, prefix+line); werr != nil {
				return werr
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
