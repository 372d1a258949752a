package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// PortForward listens on local ports and carries connections to a pod's ports
// until ctx ends. ports are "[LOCAL:]REMOTE"; addresses default to localhost.
func (c *CLI) PortForward(ctx context.Context, name string, ports, addresses []string) error {
	p, err := c.pod(ctx, name)
	if err != nil {
		return err
	}
	if pod.IsTerminal(p.Status.Phase) {
		return fmt.Errorf("pod %s has ended (phase %s): nothing listens in it", p.Name, p.Status.Phase)
	}
	if len(addresses) == 0 {
		addresses = []string{"localhost"}
	}
	rt, up, err := c.client.upgrader()
	if err != nil {
		return err
	}
	dialer := spdy.NewDialerForStreaming(up, &http.Client{Transport: rt}, http.MethodPost, c.client.url(podPath(c.Namespace, p.Name)+"/portforward", nil))
	f, err := portforward.NewOnAddressesForStreamingWithContext(ctx, dialer, addresses, ports, make(chan struct{}), c.Out, c.Err)
	if err != nil {
		return err
	}
	err = f.ForwardPorts()
	if errors.Is(err, portforward.ErrLostConnectionToPod) && ctx.Err() == nil {
		return fmt.Errorf("lost connection to pod %s", p.Name)
	}
	return endOf(ctx, c.client.explainStream(err))
}
