package runtime

import (
	"context"
)

// SandboxIDs lists every sandbox that the runtime knows, in any state and of
// any owner: what the collector of network leaks must leave alone.
func (c *Client) SandboxIDs(ctx context.Context) ([]string, error) {
	list, err := c.listSandboxes(ctx, nil)
	if err != nil {
		return nil, err
	}
	ids := make([]string, len(list))
	for i, s := range list {
		ids[i] = s.GetId()
	}
	return ids, nil
}
