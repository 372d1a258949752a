package runtime

import (
	"context"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	containerdtypes "github.com/containerd/containerd/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakeEvents is containerd's event service of a fake.
type fakeEvents struct {
	eventsapi.UnimplementedEventsServer
	f *fakeRuntime
}

func (f *fakeRuntime) sendCRI(e *cri.ContainerEventResponse) {
	for ch := range f.criSubs {
		ch <- e
	}
}

func (f *fakeRuntime) sendOwn(topic string, m proto.Message) {
	v, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	for ch := range f.ownSubs {
		ch <- &containerdtypes.Envelope{Topic: topic, Namespace: "k8s.io", Timestamp: timestamppb.Now(), Event: &anypb.Any{Value: v}}
	}
}

// subscribed waits until there are n subscriptions of both kinds.
func (f *fakeRuntime) subscribed(t *testing.T, n int) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		f.mu.Lock()
		have, changed := len(f.criSubs)+len(f.ownSubs), f.changed
		f.mu.Unlock()
		if have >= n {
			return
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("%d subscriptions, want %d", have, n)
		}
	}
}

func subscribe[E any](f *fakeRuntime, subs map[chan E]struct{}, ctx context.Context, send func(E) error) error {
	ch := make(chan E, 100)
	change := func(f2 func()) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f2()
		close(f.changed)
		f.changed = make(chan struct{})
	}
	change(func() { subs[ch] = struct{}{} })
	defer change(func() { delete(subs, ch) })
	for {
		select {
		case e := <-ch:
			if err := send(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (f *fakeRuntime) GetContainerEvents(_ *cri.GetEventsRequest, s cri.RuntimeService_GetContainerEventsServer) error {
	if !f.criEvents {
		return status.Error(codes.Unimplemented, "unknown method GetContainerEvents")
	}
	return subscribe(f, f.criSubs, s.Context(), s.Send)
}

func (e fakeEvents) Subscribe(_ *eventsapi.SubscribeRequest, s eventsapi.Events_SubscribeServer) error {
	return subscribe(e.f, e.f.ownSubs, s.Context(), s.Send)
}
