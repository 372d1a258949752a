package manifest

import (
	"strconv"
	"strings"
)

// nodeKind is the JSON type of a value.
type nodeKind uint8

const (
	kindNull nodeKind = iota
	kindBool
	kindNumber
	kindString
	kindList
	kindMap
)

// String is how messages name a kind.
func (k nodeKind) String() string {
	return [...]string{"null", "a boolean", "a number", "a string", "a list", "an object"}[k]
}

// node is one value of a document with the place it came from. Nodes are
// shared where YAML aliases share them and are never changed once parsed.
type node struct {
	kind nodeKind
	line int
	// text is the string, the number in its canonical form, or "true"/"false".
	text string
	// raw is a number or boolean as it was written, for messages.
	raw     string
	items   []*node
	entries []entry
	// cost is the number of bytes the value has when aliases are written out.
	cost int
}

// entry is one key of an object.
type entry struct {
	key   string
	line  int
	value *node
}

// get returns the value of a key of an object, or nil. A null counts as
// absent.
func (n *node) get(key string) *node {
	if e := n.entry(key); e != nil && e.value.kind != kindNull {
		return e.value
	}
	return nil
}

func (n *node) entry(key string) *entry {
	if n == nil {
		return nil
	}
	for i := range n.entries {
		if n.entries[i].key == key {
			return &n.entries[i]
		}
	}
	return nil
}

// str returns the string at a key, or "".
func (n *node) str(key string) string {
	if v := n.get(key); v != nil && v.kind == kindString {
		return v.text
	}
	return ""
}

// with returns a copy of an object in which key has a string value.
func (n *node) with(key string, value *node) *node {
	c := &node{kind: kindMap, cost: 2}
	if n != nil {
		c.line, c.cost = n.line, n.cost
		for _, e := range n.entries {
			if e.key != key {
				c.entries = append(c.entries, e)
			}
		}
	}
	c.entries = append(c.entries, entry{key: key, line: c.line, value: value})
	c.cost += len(key) + value.cost
	return c
}

// describe is how messages show a value: "the number 80", `the string "x"`.
func (n *node) describe() string {
	switch n.kind {
	case kindBool:
		if n.raw != n.text {
			return "the boolean " + shorten(n.raw) + " (YAML reads it as " + n.text + ")"
		}
		return "the boolean " + n.text
	case kindNumber:
		return "the number " + shorten(n.raw)
	case kindString:
		return "the string " + strconv.Quote(shorten(n.text))
	default:
		return n.kind.String()
	}
}

// shorten keeps messages readable whatever the document holds.
func shorten(s string) string { return cut(s, 80) }

// shortenMiddle does so for messages that quote a value and say what is wrong
// with it behind that.
func shortenMiddle(s string) string {
	if len(s) <= 800 {
		return s
	}
	return cut(s, 200) + strings.ToValidUTF8(s[len(s)-500:], "")
}

func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}

// maxKey is longer than any key that is valid: paths are cut only where they
// make no sense.
const maxKey = 400

// path is where a value stands in its document. It is a chain that is put into
// words only when there is an error to report: paths are as many as values.
type path struct {
	parent *path
	key    string
	index  int
	kind   pathKind
}

type pathKind uint8

const (
	pathField pathKind = iota
	pathIndex
	pathMapKey
)

func (p *path) field(name string) *path { return &path{parent: p, key: name} }
func (p *path) item(i int) *path        { return &path{parent: p, index: i, kind: pathIndex} }
func (p *path) mapKey(k string) *path   { return &path{parent: p, key: k, kind: pathMapKey} }

// String is the API server's notation: spec.containers[0].resources.limits[cpu].
func (p *path) String() string {
	var chain []*path
	for ; p != nil; p = p.parent {
		chain = append(chain, p)
	}
	var b strings.Builder
	for i := len(chain) - 1; i >= 0; i-- {
		switch c := chain[i]; c.kind {
		case pathIndex:
			b.WriteString("[" + strconv.Itoa(c.index) + "]")
		case pathMapKey:
			b.WriteString("[" + cut(c.key, maxKey) + "]")
		default:
			if b.Len() > 0 {
				b.WriteByte('.')
			}
			b.WriteString(cut(c.key, maxKey))
		}
	}
	return b.String()
}

// lineOf finds the line of a field that validation named, or of the nearest
// enclosing value when the field itself is missing.
func (n *node) lineOf(field string) int {
	line := n.line
	for field != "" && n != nil {
		var name string
		switch field[0] {
		case '.':
			field = field[1:]
			continue
		case '[':
			end := strings.IndexByte(field, ']')
			if end < 0 {
				return line
			}
			name, field = field[1:end], field[end+1:]
		default:
			end := strings.IndexAny(field, ".[")
			if end < 0 {
				end = len(field)
			}
			name, field = field[:end], field[end:]
		}
		if n.kind == kindList {
			i, err := strconv.Atoi(name)
			if err != nil || i < 0 || i >= len(n.items) {
				return line
			}
			n = n.items[i]
			line = n.line
			continue
		}
		e := n.entry(name)
		if e == nil {
			return line
		}
		n, line = e.value, e.line
	}
	return line
}
