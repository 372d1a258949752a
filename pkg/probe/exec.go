package probe

import (
	"context"
	"errors"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// maxOutput is how much of a command's output or a response's body is kept.
const maxOutput = 10 << 10

// exec runs the command in the container; it is well when the exit code is 0.
// Of the environment, the command sees in $(NAME) what the manifest itself
// spells out, as kubelet's does.
func (p *Prober) exec(ctx context.Context, c Container, h *v1.ExecAction, timeout time.Duration) answer {
	vars := make(map[string]string, len(c.Spec.Env))
	for _, e := range c.Spec.Env {
		vars[e.Name] = e.Value
	}
	cmd := make([]string, len(h.Command))
	for i, word := range h.Command {
		cmd[i] = pod.Expand(word, func(name string) (string, bool) { v, ok := vars[name]; return v, ok })
	}
	stdout, stderr, exit, err := p.o.Runtime.ExecSync(ctx, c.ID, cmd, timeout)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return bad("command timed out after %s", timeout)
	case err != nil:
		return answer{err: err}
	}
	output := append(stdout, stderr...)
	return answer{good: exit == 0, output: string(output[:min(len(output), maxOutput)])}
}
