package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/cli/table"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// DeleteOptions are the flags of `delete`.
type DeleteOptions struct {
	// Kind is what names and selectors are about: "Service"; empty: "Pod".
	Kind string
	// GracePeriod in seconds; below 0: the pod's own.
	GracePeriod int64
	// Force kills at once.
	Force bool
	// Wait until the pod has fully ended.
	Wait bool
	// IgnoreNotFound makes a pod that is not there a success.
	IgnoreNotFound bool
}

func (o DeleteOptions) kind() string { return cmp.Or(o.Kind, "Pod") }

// Delete deletes objects by name.
func (c *CLI) Delete(ctx context.Context, names []string, o DeleteOptions) error {
	var keys []target
	for _, n := range names {
		keys = append(keys, target{o.kind(), pod.Key{Namespace: c.Namespace, Name: podName(n)}})
	}
	return c.deleteAll(ctx, keys, o)
}

// DeleteAll deletes the objects of the namespace that match a label selector, or
// all of them, and that came through the API. Others stay while their manifest
// does, and are named.
func (c *CLI) DeleteAll(ctx context.Context, selector string, o DeleteOptions) error {
	var l metav1.PartialObjectMetadataList
	if err := c.client.get(ctx, kindPath(o.kind(), c.Namespace), GetOptions{Selector: selector}.query(), &l); err != nil {
		return err
	}
	var keys []target
	for i := range l.Items {
		m := &l.Items[i]
		t := target{o.kind(), pod.Key{Namespace: m.Namespace, Name: m.Name}}
		if m.Annotations[pod.AnnotationConfigSource] != sourceAPI {
			c.stays(t, m.Annotations)
			continue
		}
		keys = append(keys, t)
	}
	if len(l.Items) == 0 {
		res, err := findResource(o.kind())
		if err != nil {
			return err
		}
		c.nothing(res.namespace != nil, c.Namespace)
	}
	return c.deleteAll(ctx, keys, o)
}

// sourceAPI is the config source of objects that came through the API.
const sourceAPI = "api"

// DeleteFiles deletes the objects that manifests name.
func (c *CLI) DeleteFiles(ctx context.Context, files []string, o DeleteOptions) error {
	keys, err := c.namedIn(files)
	if err != nil {
		return err
	}
	return c.deleteAll(ctx, keys, o)
}

func (c *CLI) deleteAll(ctx context.Context, keys []target, o DeleteOptions) error {
	grace, err := o.grace()
	if err != nil {
		return err
	}
	if o.Force {
		fmt.Fprintln(c.Err, "Warning: with --force containers are killed at once and get no time to finish.")
	}
	failed := false
	deleted := map[target]types.UID{}
	for _, k := range keys {
		uid, err := c.deleteOne(ctx, k, grace)
		switch {
		case apierrors.IsNotFound(err) && o.IgnoreNotFound:
			continue
		case isStatus(err):
			Report(c.Err, err)
			failed = true
			continue
		case err != nil:
			return err
		}
		word := "deleted"
		if o.Force && k.kind == "Pod" {
			word = "force deleted"
		}
		if manifest.IsNamespaced(k.kind) {
			word += " from " + table.Safe(k.Namespace) + " namespace"
		}
		fmt.Fprintf(c.Out, "%s %q %s\n", strings.ToLower(k.kind), table.Safe(k.Name), word)
		deleted[k] = uid
	}
	if o.Wait {
		for _, k := range keys {
			// Only pods have to end.
			if uid, ok := deleted[k]; ok && k.kind == "Pod" {
				if err := c.waitGone(ctx, k.Key, uid); err != nil {
					return givenUp(ctx, k.Key, err)
				}
			}
		}
	}
	if failed {
		return errFailed()
	}
	return nil
}

// givenUp says what becomes of a deletion that nobody waits for any longer.
func givenUp(ctx context.Context, k pod.Key, err error) error {
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return &ExitError{Code: interrupted}
	case ctx.Err() != nil:
		return fmt.Errorf("pod %s has not ended yet, but it will; see \"nodeagent describe pod %s -n %s\": %w", k, k.Name, k.Namespace, ctx.Err())
	}
	return fmt.Errorf("wait for pod %s: %w", k, err)
}

// grace is nil for the pod's own.
func (o DeleteOptions) grace() (*int64, error) {
	switch {
	case o.Force && o.GracePeriod > 0:
		return nil, errors.New("--force means --grace-period 0; leave one of them out")
	case o.Force:
		return new(int64), nil
	case o.GracePeriod == 0:
		// As kubectl: 0 is reserved for --force, the shortest grace is 1.
		one := int64(1)
		return &one, nil
	case o.GracePeriod > 0:
		return &o.GracePeriod, nil
	}
	return nil, nil
}

// deleteOne asks for the deletion and returns the UID of what is going.
func (c *CLI) deleteOne(ctx context.Context, k target, grace *int64) (types.UID, error) {
	body, err := json.Marshal(metav1.DeleteOptions{
		TypeMeta:           metav1.TypeMeta{APIVersion: "v1", Kind: "DeleteOptions"},
		GracePeriodSeconds: grace,
	})
	if err != nil {
		return "", err
	}
	// The answer is the pod, or a Status when it is gone at once.
	var out struct {
		Metadata metav1.ObjectMeta     `json:"metadata"`
		Details  *metav1.StatusDetails `json:"details"`
	}
	if err := c.client.do(ctx, http.MethodDelete, k.path(), nil, "application/json", body, &out); err != nil {
		return "", err
	}
	if out.Details != nil && out.Metadata.UID == "" {
		return out.Details.UID, nil
	}
	return out.Metadata.UID, nil
}

// waitGone returns once the pod of that UID is no more.
func (c *CLI) waitGone(ctx context.Context, k pod.Key, uid types.UID) error {
	q := url.Values{"fieldSelector": {"metadata.name=" + k.Name}}
	errGone := errors.New("gone")
	for {
		var l v1.PodList
		if err := c.client.get(ctx, podsPath(k.Namespace), q, &l); err != nil {
			return err
		}
		if len(l.Items) == 0 || uid != "" && l.Items[0].UID != uid {
			return nil
		}
		wq := url.Values{"watch": {"true"}, "resourceVersion": {l.ResourceVersion}, "fieldSelector": q["fieldSelector"]}
		err := c.client.watch(ctx, podsPath(k.Namespace), wq, func(kind string, raw []byte) error {
			var p v1.Pod
			if err := json.Unmarshal(raw, &p); err != nil {
				return err
			}
			if kind == "DELETED" && (uid == "" || p.UID == uid) || uid != "" && p.UID != uid {
				return errGone
			}
			return nil
		})
		switch {
		case errors.Is(err, errGone):
			return nil
		case apierrors.IsResourceExpired(err) || apierrors.IsGone(err):
		default:
			return err
		}
	}
}
