package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	// maxDocument is what one document may have, in bytes; etcd, and so every
	// Kubernetes object, ends there as well.
	maxDocument = 3 << 19
	// maxExpanded is what a document may have once aliases are written out.
	maxExpanded = 2 * maxDocument
	// maxDepth is far more than any Kubernetes object nests.
	maxDepth = 100
)

// chunk is the part of a stream between two "---" lines.
type chunk struct {
	data []byte
	line int // of its first byte, 1-based
}

// splitStream cuts a stream where YAML would, so that a document which does not
// parse leaves the others alone. "---" at the start of a line cannot be
// anything but a separator, not even inside quotes.
func splitStream(data []byte) iter.Seq[chunk] {
	return func(yield func(chunk) bool) {
		start, startLine, line := 0, 1, 1
		for at := 0; at < len(data); line++ {
			end := bytes.IndexByte(data[at:], '\n')
			if end < 0 {
				end = len(data)
			} else {
				end += at + 1
			}
			if at > start && isSeparator(data[at:end]) && !onlyDirectives(data[start:at]) {
				if !yield(chunk{data[start:at], startLine}) {
					return
				}
				start, startLine = at, line
			}
			at = end
		}
		if start < len(data) {
			yield(chunk{data[start:], startLine})
		}
	}
}

func isSeparator(line []byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte("---"))
	return ok && (len(rest) == 0 || strings.IndexByte(" \t\r\n", rest[0]) >= 0)
}

// onlyDirectives says that the text before a separator is the "%YAML 1.1" that
// belongs to the document behind it.
func onlyDirectives(b []byte) bool {
	found := false
	for l := range bytes.Lines(b) {
		switch l = bytes.TrimSpace(l); {
		case len(l) == 0 || l[0] == '#':
		case l[0] == '%':
			found = true
		default:
			return false
		}
	}
	return found
}

// parseError is why a document is no document.
type parseError struct {
	line   int
	object string
	field  string
	msg    string
}

func (e *parseError) Error() string { return fmt.Sprintf("line %d: %s", e.line, e.msg) }

// yamlConverter turns the YAML library's nodes into ours.
type yamlConverter struct {
	offset int // added to the library's line numbers
	done   map[*yaml.Node]*node
	active map[*yaml.Node]bool
	merged int
	errs   []*parseError
}

// parseYAML reads every document of a chunk. Documents before a syntax error
// are returned along with it.
func parseYAML(c chunk) (docs []*node, errs []*parseError) {
	defer func() {
		// The library reports its own errors by panicking inside; one that
		// escapes must not take the agent down with it.
		if r := recover(); r != nil {
			errs = append(errs, &parseError{line: c.line, msg: fmt.Sprintf("the YAML parser failed: %v", r)})
		}
	}()
	dec := yaml.NewDecoder(bytes.NewReader(c.data))
	for {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return docs, errs
		}
		if err != nil {
			return docs, append(errs, yamlSyntaxError(err, c))
		}
		if len(doc.Content) == 0 {
			continue
		}
		conv := yamlConverter{offset: c.line - 1, done: map[*yaml.Node]*node{}, active: map[*yaml.Node]bool{}}
		n := conv.convert(doc.Content[0], nil, 0)
		if len(conv.errs) > 0 {
			errs = append(errs, nameErrors(conv.errs, n)...)
			continue
		}
		docs = append(docs, n)
	}
}

// nameErrors says which object the errors of a document are about.
func nameErrors(errs []*parseError, n *node) []*parseError {
	name := ""
	if n.kind == kindMap && n.str("kind") != "" {
		name = objectName(n)
	}
	for _, e := range errs {
		e.object = name
	}
	return errs
}

var (
	yamlErrorLine = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+): )?(.*)$`)
	// yamlOffByOne are the library's grammar errors, whose lines it counts from
	// zero; those of its scanner it counts from one.
	yamlOffByOne = regexp.MustCompile(`^did not find expected (<|node content|'-' indicator|key|',' or)|^found (undefined tag|duplicate %|incompatible)`)
	yamlAnchor   = regexp.MustCompile(`^unknown anchor '(.*)' referenced$`)
)

// yamlSyntaxError finds the line that the library means and puts the most
// common mistake into plain words.
func yamlSyntaxError(err error, c chunk) *parseError {
	first, _, _ := strings.Cut(err.Error(), "\n")
	m := yamlErrorLine.FindStringSubmatch(first)
	e := &parseError{line: c.line, msg: "not valid YAML: " + shorten(m[2])}
	last := c.line + bytes.Count(bytes.TrimRight(c.data, " \t\r\n"), []byte{'\n'})
	if l, err := strconv.Atoi(m[1]); err == nil {
		if yamlOffByOne.MatchString(m[2]) {
			l++
		}
		e.line = min(c.line+l-1, last)
	} else if a := yamlAnchor.FindStringSubmatch(m[2]); a != nil {
		if i := bytes.Index(c.data, []byte("*"+a[1])); i >= 0 {
			e.line += bytes.Count(c.data[:i], []byte{'\n'})
		}
	}
	number := c.line
	for l := range bytes.Lines(c.data) {
		indent := l[:len(l)-len(bytes.TrimLeft(l, " \t"))]
		if number >= e.line-1 && number <= e.line+1 && bytes.IndexByte(indent, '\t') >= 0 {
			return &parseError{line: number, msg: "a tab indents this line; YAML allows only spaces there"}
		}
		number++
	}
	return e
}

func (c *yamlConverter) fail(line int, p *path, format string, args ...any) *node {
	if len(c.errs) < maxErrors {
		e := &parseError{line: line, msg: fmt.Sprintf(format, args...)}
		if p != nil {
			e.field = p.String()
		}
		c.errs = append(c.errs, e)
	}
	return &node{kind: kindNull, line: line}
}

func (c *yamlConverter) convert(y *yaml.Node, p *path, depth int) *node {
	line := y.Line + c.offset
	if depth > maxDepth {
		return c.fail(line, nil, "nested deeper than %d levels", maxDepth)
	}
	if y.Kind == yaml.AliasNode {
		if y.Alias == nil || c.active[y.Alias] {
			return c.fail(line, p, "the alias *%s contains itself", shorten(y.Value))
		}
		y = y.Alias
	}
	if n := c.done[y]; n != nil {
		return n
	}
	var n *node
	if y.Anchor != "" {
		c.active[y] = true
	}
	switch y.Kind {
	case yaml.ScalarNode:
		n = c.scalar(y, p)
	case yaml.SequenceNode:
		n = &node{kind: kindList, line: line, cost: 2}
		for i, item := range y.Content {
			v := c.convert(item, p.item(i), depth+1)
			n.items = append(n.items, v)
			n.cost += v.cost + 1
		}
	case yaml.MappingNode:
		n = c.mapping(y, p, depth)
	default:
		return c.fail(line, p, "not a value")
	}
	if y.Anchor != "" {
		delete(c.active, y)
		c.done[y] = n
	}
	if n.cost > maxExpanded {
		// Costs are capped as they grow: aliases of aliases cannot overflow.
		n.cost = 0
		return c.fail(line, nil, "aliases make this document larger than %d bytes; write it out or split it", maxExpanded)
	}
	return n
}

func (c *yamlConverter) scalar(y *yaml.Node, p *path) *node {
	line := y.Line + c.offset
	str := &node{kind: kindString, line: line, text: y.Value, cost: len(y.Value) + 2}
	plain := y.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) == 0
	tagged := y.Style&yaml.TaggedStyle != 0
	if tagged && y.Tag == "!!str" || !tagged && !plain {
		return str
	}
	n, msg := plainScalar(y.Value, line)
	if msg != "" {
		return c.fail(line, p, "%s", msg)
	}
	if !tagged {
		return n
	}
	want := map[string]nodeKind{"!!bool": kindBool, "!!int": kindNumber, "!!float": kindNumber, "!!null": kindNull}
	if k, ok := want[y.Tag]; !ok || k != n.kind {
		return c.fail(line, p, "the tag %s is not accepted here; remove it", shorten(y.Tag))
	}
	return n
}

func (c *yamlConverter) mapping(y *yaml.Node, p *path, depth int) *node {
	n := &node{kind: kindMap, line: y.Line + c.offset, cost: 2}
	seen := make(map[string]int, len(y.Content)/2)
	var merges []*yaml.Node
	for i := 0; i+1 < len(y.Content); i += 2 {
		k, v := y.Content[i], y.Content[i+1]
		line := k.Line + c.offset
		if k.Kind == yaml.ScalarNode && k.Style == 0 && k.Value == "<<" {
			merges = append(merges, v)
			continue
		}
		key, msg := c.key(k)
		if msg != "" {
			c.fail(line, p, "%s", msg)
			continue
		}
		kp := p.field(key)
		if first, dup := seen[key]; dup {
			c.fail(line, kp, "the key is there twice, first on line %d", first)
			continue
		}
		seen[key] = line
		value := c.convert(v, kp, depth+1)
		n.entries = append(n.entries, entry{key, line, value})
		n.cost += len(key) + 4 + value.cost
	}
	for _, m := range merges {
		c.merge(n, m, p, seen, depth)
	}
	return n
}

// key returns an object's key. A key that YAML reads as a boolean, a null or a
// number in disguise is refused: JSON would carry another text than was
// written.
func (c *yamlConverter) key(k *yaml.Node) (string, string) {
	if k.Kind == yaml.AliasNode && k.Alias != nil {
		k = k.Alias
	}
	if k.Kind != yaml.ScalarNode {
		return "", "expected a word as a key, got " + map[yaml.Kind]string{
			yaml.MappingNode: "an object", yaml.SequenceNode: "a list"}[k.Kind]
	}
	n := c.scalar(k, nil)
	if n.kind == kindString || n.kind == kindNumber && n.text == k.Value {
		return k.Value, ""
	}
	return "", fmt.Sprintf("the key %q is %s in YAML; put it in quotes", shorten(k.Value), n.kind)
}

// merge applies YAML's "<<": keys of the merged objects that the object itself
// lacks; the first object of a list wins.
func (c *yamlConverter) merge(into *node, y *yaml.Node, p *path, seen map[string]int, depth int) {
	v := c.convert(y, p.field("<<"), depth+1)
	sources := []*node{v}
	if v.kind == kindList {
		sources = v.items
	}
	for _, s := range sources {
		if s.kind != kindMap {
			c.fail(y.Line+c.offset, p, "<< merges objects, and this is %s", s.kind)
			return
		}
		if c.merged += len(s.entries); c.merged > maxExpanded/16 {
			c.fail(y.Line+c.offset, p, "<< merges too many keys in this document")
			return
		}
		for _, e := range s.entries {
			if _, ok := seen[e.key]; ok {
				continue
			}
			seen[e.key] = e.line
			into.entries = append(into.entries, e)
			into.cost += len(e.key) + 4 + e.value.cost
		}
	}
}
