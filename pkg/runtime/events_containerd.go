package runtime

import (
	"context"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/types"

	containerdtypes "github.com/containerd/containerd/api/types"
)

// The topics that concern a pod. Creation is left out: it is always followed
// by a start, and what this client creates it knows.
const (
	topicStart  = "/tasks/start"
	topicExit   = "/tasks/exit"
	topicOOM    = "/tasks/oom"
	topicDelete = "/containers/delete"
)

// containerdStream reads containerd's own events, which every release has.
type containerdStream struct {
	c *Client
	s eventsapi.Events_SubscribeClient
}

func (c *Client) openContainerd(ctx context.Context) (stream, error) {
	filter := func(topic string) string {
		return `namespace==` + criNamespace + `,topic=="` + topic + `"`
	}
	s, err := eventsapi.NewEventsClient(c.conn).Subscribe(inNamespace(ctx), &eventsapi.SubscribeRequest{
		Filters: []string{filter(topicStart), filter(topicExit), filter(topicOOM), filter(topicDelete)},
	})
	if err != nil {
		return nil, translate("containerd events", err)
	}
	return &containerdStream{c: c, s: s}, nil
}

func (s *containerdStream) recv(ctx context.Context) (rawEvent, error) {
	for {
		e, err := s.s.Recv()
		if err != nil {
			return rawEvent{}, translate("containerd events", err)
		}
		uid, ok, err := s.c.takeContainerd(ctx, e)
		if err != nil {
			return rawEvent{}, translate("containerd event "+e.GetTopic(), err)
		}
		if ok {
			return rawEvent{uid: uid, at: e.GetTimestamp().AsTime()}, nil
		}
	}
}

// takeContainerd maps an event to a pod of ours.
func (c *Client) takeContainerd(ctx context.Context, e *containerdtypes.Envelope) (types.UID, bool, error) {
	raw := e.GetEvent().GetValue()
	switch e.GetTopic() {
	case topicExit:
		var m eventtypes.TaskExit
		if err := proto.Unmarshal(raw, &m); err != nil {
			return "", false, err
		}
		if m.GetID() != m.GetContainerID() {
			return "", false, nil // an exec ended
		}
		uid, ok := c.takeExit(ctx, m.GetContainerID(), exit{
			seen: time.Now(), known: true, code: int32(m.GetExitStatus()), at: m.GetExitedAt().AsTime(),
		})
		return uid, ok, nil
	case topicStart:
		var m eventtypes.TaskStart
		if err := proto.Unmarshal(raw, &m); err != nil {
			return "", false, err
		}
		uid, own, known := c.index.owner(m.GetContainerID())
		return uid, known && !own, nil
	case topicOOM:
		var m eventtypes.TaskOOM
		if err := proto.Unmarshal(raw, &m); err != nil {
			return "", false, err
		}
		uid, known := c.index.oom(m.GetContainerID())
		return uid, known, nil
	case topicDelete:
		var m eventtypes.ContainerDelete
		if err := proto.Unmarshal(raw, &m); err != nil {
			return "", false, err
		}
		uid, _, known := c.index.owner(m.GetID())
		return uid, known, nil
	}
	return "", false, nil
}
