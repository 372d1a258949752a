// Package cli is what nodeagent's sub-commands do. It is a client of the
// agent's local API (a unix socket that speaks Kubernetes' paths) and shares
// nothing else with the daemon.
package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// SocketName is the API socket's name in the run folder.
const SocketName = "nodeagent.sock"

// maxErrorBody bounds what is read of an answer that is not what was asked for.
const maxErrorBody = 1 << 20

// Client speaks HTTP over the agent's socket.
type Client struct {
	socket    string
	transport *http.Transport
	http      *http.Client
}

// NewClient starts nothing; the first request connects.
func NewClient(socket string) *Client {
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
		DisableCompression: true,
	}
	return &Client{socket: socket, transport: t, http: &http.Client{Transport: t}}
}

// url of a path on the agent; the host is never looked up.
func (c *Client) url(path string, q url.Values) *url.URL {
	return &url.URL{Scheme: "http", Host: "nodeagent", Path: path, RawQuery: q.Encode()}
}

// open sends a request and returns the body of a 2xx answer, which the caller
// closes. Any other answer is an *apierrors.StatusError.
func (c *Client) open(ctx context.Context, method, path string, q url.Values, contentType string, body []byte) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.url(path, q).String(), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	req.Header.Set("Accept", "application/json, */*")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	return nil, statusError(resp)
}

// do sends a request and decodes the JSON answer into out, unless out is nil.
func (c *Client) do(ctx context.Context, method, path string, q url.Values, contentType string, body []byte, out any) error {
	r, err := c.open(ctx, method, path, q, contentType, body)
	if err != nil {
		return err
	}
	defer r.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, r)
		return err
	}
	if err := json.NewDecoder(r).Decode(out); err != nil {
		return fmt.Errorf("%s %s: the agent's answer is not what this nodeagent understands: %w", method, path, err)
	}
	return nil
}

func (c *Client) get(ctx context.Context, path string, q url.Values, out any) error {
	return c.do(ctx, http.MethodGet, path, q, "", nil, out)
}

// explain turns a failure to connect into what to do about it.
func (c *Client) explain(err error) error {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "dial" {
		return fmt.Errorf("agent on %s: %w", c.socket, unwrapURL(err))
	}
	why, next := op.Err.Error(), `start one with "nodeagent run" or "systemctl start nodeagent"; if its run folder is another one, name it with --run-dir or NODEAGENT_RUN_DIR`
	switch {
	case errors.Is(err, fs.ErrNotExist):
		why = "there is no such socket"
	case errors.Is(err, syscall.ECONNREFUSED):
		why = "nobody listens on it"
	case errors.Is(err, fs.ErrPermission):
		why, next = "permission denied", "run this command as root"
	}
	return noAgent(fmt.Sprintf("no agent answers on %s: %s; %s", c.socket, why, next))
}

// noAgent says that nobody is there, and what to do.
type noAgent string

func (e noAgent) Error() string { return string(e) }

// Unwrap makes it an errdefs.ErrUnavailable.
func (noAgent) Unwrap() error { return errdefs.ErrUnavailable }

func unwrapURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

func statusError(resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	var s metav1.Status
	if t, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); t == "application/json" && json.Unmarshal(b, &s) == nil && s.Status != "" {
		return &apierrors.StatusError{ErrStatus: s}
	}
	msg := strings.TrimSpace(string(b))
	if msg == "" {
		msg = resp.Status
	}
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: int32(resp.StatusCode), Message: msg,
	}}
}

// podsPath is the collection's path; an empty namespace is all of them.
func podsPath(namespace string) string {
	if namespace == "" {
		return "/api/v1/pods"
	}
	return "/api/v1/namespaces/" + url.PathEscape(namespace) + "/pods"
}

func podPath(namespace, name string) string {
	return podsPath(namespace) + "/" + url.PathEscape(name)
}
