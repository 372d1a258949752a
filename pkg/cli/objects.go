package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/cli/table"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/server/api"
)

// kindPath is the path of a kind's collection; an empty namespace is all of them.
func kindPath(kind, namespace string) string {
	if kind == "Pod" {
		return podsPath(namespace)
	}
	for _, k := range manifest.Kinds() {
		if k.Name != kind {
			continue
		}
		root := "/api/"
		if strings.Contains(k.APIVersion, "/") {
			root = "/apis/"
		}
		if namespace != "" && k.Namespaced {
			return root + k.APIVersion + "/namespaces/" + url.PathEscape(namespace) + "/" + k.Resource
		}
		return root + k.APIVersion + "/" + k.Resource
	}
	return ""
}

// target is one object that a command is about.
type target struct {
	kind string
	pod.Key
}

func (t target) path() string { return kindPath(t.kind, t.Namespace) + "/" + url.PathEscape(t.Name) }

// kindResource is a kind that is no Pod.
func kindResource(k manifest.Kind) resource {
	names := []string{k.Resource, strings.ToLower(k.Name)}
	if k.Short != "" {
		names = append(names, k.Short)
	}
	decode := func(raw []byte) (any, error) {
		o := manifest.New(k.Name)
		if err := json.Unmarshal(raw, o); err != nil {
			return nil, fmt.Errorf("the agent's answer is not what this nodeagent understands: %w", err)
		}
		return o, nil
	}
	var namespace func(any) string
	if k.Namespaced {
		namespace = func(o any) string { return o.(manifest.Resource).GetNamespace() }
	}
	return resource{
		kind: strings.ToLower(k.Name), object: k.Name, names: names, watched: true, decode: decode,
		path:      func(namespace string) string { return kindPath(k.Name, namespace) },
		namespace: namespace,
		ids:       func(o any) []string { return []string{o.(manifest.Resource).GetName()} },
		headers: func(wide bool) (out []string) {
			for _, c := range api.Columns(k.Name) {
				if wide || !c.Wide {
					out = append(out, c.Name)
				}
			}
			return out
		},
		cells: func(o any, now time.Time, wide bool) (out []string) {
			r := o.(manifest.Resource)
			cells := api.Cells(r, age(now, r.GetCreationTimestamp().Time))
			for i, c := range api.Columns(k.Name) {
				if wide || !c.Wide {
					out = append(out, cells[i])
				}
			}
			return out
		},
		list: func(ctx context.Context, c *Client, path string, q url.Values) (items []any, version string, err error) {
			var l struct {
				Metadata metav1.ListMeta   `json:"metadata"`
				Items    []json.RawMessage `json:"items"`
			}
			if err := c.get(ctx, path, q, &l); err != nil {
				return nil, "", err
			}
			for _, raw := range l.Items {
				o, err := decode(raw)
				if err != nil {
					return nil, "", err
				}
				items = append(items, o)
			}
			return items, l.Metadata.ResourceVersion, nil
		},
	}
}

// ObjectKinds are the types of what manifests can hold: "pod", "service", ….
func ObjectKinds() []string {
	var out []string
	for _, r := range resources() {
		if r.object != "" {
			out = append(out, r.kind)
		}
	}
	return out
}

// ObjectNames understands "service a b" and "service/a service/b", of the kinds
// that manifests can hold, and returns the kind ("Service").
func ObjectNames(args []string) (kind string, names []string, err error) {
	typ, names, err := typeAndNames(args)
	if err != nil {
		return "", nil, err
	}
	res, err := findResource(typ)
	if err != nil || res.object == "" {
		return "", nil, fmt.Errorf("%q: this command is for: %s; write TYPE NAME…", typ, strings.Join(ObjectKinds(), ", "))
	}
	return res.object, names, nil
}

// applyResource says what it did: created, configured or unchanged.
func (c *CLI) applyResource(ctx context.Context, o manifest.Object) (string, error) {
	t := target{o.Kind(), o.Key()}
	before, after := manifest.New(t.kind), manifest.New(t.kind)
	err := c.client.get(ctx, t.path(), nil, before)
	if apierrors.IsNotFound(err) {
		err = c.client.do(ctx, http.MethodPost, kindPath(t.kind, t.Namespace), nil, "application/json", o.Canonical, after)
		return "created", err
	}
	if err != nil {
		return "", err
	}
	if err := c.client.do(ctx, http.MethodPut, t.path(), nil, "application/json", o.Canonical, after); err != nil {
		return "", err
	}
	// The generation counts changes of what is wanted; the agent's own notes
	// beside it do not count here.
	notes := func(o manifest.Resource) map[string]string {
		a := maps.Clone(o.GetAnnotations())
		delete(a, pod.AnnotationProblem)
		return a
	}
	if before.GetUID() == after.GetUID() && before.GetGeneration() == after.GetGeneration() &&
		maps.Equal(before.GetLabels(), after.GetLabels()) && maps.Equal(notes(before), notes(after)) {
		return "unchanged", nil
	}
	return "configured", nil
}

// Describe writes everything that is known of each object of a kind, with its
// events; without names, of all of them.
func (c *CLI) Describe(ctx context.Context, kind string, names []string) error {
	if kind == "Pod" {
		return c.DescribePods(ctx, names)
	}
	res, err := findResource(kind)
	if err != nil {
		return err
	}
	items, missing, err := c.find(ctx, res, c.Namespace, names, nil)
	if err != nil {
		return err
	}
	for _, e := range missing {
		Report(c.Err, e)
	}
	if len(items)+len(missing) == 0 {
		c.nothing(res.namespace != nil, c.Namespace)
	}
	for i, o := range items {
		if i > 0 {
			fmt.Fprint(c.Out, "\n\n")
		}
		if err := c.describeResource(ctx, res, o.(manifest.Resource)); err != nil {
			return err
		}
	}
	if len(missing) > 0 {
		return errFailed()
	}
	return nil
}

func (c *CLI) describeResource(ctx context.Context, res resource, o manifest.Resource) error {
	events, err := c.eventsOf(ctx, o)
	if err != nil {
		return err
	}
	d := page{tabwriter.NewWriter(c.Out, 0, 8, 2, ' ', 0)}
	d.line(0, "Name:\t%s", o.GetName())
	if res.namespace != nil {
		d.line(0, "Namespace:\t%s", o.GetNamespace())
	}
	d.words("Labels", pairs(o.GetLabels(), "="))
	d.annotations(o.GetAnnotations())
	switch o := o.(type) {
	case *v1.Service:
		ready, err := c.serviceEndpoints(ctx, o)
		if err != nil {
			return err
		}
		d.service(o, ready)
	case *v1.ConfigMap:
		d.configMap(o)
	case *v1.Secret:
		d.secret(o)
	default:
		cells := res.cells(o, c.Now(), true)
		for i, h := range res.headers(true) {
			if h != "NAME" && h != "PROBLEM" {
				d.line(0, "%s:\t%s", strings.ToUpper(h[:1])+strings.ToLower(h[1:]), cells[i])
			}
		}
	}
	if p := o.GetAnnotations()[pod.AnnotationProblem]; p != "" {
		d.line(0, "Problem:\t%s", p)
	}
	d.events(events, c.Now())
	return d.w.Flush()
}

// serviceEndpoints are the EndpointSlices of a Service.
func (c *CLI) serviceEndpoints(ctx context.Context, s *v1.Service) (out []*discoveryv1.EndpointSlice, err error) {
	q := GetOptions{Selector: discoveryv1.LabelServiceName + "=" + s.Name}.query()
	res, err := findResource("endpointslices")
	if err != nil {
		return nil, err
	}
	items, _, err := res.list(ctx, c.client, res.path(s.Namespace), q)
	for _, o := range items {
		out = append(out, o.(*discoveryv1.EndpointSlice))
	}
	return out, err
}

func (d page) service(s *v1.Service, slicesOf []*discoveryv1.EndpointSlice) {
	d.line(0, "Selector:\t%s", orNone(strings.Join(pairs(s.Spec.Selector, "="), ",")))
	d.line(0, "Type:\t%s", s.Spec.Type)
	if p := s.Spec.IPFamilyPolicy; p != nil {
		d.line(0, "IP Family Policy:\t%s", *p)
	}
	families := make([]string, len(s.Spec.IPFamilies))
	for i, f := range s.Spec.IPFamilies {
		families[i] = string(f)
	}
	d.line(0, "IP Families:\t%s", orNone(strings.Join(families, ",")))
	d.line(0, "IP:\t%s", s.Spec.ClusterIP)
	d.line(0, "IPs:\t%s", orNone(strings.Join(s.Spec.ClusterIPs, ",")))
	if len(s.Spec.ExternalIPs) > 0 {
		d.line(0, "External IPs:\t%s", strings.Join(s.Spec.ExternalIPs, ","))
	}
	if s.Spec.LoadBalancerIP != "" {
		d.line(0, "Desired LoadBalancer IP:\t%s", s.Spec.LoadBalancerIP)
	}
	if s.Spec.ExternalName != "" {
		d.line(0, "External Name:\t%s", s.Spec.ExternalName)
	}
	var ingress []string
	for _, in := range s.Status.LoadBalancer.Ingress {
		text := in.IP + in.Hostname
		if in.IPMode != nil {
			text += " (" + string(*in.IPMode) + ")"
		}
		ingress = append(ingress, text)
	}
	if len(ingress) > 0 {
		d.line(0, "LoadBalancer Ingress:\t%s", strings.Join(ingress, ", "))
	}
	for _, p := range s.Spec.Ports {
		name := orNone(p.Name)
		if p.Name == "" {
			name = "<unset>"
		}
		d.line(0, "Port:\t%s\t%s/%s", name, p.Port, p.Protocol)
		d.line(0, "TargetPort:\t%s/%s", p.TargetPort.String(), p.Protocol)
		if p.AppProtocol != nil {
			d.line(0, "AppProtocol:\t%s", *p.AppProtocol)
		}
		if p.NodePort != 0 {
			d.line(0, "NodePort:\t%s\t%s/%s", name, p.NodePort, p.Protocol)
		}
		d.line(0, "Endpoints:\t%s", orNone(strings.Join(readyEndpoints(slicesOf, p.Name), ",")))
	}
	d.line(0, "Session Affinity:\t%s", s.Spec.SessionAffinity)
	if s.Spec.ExternalTrafficPolicy != "" {
		d.line(0, "External Traffic Policy:\t%s", s.Spec.ExternalTrafficPolicy)
	}
	if p := s.Spec.InternalTrafficPolicy; p != nil {
		d.line(0, "Internal Traffic Policy:\t%s", *p)
	}
	if p := s.Spec.HealthCheckNodePort; p != 0 {
		d.line(0, "HealthCheck NodePort:\t%s", p)
	}
	if len(s.Spec.LoadBalancerSourceRanges) > 0 {
		d.line(0, "LoadBalancer Source Ranges:\t%s", strings.Join(s.Spec.LoadBalancerSourceRanges, ","))
	}
	if t := s.Spec.TrafficDistribution; t != nil {
		d.line(0, "Traffic Distribution:\t%s", *t)
	}
}

// readyEndpoints are what serves a port of a Service.
func readyEndpoints(from []*discoveryv1.EndpointSlice, port string) (out []string) {
	for _, s := range from {
		i := slices.IndexFunc(s.Ports, func(p discoveryv1.EndpointPort) bool {
			return p.Port != nil && (p.Name == nil && port == "" || p.Name != nil && *p.Name == port)
		})
		if i < 0 {
			continue
		}
		for _, e := range s.Endpoints {
			if (e.Conditions.Ready == nil || *e.Conditions.Ready) && len(e.Addresses) > 0 {
				out = append(out, net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*s.Ports[i].Port))))
			}
		}
	}
	return out
}

// stays says that an object is not deleted here, and why.
func (c *CLI) stays(t target, annotations map[string]string) {
	fmt.Fprintf(c.Err, "%s %q stays: it comes from the %s source, %s\n", strings.ToLower(t.kind), table.Safe(t.Name),
		table.Safe(annotations[pod.AnnotationConfigSource]), table.Safe(annotations[pod.AnnotationOrigin]))
}
