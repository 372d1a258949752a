//go:build bench

package bench

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const methodCreate = "/runtime.v1.RuntimeService/CreateContainer"

// tap stands between a system and containerd while restarts are measured. It
// passes every call on as it is and notes when a container was asked for: that
// is when the system has decided, whoever the system is.
type tap struct {
	conn    *grpc.ClientConn
	srv     *grpc.Server
	readers sync.WaitGroup

	mu    sync.Mutex
	asked map[string]time.Time // by pod name, the latest
}

// newTap listens on socket and passes on to target until the test ends.
func newTap(t testing.TB, socket, target string) *tap {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+target, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(bare{}), grpc.MaxCallRecvMsgSize(32<<20)))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	p := &tap{conn: conn, asked: map[string]time.Time{}}
	p.srv = grpc.NewServer(grpc.ForceServerCodec(bare{}), grpc.UnknownServiceHandler(p.pass), grpc.MaxRecvMsgSize(32<<20))
	served := make(chan error, 1)
	go func() { served <- p.srv.Serve(l) }()
	t.Cleanup(func() {
		p.srv.Stop()
		if err := <-served; err != nil {
			t.Errorf("the tap ended: %v", err)
		}
		p.readers.Wait()
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// pass carries one call of whatever method to containerd and its answers back.
func (p *tap) pass(_ any, in grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(in)
	md, _ := metadata.FromIncomingContext(in.Context())
	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(in.Context(), md))
	defer cancel()
	out, err := p.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		return err
	}
	p.readers.Go(func() {
		defer func() { _ = out.CloseSend() }()
		for {
			var msg []byte
			if in.RecvMsg(&msg) != nil {
				return // the caller has said all, or is gone
			}
			if method == methodCreate {
				p.note(time.Now(), msg)
			}
			if out.SendMsg(&msg) != nil {
				return // RecvMsg below tells why
			}
		}
	})
	for {
		var msg []byte
		err := out.RecvMsg(&msg)
		if errors.Is(err, io.EOF) {
			in.SetTrailer(out.Trailer())
			return nil
		}
		if err != nil {
			return err
		}
		if err := in.SendMsg(&msg); err != nil {
			return err
		}
	}
}

func (p *tap) note(at time.Time, msg []byte) {
	var r runtimeapi.CreateContainerRequest
	if proto.Unmarshal(msg, &r) != nil {
		return // containerd will refuse it
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked[r.GetSandboxConfig().GetMetadata().GetName()] = at
}

// last is when a container of the pod was asked for last. A kubelet adds the
// node's name to the pod's.
func (p *tap) last(pod string) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	var latest time.Time
	for name, at := range p.asked {
		if (name == pod || strings.HasPrefix(name, pod+"-")) && at.After(latest) {
			latest = at
		}
	}
	return latest
}

// bare is a codec that leaves messages alone.
type bare struct{}

func (bare) Name() string { return "proto" }

func (bare) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (bare) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}
