package probe

import (
	"context"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
)

// grpcHealth asks the gRPC health protocol; good is SERVING.
func grpcHealth(ctx context.Context, c Container, h *v1.GRPCAction) answer {
	addr, err := hostPort(c, "", int(h.Port))
	if err != nil {
		return answer{err: err}
	}
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent(userAgent),
		grpc.WithDisableServiceConfig(),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return dial(ctx, "tcp", addr)
		}))
	if err != nil {
		return answer{err: err}
	}
	defer conn.Close()
	req := &health.HealthCheckRequest{}
	if h.Service != nil {
		req.Service = *h.Service
	}
	// A refused connection is tried again until the probe's time is up.
	resp, err := health.NewHealthClient(conn).Check(ctx, req, grpc.WaitForReady(true))
	switch {
	case status.Code(err) == codes.Unimplemented:
		return bad("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): %s", status.Convert(err).Message())
	case err != nil:
		return bad("error: health rpc probe failed: %v", err)
	case resp.GetStatus() != health.HealthCheckResponse_SERVING:
		return bad("service unhealthy (responded with %q)", resp.GetStatus())
	}
	return answer{good: true}
}
