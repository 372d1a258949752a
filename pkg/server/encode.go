package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/nodeagent/nodeagent/pkg/server/api"
)

const (
	mediaJSON = "application/json"
	mediaYAML = "application/yaml"
)

// form is what is sent in place of an object or list.
type form string

const (
	asIs       form = ""
	asTable    form = "Table"
	asMetadata form = "PartialObjectMetadata"
)

// format is what the client wants to read.
type format struct {
	media  string // mediaJSON, mediaYAML or mediaProtobuf
	as     form
	pretty bool
}

// negotiate picks the first acceptable media type of the Accept header, in the
// client's order of preference. JSON is what a client without a wish gets.
// objects says whether the answer are objects, which can be shown in other forms,
// stream that it is a watch.
func negotiate(r *http.Request, objects, stream bool) (format, error) {
	pretty, _ := strconv.ParseBool(r.URL.Query().Get("pretty"))
	f := format{media: mediaJSON, pretty: pretty}
	accept := strings.Join(r.Header.Values("Accept"), ",")
	if strings.TrimSpace(accept) == "" {
		return f, nil
	}
	best := -1.0
	for clause := range strings.SplitSeq(accept, ",") {
		media, params, err := mime.ParseMediaType(clause)
		if err != nil {
			continue
		}
		q := 1.0
		if s, ok := params["q"]; ok {
			if v, err := strconv.ParseFloat(s, 64); err == nil {
				q = v
			}
		}
		if q <= 0 || q <= best {
			continue
		}
		c := format{pretty: pretty}
		switch media {
		case mediaJSON, "application/*", "*/*":
			c.media = mediaJSON
		case mediaYAML, "text/yaml":
			c.media = mediaYAML
		case mediaProtobuf:
			c.media = mediaProtobuf
		}
		as, ok := formOf(params)
		if !ok || as != asIs && !objects || as == asTable && c.media == mediaProtobuf || c.media == "" || stream && c.media == mediaYAML {
			continue
		}
		c.as = as
		f, best = c, q
	}
	if best < 0 {
		return f, notAcceptable(stream)
	}
	return f, nil
}

// formOf is the form that a clause of an Accept header asks for. Lists come as
// lists of it, whatever the clause says.
func formOf(params map[string]string) (form, bool) {
	as := form(strings.TrimSuffix(params["as"], "List"))
	switch {
	case as == asIs:
		return asIs, true
	case params["g"] != metav1.GroupName || params["v"] != "v1":
		return as, false
	}
	return as, as == asTable || as == asMetadata
}

func notAcceptable(stream bool) error {
	can := mediaJSON + ", " + mediaYAML + ", " + mediaProtobuf
	if stream {
		can = mediaJSON + ", " + mediaProtobuf
	}
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotAcceptable, Reason: metav1.StatusReasonNotAcceptable,
		Message: "only the following media types are accepted: " + can,
	}}
}

func unsupportedMedia(have string, can ...string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusUnsupportedMediaType, Reason: metav1.StatusReasonUnsupportedMediaType,
		Message: fmt.Sprintf("the body of the request was in an unknown format (%s) - accepted media types include: %s", have, strings.Join(can, ", ")),
	}}
}

// bodyMedia is the request's media type without parameters; a request that does
// not say is JSON.
func bodyMedia(r *http.Request) (string, error) {
	h := r.Header.Get("Content-Type")
	if h == "" {
		return mediaJSON, nil
	}
	media, _, err := mime.ParseMediaType(h)
	if err != nil {
		return "", unsupportedMedia(h, mediaJSON, mediaYAML)
	}
	return media, nil
}

// readBody reads the whole body, at most maxBody bytes.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		if _, ok := err.(*http.MaxBytesError); ok {
			return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("limit is %d bytes", maxBody))
		}
		return nil, apierrors.NewBadRequest("reading the request's body: " + err.Error())
	}
	// The body is in: from now on a read only watches for the client's end.
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	return b, nil
}

// readObject reads an object as JSON or YAML, whatever it came as.
func (s *Server) readObject(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	media, err := bodyMedia(r)
	if err != nil {
		return nil, err
	}
	b, err := readBody(w, r)
	if err != nil || len(bytes.TrimSpace(b)) == 0 {
		return b, err
	}
	switch media {
	case mediaJSON, mediaYAML:
		return b, nil
	case mediaProtobuf:
		return s.fromProtobuf(b)
	}
	return nil, unsupportedMedia(media, mediaJSON, mediaYAML, mediaProtobuf)
}

// decodeBody decodes a body strictly into v; an empty one leaves v as it is.
func (s *Server) decodeBody(w http.ResponseWriter, r *http.Request, v any) error {
	b, err := s.readObject(w, r)
	if err != nil || len(bytes.TrimSpace(b)) == 0 {
		return err
	}
	// YAML is a superset of JSON.
	if err := yaml.UnmarshalStrict(b, v); err != nil {
		return apierrors.NewBadRequest("the body cannot be decoded: " + err.Error())
	}
	return nil
}

// write sends v in the format that was negotiated.
func write(w http.ResponseWriter, f format, code int, v any) {
	b, err := encode(f, v)
	if err != nil {
		st := apierrors.NewInternalError(fmt.Errorf("encoding the answer: %w", err)).Status()
		st.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
		code, f.media = http.StatusInternalServerError, mediaJSON
		b, _ = json.Marshal(st)
	}
	h := w.Header()
	h.Set("Content-Type", f.media)
	h.Set("Cache-Control", "no-cache, private")
	h.Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(code)
	_, _ = w.Write(b) // a client that is gone needs no answer
}

func encode(f format, v any) ([]byte, error) {
	if f.media == mediaProtobuf {
		return toProtobuf(v)
	}
	b, err := json.Marshal(v)
	switch {
	case err != nil:
		return nil, err
	case f.media == mediaYAML:
		return api.YAML(b)
	case f.pretty:
		b, err = json.MarshalIndent(v, "", "  ")
	}
	return append(b, '\n'), err
}
