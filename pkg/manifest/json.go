package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// jsonParser reads JSON documents one after another and keeps the line of
// every value, which encoding/json alone does not.
type jsonParser struct {
	dec  *json.Decoder
	data []byte
	at   int // lines are counted up to here
	line int
	errs []*parseError
}

// parseJSON reads every document of a chunk. Documents before a syntax error
// are returned along with it.
func parseJSON(c chunk) ([]*node, []*parseError) {
	p := &jsonParser{dec: json.NewDecoder(bytes.NewReader(c.data)), data: c.data, line: c.line}
	p.dec.UseNumber()
	var docs []*node
	var errs []*parseError
	for {
		tok, err := p.token()
		if errors.Is(err, io.EOF) {
			return docs, errs
		}
		p.errs = nil
		var n *node
		if err == nil {
			n, err = p.value(tok, nil, 0)
		}
		if err != nil {
			return docs, append(errs, &parseError{line: p.line, msg: jsonMessage(err)})
		}
		if len(p.errs) > 0 {
			errs = append(errs, nameErrors(p.errs, n)...)
			continue
		}
		docs = append(docs, n)
	}
}

var errJSONDepth = fmt.Errorf("nested deeper than %d levels", maxDepth)

func jsonMessage(err error) string {
	var syntax *json.SyntaxError
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "not valid JSON: it ends before its last closing bracket"
	case errors.As(err, &syntax):
		return "not valid JSON: " + syntax.Error()
	default:
		return err.Error()
	}
}

// token returns the next token and moves line to where it stands.
func (p *jsonParser) token() (json.Token, error) {
	tok, err := p.dec.Token()
	end := int(p.dec.InputOffset())
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		end = max(end, min(int(syntax.Offset), len(p.data)))
	} else if err != nil {
		end = len(p.data)
	}
	if end > p.at {
		p.line += bytes.Count(p.data[p.at:end], []byte{'\n'})
		p.at = end
	}
	return tok, err
}

func (p *jsonParser) value(tok json.Token, at *path, depth int) (*node, error) {
	if depth > maxDepth {
		return nil, errJSONDepth
	}
	n := &node{line: p.line, cost: 4}
	switch t := tok.(type) {
	case nil:
	case bool:
		n.kind, n.text = kindBool, fmt.Sprint(t)
		n.raw = n.text
	case string:
		n.kind, n.text = kindString, t
		n.cost = len(t) + 2
	case json.Number:
		text, ok := jsonNumber(t.String())
		if !ok {
			p.fail(at, "the number %s is too large", shorten(t.String()))
		}
		n.kind, n.text, n.raw = kindNumber, text, t.String()
	case json.Delim:
		if t == '[' {
			return n, p.list(n, at, depth)
		}
		return n, p.object(n, at, depth)
	}
	return n, nil
}

func (p *jsonParser) list(n *node, at *path, depth int) error {
	n.kind = kindList
	for {
		tok, err := p.token()
		if err != nil {
			return unexpectedEOF(err)
		}
		if tok == json.Delim(']') {
			return nil
		}
		v, err := p.value(tok, at.item(len(n.items)), depth+1)
		if err != nil {
			return err
		}
		n.items = append(n.items, v)
		n.cost += v.cost + 1
	}
}

func (p *jsonParser) object(n *node, at *path, depth int) error {
	n.kind = kindMap
	seen := map[string]int{}
	for {
		tok, err := p.token()
		if err != nil {
			return unexpectedEOF(err)
		}
		if tok == json.Delim('}') {
			return nil
		}
		key, ok := tok.(string)
		if !ok {
			return fmt.Errorf("not valid JSON: expected a key, got %v", tok)
		}
		kp, line := at.field(key), p.line
		first, dup := seen[key]
		if dup {
			p.fail(kp, "the key is there twice, first on line %d", first)
		}
		seen[key] = line
		if tok, err = p.token(); err != nil {
			return unexpectedEOF(err)
		}
		v, err := p.value(tok, kp, depth+1)
		if err != nil {
			return err
		}
		if !dup {
			n.entries = append(n.entries, entry{key, line, v})
			n.cost += len(key) + 4 + v.cost
		}
	}
}

func (p *jsonParser) fail(at *path, format string, args ...any) {
	if len(p.errs) < maxErrors {
		p.errs = append(p.errs, &parseError{line: p.line, field: at.String(), msg: fmt.Sprintf(format, args...)})
	}
}

// unexpectedEOF tells the end of a document from the end of the input.
func unexpectedEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
