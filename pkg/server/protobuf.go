package server

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	v1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	metrics "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"github.com/nodeagent/nodeagent/pkg/manifest"
)

const mediaProtobuf = "application/vnd.kubernetes.protobuf"

// protobufMagic begins every message; a runtime.Unknown follows, which has the
// type of what is in it.
var protobufMagic = []byte("k8s\x00")

// message is what Kubernetes' types are in protobuf.
type message interface{ Marshal() ([]byte, error) }

// empty is an object of the kind without anything but its type.
func (k servedKind) empty() manifest.Resource {
	var o manifest.Resource
	switch k.Name {
	case podKind.Name:
		o = &v1.Pod{}
	case eventKind.Name:
		o = &v1.Event{}
	case nodeKind.Name:
		o = &v1.Node{}
	case podMetricsKind.Name:
		o = &metrics.PodMetrics{}
	case nodeMetricsKind.Name:
		o = &metrics.NodeMetrics{}
	default:
		return manifest.New(k.Name)
	}
	o.GetObjectKind().SetGroupVersionKind(k.gvk())
	return o
}

// toProtobuf encodes an object or list with its type.
func toProtobuf(v any) ([]byte, error) {
	m, ok := v.(message)
	o, typed := v.(interface {
		GetAPIVersion() string
		GetKind() string
	})
	var t runtime.TypeMeta
	switch {
	case !ok:
		return nil, fmt.Errorf("%T has no form in protobuf", v)
	case typed:
		t = runtime.TypeMeta{APIVersion: o.GetAPIVersion(), Kind: o.GetKind()}
	default:
		k, ok := v.(runtime.Object)
		if !ok {
			return nil, fmt.Errorf("%T has no type to send", v)
		}
		t.APIVersion, t.Kind = k.GetObjectKind().GroupVersionKind().ToAPIVersionAndKind()
	}
	raw, err := m.Marshal()
	if err != nil {
		return nil, err
	}
	unknown := runtime.Unknown{TypeMeta: t, Raw: raw}
	b, err := unknown.Marshal()
	return append(bytes.Clone(protobufMagic), b...), err
}

// GetAPIVersion and GetKind tell a list's type.
func (l *objectList) GetAPIVersion() string { return l.APIVersion }
func (l *objectList) GetKind() string       { return l.Kind }

// Marshal is the form that all lists of Kubernetes have: their metadata is field
// 1, their items are field 2.
func (l *objectList) Marshal() ([]byte, error) {
	meta, err := l.ListMeta.Marshal()
	if err != nil {
		return nil, err
	}
	b := protowire.AppendTag(nil, 1, protowire.BytesType)
	b = protowire.AppendBytes(b, meta)
	for _, o := range l.Items {
		m, ok := o.(message)
		if !ok {
			return nil, fmt.Errorf("%T has no form in protobuf", o)
		}
		item, err := m.Marshal()
		if err != nil {
			return nil, err
		}
		b = protowire.AppendTag(b, 2, protowire.BytesType)
		b = protowire.AppendBytes(b, item)
	}
	return b, nil
}

// protobufFrame is one event of a watch, with its length in front.
func protobufFrame(t watch.EventType, object any) ([]byte, error) {
	raw, err := toProtobuf(object)
	if err != nil {
		return nil, err
	}
	event := metav1.WatchEvent{Type: string(t), Object: runtime.RawExtension{Raw: raw}}
	b, err := event.Marshal()
	if err != nil {
		return nil, err
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...), nil
}

// fromProtobuf is the JSON of an object that came as protobuf. What its sender
// knows and this server does not is no part of it.
func (s *Server) fromProtobuf(b []byte) ([]byte, error) {
	bad := func(err error) ([]byte, error) {
		return nil, apierrors.NewBadRequest("the body cannot be decoded: " + err.Error())
	}
	b, ok := bytes.CutPrefix(b, protobufMagic)
	if !ok {
		return bad(errors.New("it does not begin as a protobuf message of Kubernetes does"))
	}
	var unknown runtime.Unknown
	if err := unknown.Unmarshal(b); err != nil {
		return bad(err)
	}
	var o interface{ Unmarshal([]byte) error }
	switch unknown.Kind {
	case "DeleteOptions":
		o = &metav1.DeleteOptions{TypeMeta: metav1.TypeMeta{APIVersion: unknown.APIVersion, Kind: unknown.Kind}}
	case "Eviction":
		o = &policyv1.Eviction{TypeMeta: metav1.TypeMeta{APIVersion: unknown.APIVersion, Kind: unknown.Kind}}
	default:
		for _, v := range s.views {
			if v.APIVersion == unknown.APIVersion && v.Name == unknown.Kind {
				o, _ = v.empty().(interface{ Unmarshal([]byte) error })
			}
		}
	}
	if o == nil {
		return bad(fmt.Errorf("%s in %s is not served", unknown.Kind, unknown.APIVersion))
	}
	if err := o.Unmarshal(unknown.Raw); err != nil {
		return bad(err)
	}
	return json.Marshal(o)
}
