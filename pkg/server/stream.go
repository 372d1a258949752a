package server

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	dialTimeout      = 10 * time.Second
	handshakeTimeout = 30 * time.Second
	// maxRefusal bounds what is read of the runtime's answer when it refuses.
	maxRefusal = 64 << 10
)

// isUpgrade says that the client wants to change the protocol (SPDY or
// websocket).
func isUpgrade(r *http.Request) bool {
	if r.Header.Get("Upgrade") == "" {
		return false
	}
	for _, h := range r.Header.Values("Connection") {
		for part := range strings.SplitSeq(h, ",") {
			if strings.EqualFold(strings.TrimSpace(part), "upgrade") {
				return true
			}
		}
	}
	return false
}

// proxyUpgrade hands the client's connection over to the runtime's streaming
// server at target: the upgrade request is forwarded, and from its acceptance
// on bytes are copied both ways, unseen. What the runtime refuses is told as a
// Status. The caller's address, token and cookies do not leave this process.
func (s *Server) proxyUpgrade(w http.ResponseWriter, r *http.Request, target *url.URL) error {
	// Before the connection is taken over: until then the HTTP server waits for
	// this request, from then on Run does.
	s.sessions.Add(1)
	defer s.sessions.Done()
	ctx := r.Context()
	backend, err := dialStream(ctx, target)
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("connecting to the runtime's streaming server: %w", err))
	}
	defer backend.Close()
	if err := backend.SetDeadline(s.o.Now().Add(handshakeTimeout)); err != nil {
		return apierrors.NewInternalError(err)
	}
	out := &http.Request{
		Method: r.Method, URL: target, Host: target.Host, Header: r.Header.Clone(),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	for _, h := range []string{"Authorization", "Cookie", "X-Forwarded-For", "Content-Length", "Transfer-Encoding"} {
		out.Header.Del(h)
	}
	if err := out.Write(backend); err != nil {
		return apierrors.NewInternalError(fmt.Errorf("asking the runtime's streaming server: %w", err))
	}
	back := bufio.NewReader(backend)
	resp, err := http.ReadResponse(back, out)
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("reading the runtime's streaming server's answer: %w", err))
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer resp.Body.Close()
		return refusal(resp)
	}
	if err := backend.SetDeadline(time.Time{}); err != nil {
		return apierrors.NewInternalError(err)
	}
	client, front, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("this connection cannot be taken over: %w", err))
	}
	defer client.Close()
	if err := client.SetDeadline(time.Time{}); err != nil {
		return nil // hijacked: nobody is left to be told
	}
	if _, err := fmt.Fprint(client, "HTTP/1.1 101 Switching Protocols\r\n"); err != nil {
		return nil
	}
	if err := resp.Header.Write(client); err != nil {
		return nil
	}
	if _, err := io.WriteString(client, "\r\n"); err != nil {
		return nil
	}
	splice(ctx, client, front.Reader, backend, back)
	return nil
}

// splice copies both ways until one side ends or ctx does; then both are
// closed. It returns when both copies have.
func splice(ctx context.Context, client net.Conn, front *bufio.Reader, backend net.Conn, back *bufio.Reader) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		_ = client.Close()
		_ = backend.Close()
	})
	defer stop()
	var wg sync.WaitGroup
	one := func(dst net.Conn, src net.Conn, early *bufio.Reader) {
		defer cancel()
		// What was read together with the head comes first.
		if n := early.Buffered(); n > 0 {
			if _, err := io.CopyN(dst, early, int64(n)); err != nil {
				return
			}
		}
		_, _ = io.Copy(dst, src) // either end may vanish at any time
	}
	wg.Go(func() { one(backend, client, front) })
	wg.Go(func() { one(client, backend, back) })
	wg.Wait()
}

// dialStream connects to a streaming URL that the runtime gave us.
func dialStream(ctx context.Context, target *url.URL) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d net.Dialer
	switch target.Scheme {
	case "http", "":
		return d.DialContext(ctx, "tcp", withPort(target, "80"))
	case "https":
		t := tls.Dialer{NetDialer: &d, Config: &tls.Config{MinVersion: tls.VersionTLS12, ServerName: target.Hostname()}}
		return t.DialContext(ctx, "tcp", withPort(target, "443"))
	}
	return nil, fmt.Errorf("streaming URL %s: unknown scheme %q", target.Redacted(), target.Scheme)
}

func withPort(u *url.URL, port string) string {
	if p := u.Port(); p != "" {
		port = p
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// refusal turns an answer that is no upgrade into an error. Codes that mean the
// client's request are passed on; the rest is ours to explain.
func refusal(resp *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		body = nil
	}
	text := strings.TrimSpace(string(body))
	if text == "" {
		text = resp.Status
	}
	if resp.StatusCode < http.StatusBadRequest {
		return apierrors.NewInternalError(fmt.Errorf("the runtime's streaming server answered %s to an upgrade", resp.Status))
	}
	reason := metav1.StatusReasonUnknown
	switch resp.StatusCode {
	case http.StatusBadRequest:
		reason = metav1.StatusReasonBadRequest
	case http.StatusNotFound:
		reason = metav1.StatusReasonNotFound
	case http.StatusForbidden:
		reason = metav1.StatusReasonForbidden
	case http.StatusInternalServerError:
		reason = metav1.StatusReasonInternalError
	}
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: int32(resp.StatusCode), Reason: reason,
		Message: "the container runtime refused the stream: " + text,
	}}
}
