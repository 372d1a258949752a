package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	v1 "k8s.io/api/core/v1"
)

// hookAgent is what servers see of hooks, as kubelet's.
const hookAgent = "kube-lifecycle/1.37"

// errHandler is for handlers that the API takes and nobody runs.
var errHandler = errors.New("hooks run exec, httpGet and sleep only")

// Hook runs a hook of a container until it ends or ctx does. Of an HTTP hook
// every answer is good; a server that knows no TLS is asked without.
func (p *Prober) Hook(ctx context.Context, desired *v1.Pod, c Container, h *v1.LifecycleHandler) error {
	switch {
	case h.Exec != nil:
		stdout, stderr, exit, err := p.o.Runtime.ExecSync(ctx, c.ID, h.Exec.Command, 0)
		if err == nil && exit != 0 {
			output := append(stdout, stderr...)
			err = fmt.Errorf("command %q ended with exit code %d: %s", h.Exec.Command, exit, output[:min(len(output), maxOutput)])
		}
		return err
	case h.HTTPGet != nil:
		err := p.hookRequest(ctx, c, h.HTTPGet)
		if errors.Is(err, http.ErrSchemeMismatch) {
			plain := *h.HTTPGet
			plain.Scheme = v1.URISchemeHTTP
			plain.HTTPHeaders = withoutAuthorization(plain.HTTPHeaders)
			if err = p.hookRequest(ctx, c, &plain); err == nil {
				p.o.Recorder.PodEvent(desired, "", v1.EventTypeWarning, "LifecycleHTTPFallback",
					"request to HTTPS lifecycle hook of container "+c.Spec.Name+" got HTTP response, retry with HTTP succeeded")
			}
		}
		return err
	case h.Sleep != nil:
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.o.After(time.Duration(h.Sleep.Seconds) * time.Second):
			return nil
		}
	default:
		return errHandler
	}
}

func (p *Prober) hookRequest(ctx context.Context, c Container, h *v1.HTTPGetAction) error {
	req, err := newRequest(ctx, c, h, hookAgent)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: p.transport}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, maxOutput) // a server may want to be read
	return nil
}

// withoutAuthorization keeps from a plain connection what was meant for TLS.
func withoutAuthorization(headers []v1.HTTPHeader) (out []v1.HTTPHeader) {
	for _, h := range headers {
		if http.CanonicalHeaderKey(h.Name) != "Authorization" {
			out = append(out, h)
		}
	}
	return out
}
