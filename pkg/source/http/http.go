// Package http is the source that polls a URL for Pods.
package http

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/store"
)

const (
	// maxBody is what one answer may have, in bytes.
	maxBody          = 10 << 20
	maxRedirects     = 10
	defaultInterval  = 20 * time.Second
	defaultTimeout   = 10 * time.Second
	mediaTypes       = "application/yaml, application/json;q=0.9, */*;q=0.8"
	jitter           = 0.1
	maxErrorFromBody = 200
)

// Options are what a source needs; URL and Decode are required.
type Options struct {
	// URL is http:// or https://; user and password in it are sent as basic
	// authentication and never shown.
	URL string
	// Header is added to every request.
	Header map[string][]string
	// CAFile holds the certificates to trust, in PEM, in place of the system's.
	// It is read for every new connection's configuration, so that it may change.
	CAFile string
	// Interval lies between two polls; 0: 20 s. Timeout is for one poll as a
	// whole; 0: 10 s.
	Interval, Timeout time.Duration
	NodeName          string
	// Decode is manifest.Decode.
	Decode func([]byte, manifest.Options) ([]manifest.Object, []*manifest.Error)
}

// Source polls one URL.
type Source struct {
	o      Options
	origin string // the URL without its secrets
	// after is a timer, and what stops it.
	after func(time.Duration) (<-chan time.Time, func() bool)

	// Of the run.
	client *http.Client
	ca     []byte
	// The last good answer.
	good           bool
	last           store.Snapshot
	body           []byte
	etag, modified string
}

// New makes a source; Run starts it.
func New(o Options) *Source {
	if o.Interval <= 0 {
		o.Interval = defaultInterval
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	return &Source{o: o, origin: Shown(o.URL), after: func(d time.Duration) (<-chan time.Time, func() bool) {
		t := time.NewTimer(d)
		return t.C, t.Stop
	}}
}

// Shown is a URL without user, password and query, which may be secrets.
func Shown(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "the manifest URL"
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}

// Run polls until ctx ends, and then returns nil. The first poll is at once.
func (s *Source) Run(ctx context.Context, sink store.Sink) error {
	defer func() {
		if s.client != nil {
			s.client.CloseIdleConnections()
		}
	}()
	for {
		err := s.poll(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			sink.Fail(store.SourceHTTP, fmt.Errorf("%s: %w", s.origin, err))
		default:
			sink.Apply(store.SourceHTTP, s.last)
		}
		// Many nodes that started together do not ask together for ever.
		wait := time.Duration(float64(s.o.Interval) * (1 + jitter*(rand.Float64()-0.5)))
		due, stop := s.after(wait)
		select {
		case <-ctx.Done():
			stop()
			return nil
		case <-due:
		}
	}
}

// poll asks once. A nil error means that last is what the server wants now.
func (s *Source) poll(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.o.Timeout, fmt.Errorf("no complete answer within %s", s.o.Timeout))
	defer cancel()
	if err := s.connect(); err != nil {
		return err
	}
	req, err := s.request(ctx)
	if err != nil {
		return err
	}
	res, err := s.client.Do(req)
	if err != nil {
		return because(ctx, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxBody+1))
	if err != nil {
		return fmt.Errorf("the answer broke off after %d bytes: %w", len(body), because(ctx, err))
	}
	switch {
	case res.StatusCode == http.StatusNotModified && s.good:
		return nil
	case res.StatusCode != http.StatusOK:
		return statusError(res, body)
	case len(body) > maxBody:
		return fmt.Errorf("the answer has more than %d bytes (10 MiB): split it or name less", maxBody)
	}
	return s.take(res.Header, body)
}

func statusError(res *http.Response, body []byte) error {
	text := strings.ToValidUTF8(strings.Join(strings.Fields(string(body[:min(len(body), maxErrorFromBody)])), " "), "\uFFFD")
	if text != "" {
		text = ": " + text
	}
	hint := "the last good answer stays in force"
	switch res.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		hint = "check manifestURLHeader; " + hint
	case http.StatusNotFound, http.StatusGone:
		hint = "check manifestURL; " + hint
	}
	return fmt.Errorf("the server answered %s%s (%s)", res.Status, text, hint)
}

// take makes a body the last good answer. One that cannot be decoded as a whole
// changes nothing; its errors are shown until it can.
func (s *Source) take(h http.Header, body []byte) error {
	if !s.good || !bytes.Equal(body, s.body) {
		objects, errs := s.o.Decode(body, manifest.Options{Origin: s.origin, NodeName: s.o.NodeName})
		snap := store.Snapshot{Objects: objects}
		for _, e := range errs {
			snap.Problems = append(snap.Problems, store.Problem{Origin: s.origin, Object: e.Object, Err: e, Keep: true})
		}
		if err := wrong(body, objects, errs); err != nil {
			s.good, s.etag, s.modified = false, "", ""
			return err
		}
		s.last, s.body = snap, body
	}
	s.good, s.etag, s.modified = true, h.Get("ETag"), h.Get("Last-Modified")
	return nil
}

// wrong says why a body as a whole is no answer. One that has no pods is, if it
// says so: servers in trouble send empty pages and null, which end nothing.
func wrong(body []byte, objects []manifest.Object, errs []*manifest.Error) error {
	switch {
	case len(objects) > 0:
	case len(errs) > 0:
		first, more := *errs[0], ""
		first.Origin = "" // Run says it
		if n := len(errs) - 1; n > 0 {
			more = fmt.Sprintf(" (and %d more; nodeagent validate lists them)", n)
		}
		return fmt.Errorf("the answer is not understood: %w%s", &first, more)
	case !hasKind(body):
		return errors.New("the answer is empty: to run no pods, answer with a PodList that has no items")
	}
	return nil
}

// hasKind says that a body which was understood has more than empty documents.
func hasKind(body []byte) bool {
	for d := yaml.NewDecoder(bytes.NewReader(body)); ; {
		var o struct{ Kind string }
		if err := d.Decode(&o); err != nil || o.Kind != "" {
			return err == nil
		}
	}
}

func (s *Source) request(ctx context.Context) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.o.URL, nil)
	if err != nil {
		return nil, fmt.Errorf("manifestURL cannot be used: %w", bare(err))
	}
	req.Header.Set("Accept", mediaTypes)
	req.Header.Set("User-Agent", "nodeagent")
	for name, values := range s.o.Header {
		req.Header.Del(name)
		for _, v := range values {
			req.Header.Add(name, v)
		}
		if strings.EqualFold(name, "Host") && len(values) > 0 {
			req.Host = values[0]
		}
	}
	if s.good && s.etag != "" {
		req.Header.Set("If-None-Match", s.etag)
	}
	if s.good && s.modified != "" {
		req.Header.Set("If-Modified-Since", s.modified)
	}
	return req, nil
}

// connect makes the client, anew when the file of certificates has changed.
func (s *Source) connect() error {
	var ca []byte
	var roots *x509.CertPool
	if s.o.CAFile != "" {
		var err error
		if ca, err = os.ReadFile(s.o.CAFile); err != nil {
			return fmt.Errorf("manifestURLCA cannot be read: %w", err)
		}
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(ca) {
			return fmt.Errorf("manifestURLCA %s holds no certificate in PEM", s.o.CAFile)
		}
	}
	if s.client != nil && bytes.Equal(ca, s.ca) {
		return nil
	}
	if s.client != nil {
		s.client.CloseIdleConnections()
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	t.MaxIdleConns, t.MaxIdleConnsPerHost = 1, 1
	s.client = &http.Client{Transport: t, CheckRedirect: s.redirect}
	s.ca = ca
	return nil
}

// redirect follows a few. To another host it does not carry our headers, nor
// the query of the URL that we came from, which may be secrets; net/http drops
// what it knows to be one, we drop all.
func (s *Source) redirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return fmt.Errorf("a redirect from https to %s is not followed", req.URL.Scheme)
	}
	if req.URL.Host != via[0].URL.Host {
		for name := range s.o.Header {
			req.Header.Del(name)
		}
		req.Header.Del("Referer")
	}
	return nil
}

// because prefers the reason for which a context ended, and keeps the URL with
// its secrets out of the message.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return bare(err)
}

func bare(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}
