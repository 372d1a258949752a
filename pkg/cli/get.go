package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/cli/table"
	"github.com/nodeagent/nodeagent/pkg/server/api"
)

// GetOptions are the flags of `get`.
type GetOptions struct {
	Output        string // "", wide, json, yaml, name
	Watch         bool
	AllNamespaces bool
	Selector      string
	FieldSelector string
	NoHeaders     bool
}

// relistEvery paces -w for kinds that the agent has no watch for.
const relistEvery = time.Second

// Outputs are the values of -o.
func Outputs() []string { return []string{"wide", "json", "yaml", "name"} }

// selection is what of one kind is meant; no names are all.
type selection struct {
	res   resource
	names []string
}

// Get lists, names or watches resources. args is "TYPE[,TYPE…] [NAME…]" or
// "TYPE/NAME…"; the type "all" is pods and services.
func (c *CLI) Get(ctx context.Context, args []string, o GetOptions) error {
	selected, err := selections(args)
	if err != nil {
		return err
	}
	if o.Watch && len(selected) > 1 {
		return errors.New("-w takes one type")
	}
	for _, s := range selected {
		if err := o.check(s.res, s.names); err != nil {
			return err
		}
	}
	namespace := c.Namespace
	if o.AllNamespaces {
		namespace = ""
	}
	if o.Watch {
		p, names := &printer{cli: c, res: selected[0].res, opts: o}, selected[0].names
		if p.res.watched {
			return c.watch(ctx, p, namespace, names)
		}
		return c.relist(ctx, p, namespace, names)
	}
	return c.getOnce(ctx, selected, namespace, o)
}

// getOnce prints one table for each kind, or one list of everything.
func (c *CLI) getOnce(ctx context.Context, selected []selection, namespace string, o GetOptions) error {
	var all []any
	var missing []error
	tables, single := 0, len(selected) == 1 && len(selected[0].names) == 1
	for _, s := range selected {
		items, gone, err := c.find(ctx, s.res, namespace, s.names, o.query())
		if err != nil {
			return err
		}
		all, missing = append(all, items...), append(missing, gone...)
		if o.structured() || len(items) == 0 {
			continue
		}
		if tables++; tables > 1 && o.Output != "name" {
			fmt.Fprintln(c.Out)
		}
		p := &printer{cli: c, res: s.res, opts: o, several: len(selected) > 1}
		if err := p.print(items, single); err != nil {
			return err
		}
	}
	switch {
	case o.structured() && (len(all) > 0 || len(missing) == 0):
		if err := (&printer{cli: c, opts: o}).print(all, single); err != nil {
			return err
		}
	case len(all) == 0 && len(missing) == 0:
		c.nothing(slices.ContainsFunc(selected, func(s selection) bool { return s.res.namespace != nil }), namespace)
	}
	for _, e := range missing {
		Report(c.Err, e)
	}
	if len(missing) > 0 {
		return errFailed()
	}
	return nil
}

// selections understands "pods", "pods a b", "pods,services", "all" and "pod/a
// service/b".
func selections(args []string) (out []selection, err error) {
	add := func(kind string, names ...string) error {
		res, err := findResource(kind)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(out, func(s selection) bool { return s.res.kind == res.kind })
		if i < 0 {
			i, out = len(out), append(out, selection{res: res})
		}
		out[i].names = append(out[i].names, names...)
		return nil
	}
	if len(args) > 0 && strings.Contains(args[0], "/") {
		for _, a := range args {
			kind, name, ok := strings.Cut(a, "/")
			if !ok || name == "" {
				return nil, fmt.Errorf("%q: write TYPE NAME… or TYPE/NAME…", a)
			}
			if err := add(kind, name); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	kinds, names, err := typeAndNames(args)
	if err != nil {
		return nil, err
	}
	for kind := range strings.SplitSeq(kinds, ",") {
		if kind == "all" {
			err = errors.Join(add("pods", names...), add("services", names...))
		} else {
			err = add(kind, names...)
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// typeAndNames understands "pods", "pods a b" and "pod/a pod/b".
func typeAndNames(args []string) (kind string, names []string, err error) {
	if len(args) == 0 {
		return "", nil, errors.New("name the type of what you mean: TYPE [NAME…], such as: pods, or pod web")
	}
	if !strings.Contains(args[0], "/") {
		return args[0], args[1:], nil
	}
	for _, a := range args {
		k, name, ok := strings.Cut(a, "/")
		if !ok || name == "" || kind != "" && kind != k {
			return "", nil, fmt.Errorf("%q: write TYPE NAME… or TYPE/NAME…, all of one type", a)
		}
		kind, names = k, append(names, name)
	}
	return kind, names, nil
}

func (o GetOptions) check(res resource, names []string) error {
	switch {
	case o.Output != "" && !slices.Contains(Outputs(), o.Output):
		return fmt.Errorf("-o %q is not known; there are: %s", o.Output, strings.Join(Outputs(), ", "))
	case o.AllNamespaces && len(names) > 0 && res.watched:
		return errors.New("a resource cannot be retrieved by name across all namespaces; use -n")
	case o.Selector != "" && len(names) > 0:
		return errors.New("selectors and names exclude each other")
	case o.Watch && len(names) > 1:
		return errors.New("-w takes one name or none")
	case (o.Selector != "" || o.FieldSelector != "") && !res.watched:
		return fmt.Errorf("%s have no labels or fields to select by; name them instead", res.names[0])
	}
	return nil
}

func (o GetOptions) query() url.Values {
	q := url.Values{}
	if o.Selector != "" {
		q.Set("labelSelector", o.Selector)
	}
	if o.FieldSelector != "" {
		q.Set("fieldSelector", o.FieldSelector)
	}
	return q
}

func (o GetOptions) structured() bool { return o.Output == "json" || o.Output == "yaml" }

func (c *CLI) nothing(namespaced bool, namespace string) {
	if namespace == "" || !namespaced {
		fmt.Fprintln(c.Err, "No resources found")
		return
	}
	fmt.Fprintf(c.Err, "No resources found in %s namespace.\n", table.Safe(namespace))
}

// find lists, or gets each name. Names that are not there come back as errors
// beside the objects that are.
func (c *CLI) find(ctx context.Context, res resource, namespace string, names []string, q url.Values) (items []any, missing []error, err error) {
	if res.decode != nil && len(names) > 0 {
		for _, n := range names {
			var raw json.RawMessage
			switch err := c.client.get(ctx, res.path(namespace)+"/"+url.PathEscape(n), nil, &raw); {
			case isStatus(err):
				missing = append(missing, err)
			case err != nil:
				return nil, nil, err
			default:
				o, err := res.decode(raw)
				if err != nil {
					return nil, nil, err
				}
				items = append(items, o)
			}
		}
		return items, missing, nil
	}
	all, _, err := res.list(ctx, c.client, res.path(namespace), q)
	if err != nil {
		return nil, nil, err
	}
	if res.namespace != nil && namespace != "" {
		all = slices.DeleteFunc(all, func(o any) bool { return res.namespace(o) != namespace })
	}
	if len(names) == 0 {
		return all, nil, nil
	}
	for _, n := range names {
		found := false
		for _, o := range all {
			if slices.Contains(res.ids(o), n) {
				items, found = append(items, o), true
			}
		}
		if !found {
			missing = append(missing, fmt.Errorf("%s %q not found", res.names[0], n))
		}
	}
	return items, missing, nil
}

func isStatus(err error) bool {
	var s *apierrors.StatusError
	return errors.As(err, &s)
}

// watch lists once and then prints what changes until ctx ends. When the agent
// no longer has the revision that was listed, it lists again.
func (c *CLI) watch(ctx context.Context, p *printer, namespace string, names []string) error {
	q := p.opts.query()
	if len(names) == 1 {
		one := "metadata.name=" + names[0]
		if f := q.Get("fieldSelector"); f != "" {
			one = f + "," + one
		}
		q.Set("fieldSelector", one)
	}
	for {
		items, rv, err := p.res.list(ctx, c.client, p.res.path(namespace), q)
		if err != nil {
			return endOf(ctx, err)
		}
		if err := p.print(items, true); err != nil {
			return err
		}
		wq := url.Values{"watch": {"true"}, "resourceVersion": {rv}, "allowWatchBookmarks": {"true"}}
		for k, v := range q {
			wq[k] = v
		}
		err = c.client.watch(ctx, p.res.path(namespace), wq, func(_ string, raw []byte) error {
			o, err := p.res.decode(raw)
			if err != nil {
				return err
			}
			return p.print([]any{o}, true)
		})
		if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
			return endOf(ctx, err)
		}
	}
}

// endOf makes the user's own interrupt a success.
func endOf(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// relist stands in for a watch on the agent's own kinds: rows that are new or
// say something new are printed.
func (c *CLI) relist(ctx context.Context, p *printer, namespace string, names []string) error {
	tick, stop := c.tick(relistEvery)
	defer stop()
	var before []any
	for {
		items, missing, err := c.find(ctx, p.res, namespace, names, nil)
		if err != nil {
			return endOf(ctx, err)
		}
		if before == nil && len(missing) > 0 {
			return missing[0]
		}
		var changed []any
		for _, o := range items {
			if !slices.ContainsFunc(before, func(b any) bool { return reflect.DeepEqual(b, o) }) {
				changed = append(changed, o)
			}
		}
		if len(changed) > 0 {
			if err := p.print(changed, true); err != nil {
				return err
			}
		}
		before = append([]any{}, items...)
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
		}
	}
}

// watch reads a stream of {type, object} until it ends, which is an error, or
// ctx does.
func (c *Client) watch(ctx context.Context, path string, q url.Values, each func(kind string, object []byte) error) error {
	body, err := c.open(ctx, http.MethodGet, path, q, "", nil)
	if err != nil {
		return err
	}
	defer body.Close()
	for dec := json.NewDecoder(body); ; {
		var e struct {
			Type   string          `json:"type"`
			Object json.RawMessage `json:"object"`
		}
		switch err := dec.Decode(&e); {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return errors.New("the agent ended the watch; it may have been stopped: run the command again")
		case err != nil:
			return fmt.Errorf("watch %s: %w", path, err)
		}
		switch e.Type {
		case "BOOKMARK":
		case "ERROR":
			var s metav1.Status
			if err := json.Unmarshal(e.Object, &s); err != nil {
				return fmt.Errorf("watch %s: %w", path, err)
			}
			return &apierrors.StatusError{ErrStatus: s}
		default:
			if err := each(e.Type, e.Object); err != nil {
				return err
			}
		}
	}
}

// decodeAs decodes one API object and fills its kind in.
func decodeAs[T any](raw []byte) (any, error) {
	o := new(T)
	if err := json.Unmarshal(raw, o); err != nil {
		return nil, fmt.Errorf("the agent's answer is not what this nodeagent understands: %w", err)
	}
	return o, nil
}

// printer prints objects in the chosen form, over and over for a watch.
type printer struct {
	cli  *CLI
	res  resource
	opts GetOptions
	tab  *table.Writer
	// several kinds are printed: names say of which they are.
	several bool
}

// print prints items; single prints a lone one bare, not as a list.
func (p *printer) print(items []any, single bool) error {
	switch p.opts.Output {
	case "json", "yaml":
		return p.structured(items, single)
	case "name":
		for _, o := range items {
			fmt.Fprintf(p.cli.Out, "%s/%s\n", p.res.kind, table.Safe(p.res.ids(o)[0]))
		}
		return nil
	}
	wide := p.opts.Output == "wide"
	spaced := p.opts.AllNamespaces && p.res.namespace != nil
	named := -1
	if p.several {
		named = slices.Index(p.res.headers(wide), "NAME")
	}
	if p.tab == nil {
		p.tab = table.New(p.cli.Out)
		if h := p.res.headers(wide); !p.opts.NoHeaders && len(items) > 0 {
			if spaced {
				h = append([]string{"NAMESPACE"}, h...)
			}
			p.tab.Row(h...)
		} else if len(items) == 0 {
			p.tab = nil // headers come with the first row
			return nil
		}
	}
	for _, o := range items {
		cells := p.res.cells(o, p.cli.Now(), wide)
		if named >= 0 {
			cells[named] = p.res.kind + "/" + cells[named]
		}
		if spaced {
			cells = append([]string{p.res.namespace(o)}, cells...)
		}
		p.tab.Row(cells...)
	}
	return p.tab.Flush()
}

func (p *printer) structured(items []any, single bool) error {
	for _, o := range items {
		withKind(o)
	}
	if single && p.opts.Watch {
		for _, o := range items {
			if err := p.encode(o); err != nil {
				return err
			}
		}
		return nil
	}
	if single && len(items) == 1 {
		return p.encode(items[0])
	}
	if items == nil {
		items = []any{}
	}
	return p.encode(map[string]any{"apiVersion": "v1", "kind": "List", "metadata": map[string]any{"resourceVersion": ""}, "items": items})
}

func (p *printer) encode(o any) error {
	b, err := json.MarshalIndent(o, "", "    ")
	if err != nil {
		return err
	}
	if p.opts.Output == "yaml" {
		if b, err = api.YAML(b); err != nil {
			return err
		}
		if p.opts.Watch {
			b = append([]byte("---\n"), b...)
		}
		_, err = p.cli.Out.Write(b)
		return err
	}
	_, err = p.cli.Out.Write(append(b, '\n'))
	return err
}

// withKind fills in what the API leaves out for the items of a list.
func withKind(o any) {
	switch o := o.(type) {
	case *v1.Pod:
		o.TypeMeta = podType()
	case *v1.Event:
		o.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Event"}
	}
}
