package probe

import (
	"context"
	"fmt"
	"net"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// tcpSocket is good when a connection can be made.
func tcpSocket(ctx context.Context, c Container, h *v1.TCPSocketAction) answer {
	addr, err := address(c, h.Host, h.Port)
	if err != nil {
		return answer{err: err}
	}
	conn, err := dial(ctx, "tcp", addr)
	if err != nil {
		return bad("%v", err)
	}
	_ = conn.Close() // it has served its purpose
	return answer{good: true}
}

// address is where a probe of a port goes, which may be named by one of the
// container's ports.
func address(c Container, host string, port intstr.IntOrString) (string, error) {
	number := port.IntVal
	if port.Type == intstr.String {
		number = 0
		for _, p := range c.Spec.Ports {
			if p.Name == port.StrVal {
				number = p.ContainerPort
				break
			}
		}
		if number == 0 {
			return "", fmt.Errorf("container %s has no port named %q", c.Spec.Name, port.StrVal)
		}
	}
	return hostPort(c, host, int(number))
}

// dial makes a connection that ends with the probe and needs no keepalive.
func dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1}
	return d.DialContext(ctx, network, addr)
}
