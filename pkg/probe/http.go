package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// userAgent is kubelet's: servers and their logs tell probes by it.
const userAgent = "kube-probe/1.37"

// maxRedirects is how many redirects are followed.
const maxRedirects = 10

// newTransport is what all HTTP probes go through. Each probe makes a
// connection of its own: whether a new one is accepted is part of the question.
func newTransport() *http.Transport {
	return &http.Transport{
		// A probe is no proof of identity: nobody has given the pod a certificate
		// for its address.
		TLSClientConfig:    &tls.Config{InsecureSkipVerify: true},
		ForceAttemptHTTP2:  true, // over TLS, when the server offers it
		DisableKeepAlives:  true,
		DisableCompression: true,
		DialContext:        dial,
	}
}

// httpGet is good for a status from 200 to 399. A redirect to another host is
// not followed: it is good, with a warning.
func (p *Prober) httpGet(ctx context.Context, c Container, h *v1.HTTPGetAction) answer {
	req, err := newRequest(ctx, c, h, userAgent)
	if err != nil {
		return answer{err: err}
	}
	client := http.Client{Transport: p.transport, CheckRedirect: checkRedirect}
	resp, err := client.Do(req)
	if err != nil {
		return bad("%v", err) // a time-out among them
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxOutput))
	switch code := resp.StatusCode; {
	case err != nil:
		return answer{err: fmt.Errorf("read the response to the probe: %w", err)}
	case code < http.StatusOK || code >= http.StatusBadRequest:
		// Without the body: it may hold what is not for everybody who sees events.
		return bad("HTTP probe failed with statuscode: %d", code)
	case code >= http.StatusMultipleChoices:
		return answer{good: true, warning: true, output: "Probe terminated redirects, Response body: " + string(body)}
	default:
		return answer{good: true}
	}
}

func checkRedirect(req *http.Request, via []*http.Request) error {
	switch {
	case req.URL.Hostname() != via[0].URL.Hostname():
		return http.ErrUseLastResponse
	case len(via) >= maxRedirects:
		return errors.New("stopped after 10 redirects")
	}
	return nil
}

func newRequest(ctx context.Context, c Container, h *v1.HTTPGetAction, agent string) (*http.Request, error) {
	addr, err := address(c, h.Host, h.Port)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(h.Path)
	if err != nil {
		u = &url.URL{Path: h.Path} // the API takes any text for a path
	}
	u.Scheme, u.Host = strings.ToLower(string(h.Scheme)), addr
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for _, header := range h.HTTPHeaders {
		req.Header.Add(header.Name, header.Value)
	}
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header.Set("User-Agent", agent)
	}
	if _, ok := req.Header["Accept"]; !ok {
		req.Header.Set("Accept", "*/*")
	} else if req.Header.Get("Accept") == "" {
		req.Header.Del("Accept")
	}
	req.Host = req.Header.Get("Host")
	return req, nil
}

// hostPort is where a probe goes; a host of its own beats the pod's address.
func hostPort(c Container, host string, port int) (string, error) {
	if host == "" {
		host = c.Host
	}
	if host == "" {
		// An empty host would be this node.
		return "", errors.New("the pod has no address")
	}
	return net.JoinHostPort(host, strconv.Itoa(port)), nil
}
