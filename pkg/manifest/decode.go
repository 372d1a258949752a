package manifest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// maxReported is how many errors a whole stream reports: every document of a
// file that is something else may be wrong.
const maxReported = 100

const moreErrors = "more errors follow; correct these first"

// maxListDepth is how deep lists of lists may go; kubectl never writes more
// than one.
const maxListDepth = 4

// Decode reads a stream of YAML documents or JSON values and returns the
// objects it accepts, in order, and an error for everything it refuses. A
// document that is refused does not keep the others from being accepted;
// comments and empty documents are nothing. One document may have 1.5 MiB.
//
// Accepted are Pods, the kinds of kinds.go, and lists of them. Decode never panics
// and its time and memory are bounded by the size of data.
func Decode(data []byte, opts Options) ([]Object, []*Error) {
	d := &decoder{opts: opts}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	for c := range splitStream(unixLines(data)) {
		d.chunk(c)
	}
	return d.objects, d.errs
}

// unixLines makes a line feed of each carriage return that stands alone. In YAML
// it ends a line, and with it a comment; JSON has it between values only.
func unixLines(data []byte) []byte {
	owned := false
	for i, c := range data {
		if c != '\r' || i+1 < len(data) && data[i+1] == '\n' {
			continue
		}
		if !owned {
			data, owned = bytes.Clone(data), true
		}
		data[i] = '\n'
	}
	return data
}

type decoder struct {
	opts    Options
	objects []Object
	errs    []*Error
}

// refuse reports errors of one document, and no more than a reader can take in.
func (d *decoder) refuse(object string, errs ...*Error) {
	for i, e := range errs {
		e.Origin, e.Object = d.opts.Origin, object
		if i == maxErrors {
			e = &Error{Origin: e.Origin, Line: e.Line, Object: object, Unsupported: e.Unsupported, Msg: moreErrors}
		}
		switch {
		case len(d.errs) < maxReported:
			d.errs = append(d.errs, e)
		case len(d.errs) == maxReported:
			d.errs = append(d.errs, &Error{Origin: e.Origin, Line: e.Line, Msg: moreErrors})
		}
		if i == maxErrors {
			return
		}
	}
}

func (d *decoder) chunk(c chunk) {
	if e := unreadable(c); e != nil {
		d.refuse("", e)
		return
	}
	docs, errs := parseChunk(c)
	for _, n := range docs {
		d.document(n)
	}
	for _, e := range errs {
		d.refuse(e.object, &Error{Line: e.line, Field: e.field, Msg: e.msg})
	}
}

// unreadable refuses what is not text, and too much of it.
func unreadable(c chunk) *Error {
	if len(c.data) > maxDocument {
		return &Error{Line: c.line, Msg: fmt.Sprintf(
			"the document has %d bytes; the limit is %d (1.5 MiB): split it with \"---\" lines", len(c.data), maxDocument)}
	}
	lineAt := func(i int) int { return c.line + bytes.Count(c.data[:i], []byte{'\n'}) }
	if i := bytes.IndexByte(c.data, 0); i >= 0 {
		return &Error{Line: lineAt(i), Msg: "a NUL byte: this is not a text file"}
	}
	if !utf8.Valid(c.data) {
		i := 0
		for i < len(c.data) {
			r, size := utf8.DecodeRune(c.data[i:])
			if r == utf8.RuneError && size == 1 {
				break
			}
			i += size
		}
		return &Error{Line: lineAt(i), Msg: "not UTF-8 text; save the file as UTF-8"}
	}
	return nil
}

// parseChunk reads JSON where it looks like JSON. What does not parse as such
// may still be YAML in braces.
func parseChunk(c chunk) ([]*node, []*parseError) {
	if isBlank(c.data) {
		return nil, nil
	}
	text := bytes.TrimLeft(c.data, " \t\r\n")
	if len(text) == 0 || text[0] != '{' {
		// Nothing but tabs is not blank in YAML: the parser says so.
		return parseYAML(c)
	}
	docs, errs := parseJSON(c)
	if len(errs) == 0 {
		return docs, nil
	}
	inner := bytes.TrimLeft(text[1:], " \t\r\n")
	if len(inner) > 0 && inner[0] == '"' {
		return docs, errs
	}
	return parseYAML(c)
}

// oddBreaks end a line, and with it a comment, in YAML 1.1.
const oddBreaks = "\u0085\u2028\u2029"

// isBlank says that there is nothing but separators and comments: such a chunk
// is not worth a parser.
func isBlank(data []byte) bool {
	for l := range bytes.Lines(data) {
		if isSeparator(l) {
			l = l[len("---"):]
		}
		l = bytes.TrimLeft(l, " \r\n")
		if len(l) > 0 && (l[0] != '#' || bytes.ContainsAny(l, oddBreaks)) {
			return false
		}
	}
	return true
}

func (d *decoder) document(n *node) {
	switch n.kind {
	case kindNull:
	case kindMap:
		d.object(n, "", 0)
	default:
		d.refuse("", &Error{Line: n.line, Msg: fmt.Sprintf(
			"expected an object with apiVersion and kind, got %s", n.describe())})
	}
}

// object takes one object by its kind. inList is the kind that items of a
// typed list have without saying so.
func (d *decoder) object(n *node, inList string, depth int) {
	if n.kind != kindMap {
		d.refuse("", &Error{Line: n.line, Msg: fmt.Sprintf("expected an object with apiVersion and kind, got %s", n.describe())})
		return
	}
	if inList != "" && n.get("kind") == nil && n.get("apiVersion") == nil {
		text := func(s string) *node { return &node{kind: kindString, line: n.line, text: s, cost: len(s) + 2} }
		version := "v1"
		if i := strings.LastIndexByte(inList, '/'); i >= 0 {
			version, inList = inList[:i], inList[i+1:]
		}
		n = n.with("apiVersion", text(version)).with("kind", text(inList))
	}
	for _, name := range []string{"apiVersion", "kind"} {
		v := n.get(name)
		if v == nil || v.kind == kindString && v.text == "" {
			d.refuse("", &Error{Line: n.line, Field: name, Msg: "missing; a manifest says apiVersion: v1 and kind: Pod"})
			return
		}
		if v.kind != kindString {
			d.refuse("", &Error{Line: v.line, Field: name, Msg: fmt.Sprintf("expected a string, got %s", v.describe())})
			return
		}
	}
	kind, version := n.str("kind"), n.str("apiVersion")
	item, isList := strings.CutSuffix(kind, "List")
	_, known := findKind(version, item)
	isList = isList && d.opts.Only == "" && (known || version == "v1" && (item == "" || item == "Pod"))
	k, isKind := findKind(version, kind)
	switch {
	case d.opts.Only != "" && kind != d.opts.Only:
		d.unsupportedKind(n, version, kind)
	case version == "v1" && kind == "Pod":
		d.pod(n)
	case isKind:
		d.resource(n, k)
	case isList && item == "":
		d.list(n, "", depth)
	case isList:
		d.list(n, version+"/"+item, depth)
	default:
		d.unsupportedKind(n, version, kind)
	}
}

// unsupportedKind tells a kind that is not served from a word that was mistyped.
func (d *decoder) unsupportedKind(n *node, version, name string) {
	msg := fmt.Sprintf("%s (%s) is not supported by this version of nodeagent; it takes %s, and lists of them", shorten(name), shorten(version), takes())
	if d.opts.Only != "" {
		msg = fmt.Sprintf("%s (%s) is not taken here; it must be one %s", shorten(name), shorten(version), d.opts.Only)
	}
	for _, k := range append([]kind{{apiVersion: "v1", name: "Pod"}}, kinds()...) {
		switch {
		case k.name == name && k.apiVersion != version:
			msg = fmt.Sprintf("%s in apiVersion %s does not exist; write apiVersion: %s", name, shorten(version), k.apiVersion)
		case k.name != name && strings.EqualFold(k.name, name):
			msg = fmt.Sprintf("%s in apiVersion %s does not exist; did you mean %s in %s?", shorten(name), shorten(version), k.name, k.apiVersion)
		}
	}
	d.refuse(objectName(n), &Error{Line: n.lineOf("kind"), Field: "kind", Unsupported: true, Msg: msg})
}

// objectName is "Pod default/web" as far as the document says.
func objectName(n *node) string {
	meta := n.get("metadata")
	name := meta.str("name")
	if name == "" {
		if name = meta.str("generateName"); name == "" {
			return shorten(n.str("kind"))
		}
		name += "*"
	}
	ns := meta.str("namespace")
	k, known := findKind(n.str("apiVersion"), n.str("kind"))
	switch {
	case k.cluster:
		ns = ""
	case ns == "" && (known || n.str("kind") == "Pod"):
		ns = pod.DefaultNamespace
	}
	if ns != "" {
		name = ns + "/" + name
	}
	return shorten(n.str("kind")) + " " + shorten(name)
}

func (d *decoder) list(n *node, itemKind string, depth int) {
	if depth >= maxListDepth {
		d.refuse("", &Error{Line: n.line, Msg: fmt.Sprintf("lists are nested deeper than %d", maxListDepth)})
		return
	}
	items := n.get("items")
	for _, e := range n.entries {
		switch e.key {
		case "apiVersion", "kind", "metadata", "items":
		default:
			d.refuse(n.str("kind"), &Error{Line: e.line, Field: shorten(e.key), Msg: "unknown field"})
			return
		}
	}
	if items == nil {
		return
	}
	if items.kind != kindList {
		d.refuse(n.str("kind"), &Error{Line: items.line, Field: "items", Msg: fmt.Sprintf("expected a list, got %s", items.describe())})
		return
	}
	for _, item := range items.items {
		d.object(item, itemKind, depth+1)
	}
}

var podType = reflect.TypeFor[v1.Pod]()

// pod decodes, defaults and validates one Pod document.
func (d *decoder) pod(n *node) {
	n = d.complete(n, true)
	p := &v1.Pod{}
	o, ok := d.read(n, podType, p)
	if !ok {
		return
	}
	var spec []byte
	if s := n.get("spec"); s != nil {
		spec = canonicalForm{}.append(nil, s, reflect.TypeFor[v1.PodSpec]())
	}
	o.SpecHash = hashSpec(appendAppArmor(spec, p.Annotations))
	if errs := d.finish(p, &o, n); len(errs) > 0 {
		d.refuse(objectName(n), errs...)
		return
	}
	o.Pod = p
	d.objects = append(d.objects, o)
}

// resource decodes, defaults and validates one document of another kind.
func (d *decoder) resource(n *node, k kind) {
	n = d.complete(n, !k.cluster)
	r := k.make()
	o, ok := d.read(n, k.typ(), r)
	if !ok {
		return
	}
	switch {
	case k.cluster:
		// As the API server does; tools write one into everything.
		r.SetNamespace("")
	case r.GetNamespace() == "":
		r.SetNamespace(pod.DefaultNamespace)
	}
	if r.GetUID() == "" {
		r.SetUID(UID(d.opts.NodeName, r.GetNamespace(), r.GetName(), k.apiVersion+"/"+k.name))
	}
	DefaultResource(r)
	if errs := located(n, ValidateResource(r), ownRules(n, r)); len(errs) > 0 {
		d.refuse(objectName(n), errs...)
		return
	}
	o.Other = r
	d.objects = append(d.objects, o)
}

// read checks a document against a type and decodes it into the value of that
// type; what is wrong it refuses.
func (d *decoder) read(n *node, t reflect.Type, into any) (o Object, ok bool) {
	name := objectName(n)
	w := &walker{owned: t != podType}
	w.structure(n, t, nil)
	if g := n.get("metadata").entry("generateName"); g != nil && d.opts.GenerateName == nil && g.value.kind == kindString && g.value.text != "" &&
		n.get("metadata").str("name") == "" {
		w.add(g.line, (*path)(nil).field("metadata").field("generateName"), true,
			"a manifest must name its objects; use metadata.name")
	}
	if len(w.errs) > 0 {
		d.refuse(name, w.errs...)
		return o, false
	}
	o = Object{Origin: d.opts.Origin, Line: n.line, Canonical: canonicalForm{}.append(nil, n, t)}
	if len(o.Canonical) > maxDocument {
		// It could not be read back from the disk.
		d.refuse(name, &Error{Line: n.line, Msg: fmt.Sprintf(
			"the object has %d bytes once aliases and escapes are written out; the limit is %d (1.5 MiB)", len(o.Canonical), maxDocument)})
		return o, false
	}
	if err := json.Unmarshal(canonicalForm{withoutServerSide: true}.append(nil, n, t), into); err != nil {
		// The walk has checked every type; what is left is a rule of a type's own.
		d.refuse(name, &Error{Line: n.line, Msg: fmt.Sprintf("decode: %v", err)})
		return o, false
	}
	return o, true
}

// complete adds what the push source supplies to the document itself.
func (d *decoder) complete(n *node, namespaced bool) *node {
	meta := n.get("metadata")
	if meta != nil && meta.kind != kindMap {
		return n
	}
	set := func(key, value string) {
		if meta == nil {
			meta = &node{kind: kindMap, line: n.line}
		}
		meta = meta.with(key, &node{kind: kindString, line: meta.line, text: value, cost: len(value) + 2})
		n = n.with("metadata", meta)
	}
	if d.opts.Namespace != "" && namespaced && isUnset(meta, "namespace") {
		set("namespace", d.opts.Namespace)
	}
	if d.opts.UID != "" && isUnset(meta, "uid") {
		set("uid", string(d.opts.UID))
	}
	if prefix := meta.str("generateName"); prefix != "" && d.opts.GenerateName != nil && isUnset(meta, "name") {
		set("name", d.opts.GenerateName(prefix))
	}
	return n
}

func isUnset(meta *node, key string) bool {
	v := meta.get(key)
	return v == nil || v.kind == kindString && v.text == ""
}

// finish gives a decoded pod its identity and defaults and validates it.
func (d *decoder) finish(p *v1.Pod, o *Object, n *node) []*Error {
	p.APIVersion, p.Kind = "v1", "Pod"
	if p.Namespace == "" {
		p.Namespace = pod.DefaultNamespace
	}
	if p.Spec.NodeName == "" {
		p.Spec.NodeName = d.opts.NodeName
	}
	if p.UID == "" {
		p.UID = UID(d.opts.NodeName, p.Namespace, p.Name, o.SpecHash)
	}
	Default(p)
	own := ownRules(n, p)
	if node := d.opts.NodeName; node != "" && p.Spec.NodeName != node {
		own = append(own, ownRule(n, "spec.nodeName", "the pod is for node %q, this node is %q; remove the field or move the manifest", shorten(p.Spec.NodeName), node))
	}
	return located(n, Validate(p), own)
}

func ownRule(n *node, at, format string, args ...any) *Error {
	return &Error{Line: n.lineOf(at), Field: at, Type: field.ErrorTypeInvalid, Msg: fmt.Sprintf(format, args...)}
}

// ownRules are those that Kubernetes does not have, for all kinds.
func ownRules(n *node, meta metav1.Object) []*Error {
	if uid := meta.GetUID(); !safeUID(uid) {
		return []*Error{ownRule(n, "metadata.uid", "%q: at most 63 letters, digits and '-', a letter or digit first and last; remove it to have one made", shorten(string(uid)))}
	}
	return nil
}

// located finds the lines of what validation said and adds our own errors.
func located(n *node, found field.ErrorList, errs []*Error) []*Error {
	for _, e := range found {
		errs = append(errs, &Error{Line: n.lineOf(e.Field), Field: e.Field, Type: e.Type, Msg: shortenMiddle(e.ErrorBody())})
	}
	// From top to bottom, and the same every time: some checks range over maps.
	slices.SortStableFunc(errs, func(a, b *Error) int {
		return cmp.Or(a.Line-b.Line, strings.Compare(a.Field, b.Field), strings.Compare(a.Msg, b.Msg))
	})
	return errs
}

// safeUID keeps a UID that a user chose from being anything but a name: it
// becomes a folder and a label.
func safeUID(uid types.UID) bool {
	return len(validation.IsDNS1123Label(strings.ToLower(string(uid)))) == 0
}
