package apiserver

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/client-go/tools/cache"

	"github.com/nodeagent/nodeagent/pkg/proxy/servicemap"
)

// list is what an input keeps of a list: objects without what the proxy does
// not read, or their names.
type list struct {
	metav1.TypeMeta
	metav1.ListMeta
	Items []runtime.Object
}

// DeepCopyObject implements runtime.Object; nobody changes a list.
func (l *list) DeepCopyObject() runtime.Object { return l }

// given is an object that was handed on already. It has no more than its name;
// the rest is the same empty one for all of them.
type given struct {
	metav1.Object
	name servicemap.Name
}

var nothing metav1.ObjectMeta // nobody changes it

// GetNamespace and GetName implement metav1.Object, GetObjectKind and
// DeepCopyObject runtime.Object.
func (g *given) GetNamespace() string             { return g.name.Namespace.Value() }
func (g *given) GetName() string                  { return g.name.Name }
func (g *given) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }
func (g *given) DeepCopyObject() runtime.Object   { return g }

// ask is for an API server that does not stream lists. Its answer is decoded
// object by object while it arrives: neither its bytes nor its objects are ever
// in memory together.
func (in *input) ask(ctx context.Context, cl *client, o *metav1.ListOptions) (runtime.Object, error) {
	// A reflector that ends does not await its list; who began anew must not be
	// told of older objects.
	in.listing.Lock()
	defer in.listing.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	body, err := cl.get(in.version, in.name, o).Stream(ctx)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	keep := func(object any) (any, error) { return object, nil }
	if s, ok := in.store.(cache.TransformingStore); ok {
		keep = s.Transformer()
	}
	out := &list{}
	err = in.decode(body, &out.ListMeta, func(object runtime.Object) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		kept, err := keep(object)
		if err == nil {
			out.Items = append(out.Items, kept.(runtime.Object))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the list: %w", err)
	}
	return out, nil
}

var protobufPrefix = []byte("k8s\x00")

// decode calls use for each object of a list. JSON, which the API server is not
// asked for first, is read as a whole.
func (in *input) decode(body io.Reader, about *metav1.ListMeta, use func(runtime.Object) error) error {
	m := &message{r: bufio.NewReaderSize(body, 32<<10), left: math.MaxInt64, outermost: true}
	if prefix, err := m.r.Peek(len(protobufPrefix)); err != nil {
		return noEnd(err)
	} else if !bytes.Equal(prefix, protobufPrefix) {
		return in.decodeJSON(m.r, about, use)
	}
	if _, err := m.r.Discard(len(protobufPrefix)); err != nil {
		return noEnd(err)
	}
	for seen := false; ; { // the fields of runtime.Unknown: of interest is raw
		field, size, err := m.next()
		switch {
		case errors.Is(err, io.EOF) && seen:
			return nil
		case err == nil && field == 2:
			seen = true
			err = in.decodeItems(&message{r: m.r, left: size}, about, use)
		case err == nil:
			_, err = m.take(size)
		}
		if err != nil {
			return noEnd(err)
		}
	}
}

// decodeItems reads the fields of a list: metadata and items.
func (in *input) decodeItems(m *message, about *metav1.ListMeta, use func(runtime.Object) error) error {
	for {
		field, size, err := m.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		var b []byte
		if err == nil {
			b, err = m.take(size)
		}
		switch {
		case err != nil:
		case field == 1:
			err = about.Unmarshal(b)
		case field == 2:
			object := in.object.DeepCopyObject() // an empty one
			if err = object.(interface{ Unmarshal([]byte) error }).Unmarshal(b); err == nil {
				err = use(object)
			}
		}
		if err != nil {
			return err
		}
	}
}

func (in *input) decodeJSON(r io.Reader, about *metav1.ListMeta, use func(runtime.Object) error) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	all := in.list()
	if err := json.Unmarshal(b, all); err != nil {
		return err
	}
	m, err := meta.ListAccessor(all)
	if err != nil {
		return err
	}
	about.SetResourceVersion(m.GetResourceVersion())
	about.SetContinue(m.GetContinue())
	return meta.EachListItemWithAlloc(all, use)
}

// message is the rest of a protobuf message of which all fields are strings,
// bytes or messages.
type message struct {
	r         *bufio.Reader
	left      int64
	outermost bool // it ends with the stream
	buf       []byte
}

// mostField is more than etcd keeps for an object.
const mostField = 64 << 20

// next reads the head of the next field; io.EOF is that there is none.
func (m *message) next() (field uint64, size int64, err error) {
	if m.left == 0 {
		return 0, 0, io.EOF
	}
	tag, err := binary.ReadUvarint(m)
	if err != nil {
		if !m.outermost {
			err = noEnd(err)
		}
		return 0, 0, err
	}
	length, err := binary.ReadUvarint(m)
	if err != nil {
		return 0, 0, noEnd(err)
	}
	if field = tag >> 3; tag&7 != 2 || length > uint64(m.left) {
		return 0, 0, fmt.Errorf("field %d of a list in protobuf cannot be understood", field)
	}
	m.left -= int64(length)
	return field, int64(length), nil
}

// take reads a field; it is valid until the next one is taken.
func (m *message) take(size int64) ([]byte, error) {
	if size > mostField {
		return nil, fmt.Errorf("a field of a list in protobuf has %d bytes", size)
	}
	if size > int64(cap(m.buf)) {
		m.buf = make([]byte, max(size, 4<<10))
	}
	_, err := io.ReadFull(m.r, m.buf[:size])
	return m.buf[:size], noEnd(err)
}

// ReadByte implements io.ByteReader.
func (m *message) ReadByte() (byte, error) {
	if m.left == 0 {
		return 0, io.EOF
	}
	m.left--
	return m.r.ReadByte()
}

// noEnd is for where a list cannot end.
func noEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
