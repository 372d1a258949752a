package config

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// Error is one thing wrong with a configuration.
type Error struct {
	File  string // empty when the value did not come from a file
	Line  int    // 1-based; 0 when unknown
	Field string // "network.podCIDRs[0]"; empty when the file does not parse
	Msg   string // what is wrong and what to do
}

// Error is "FILE:LINE: FIELD: MESSAGE", with unknown parts left out.
func (e *Error) Error() string {
	var parts []string
	switch {
	case e.File != "" && e.Line > 0:
		parts = append(parts, fmt.Sprintf("%s:%d", e.File, e.Line))
	case e.File != "":
		parts = append(parts, e.File)
	}
	for _, p := range []string{e.Field, e.Msg} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, ": ")
}

// Unwrap makes every configuration error an errdefs.ErrInvalid.
func (e *Error) Unwrap() error { return errdefs.ErrInvalid }

// decoder fills a struct from YAML nodes. It goes over nodes itself, where the
// yaml package would decode into the struct, because an error has to name the
// line and the path of the field, and because a key that is written twice or
// not known must not pass.
type decoder struct {
	file  string
	lines map[string]int // field path → line, of everything that was set
	errs  []error
}

func (d *decoder) fail(n *yaml.Node, path, format string, args ...any) {
	d.errs = append(d.errs, &Error{File: d.file, Line: n.Line, Field: path, Msg: fmt.Sprintf(format, args...)})
}

// value decodes n into v, which must be settable.
func (d *decoder) value(n *yaml.Node, v reflect.Value, path string) {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	d.lines[path] = n.Line
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // "field:" with nothing behind it is the field left out
	}
	if v.Type() == reflect.TypeFor[metav1.Duration]() {
		d.duration(n, v, path)
		return
	}
	switch v.Kind() {
	case reflect.Pointer: // a field whose zero value is not its default
		p := reflect.New(v.Type().Elem())
		d.value(n, p.Elem(), path)
		v.Set(p)
	case reflect.Struct:
		d.structure(n, v, path)
	case reflect.Map:
		d.mapping(n, v, path)
	case reflect.Slice:
		d.sequence(n, v, path)
	default:
		d.scalar(n, v, path)
	}
}

func (d *decoder) structure(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		d.fail(n, path, "must be a mapping of fields, is %s", kindOf(n))
		return
	}
	fields := fieldsOf(v.Type())
	d.pairs(n, path, func(key, val *yaml.Node) {
		i, ok := fields[key.Value]
		if !ok {
			d.fail(key, join(path, key.Value), "unknown field%s", suggestion(key.Value, fields))
			return
		}
		d.value(val, v.Field(i), join(path, key.Value))
	})
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		d.fail(n, path, "must be a mapping, is %s", kindOf(n))
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	d.pairs(n, path, func(key, val *yaml.Node) {
		e := reflect.New(v.Type().Elem()).Elem()
		d.value(val, e, join(path, key.Value))
		v.SetMapIndex(reflect.ValueOf(key.Value), e)
	})
}

// pairs visits each key once; a key written twice is an error, since which of
// the two counts would depend on the parser.
func (d *decoder) pairs(n *yaml.Node, path string, visit func(key, val *yaml.Node)) {
	seen := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, val := n.Content[i], n.Content[i+1]
		switch first, dup := seen[key.Value]; {
		case key.Kind != yaml.ScalarNode || key.Tag == "!!merge":
			d.fail(key, path, "keys must be plain names; merge keys are not supported")
		case dup:
			d.fail(key, join(path, key.Value), "duplicate field, first set in line %d", first)
		default:
			seen[key.Value] = key.Line
			visit(key, val)
			d.lines[join(path, key.Value)] = key.Line
		}
	}
}

func (d *decoder) sequence(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.SequenceNode {
		d.fail(n, path, "must be a list, is %s", kindOf(n))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, c := range n.Content {
		d.value(c, out.Index(i), fmt.Sprintf("%s[%d]", path, i))
	}
	v.Set(out)
}

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, path string) {
	want := map[reflect.Kind]string{reflect.String: "!!str", reflect.Bool: "!!bool", reflect.Int: "!!int", reflect.Int32: "!!int", reflect.Int64: "!!int", reflect.Float64: "!!float"}[v.Kind()]
	name := map[string]string{"!!str": "a string", "!!bool": "true or false", "!!int": "a whole number", "!!float": "a number"}[want]
	if want == "!!float" && n.Tag == "!!int" {
		want = n.Tag
	}
	if n.Kind != yaml.ScalarNode || n.Tag != want {
		hint := ""
		if n.Kind == yaml.ScalarNode && want == "!!str" {
			hint = fmt.Sprintf("; write %q in quotes", n.Value)
		}
		d.fail(n, path, "must be %s, is %s%s", name, kindOf(n), hint)
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(n.Value)
	case reflect.Bool:
		b, err := strconv.ParseBool(strings.ToLower(n.Value))
		if err != nil {
			d.fail(n, path, "must be true or false, is %q", n.Value)
			return
		}
		v.SetBool(b)
	case reflect.Float64:
		f, err := strconv.ParseFloat(n.Value, 64)
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			d.fail(n, path, "must be a number, is %q", n.Value)
			return
		}
		v.SetFloat(f)
	default:
		i, err := strconv.ParseInt(n.Value, 0, v.Type().Bits())
		if err != nil {
			d.fail(n, path, "must be a whole number, is %q", n.Value)
			return
		}
		v.SetInt(i)
	}
}

func (d *decoder) duration(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
		d.fail(n, path, "must be a duration such as 20s or 5m, is %s", kindOf(n))
		return
	}
	t, err := time.ParseDuration(n.Value)
	if err != nil {
		d.fail(n, path, "must be a duration such as 20s or 5m, is %q", n.Value)
		return
	}
	v.Set(reflect.ValueOf(metav1.Duration{Duration: t}))
}

func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		switch n.Tag {
		case "!!int", "!!float":
			return "the number " + n.Value
		case "!!bool":
			return "the boolean " + n.Value
		case "!!str":
			return fmt.Sprintf("the string %q", n.Value)
		}
		return fmt.Sprintf("%q", n.Value)
	}
	return "something else"
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// fieldsOf maps the JSON names of t to field indices.
func fieldsOf(t reflect.Type) map[string]int {
	out := make(map[string]int, t.NumField())
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name != "" && name != "-" {
			out[name] = i
		}
	}
	return out
}

// suggestion names the field that differs from got in case only, or else all
// fields that there are.
func suggestion(got string, fields map[string]int) string {
	names := make([]string, 0, len(fields))
	for f := range fields {
		if strings.EqualFold(f, got) {
			return fmt.Sprintf("; did you mean %q?", f)
		}
		names = append(names, f)
	}
	slices.Sort(names)
	return "; known fields: " + strings.Join(names, ", ")
}

// errs joins what was found in the order of the file.
func (d *decoder) err() error {
	slices.SortStableFunc(d.errs, func(a, b error) int {
		var x, y *Error
		errors.As(a, &x)
		errors.As(b, &y)
		return x.Line - y.Line
	})
	return errors.Join(d.errs...)
}
