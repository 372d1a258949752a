package manifest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
)

const specPage = "../../docs/pod-spec.md"

// TestPodSpecification: docs/pod-spec.md has every field below a Pod's spec and
// status, the tests that it names exist, and what it says of each field of the
// spec is so.
func TestPodSpecification(t *testing.T) {
	rows := specRows(t)
	var b strings.Builder
	last := ""
	for _, r := range rows {
		if r.at != last {
			fmt.Fprintf(&b, "\n## `%s`\n\n| field | | |\n| --- | --- | --- |\n", r.at)
			last = r.at
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", r.field, r.group, r.because)
	}
	replaceTable(t, specPage, b.String()+"\n")
	if len(rows) < 300 {
		t.Errorf("only %d fields", len(rows))
	}
	named := regexp.MustCompile("`((?:pkg|test)/[a-z0-9/]+) (Test[A-Za-z0-9]+)`")
	for _, r := range rows {
		found := named.FindAllStringSubmatch(r.because, -1)
		if r.group == groupSupported && len(found) == 0 {
			t.Errorf("%s.%s: no test is named", r.at, r.field)
		}
		for _, m := range found {
			if !testExists(t, m[1], m[2]) {
				t.Errorf("%s.%s: there is no %s in %s", r.at, r.field, m[2], m[1])
			}
		}
		if strings.HasPrefix(r.at, "spec") && r.decoded {
			r.holds(t)
		}
	}
}

const (
	groupSupported = "supported"
	groupRefused   = "refused"
	groupElsewhere = "not a node's business"
)

// specRow is one line of the page.
type specRow struct {
	at, field, group, because string
	typ                       reflect.Type
	decoded                   bool
}

// specRows are all fields, by the types of k8s.io/api: those of the spec are in
// the support table, what a status holds is told here.
func specRows(t *testing.T) (rows []specRow) {
	t.Helper()
	proofs := newNotes(t, shownBy)
	where := paths(reflect.TypeFor[v1.Pod]())
	table := supportTable()
	types := slices.SortedFunc(maps.Keys(schema()), func(a, b reflect.Type) int { return strings.Compare(where[a.Name()], where[b.Name()]) })
	for _, typ := range types {
		at := where[typ.Name()]
		if !strings.HasPrefix(at, "spec") || inlined(table, typ) {
			continue
		}
		fields := schema()[typ]
		for _, name := range slices.Sorted(maps.Keys(fields)) {
			r := specRow{at: at, field: name, typ: fields[name].typ, decoded: true}
			note := proofs.of(typ.Name(), name)
			switch {
			case fields[name].support == refused:
				r.group, r.because = groupRefused, cmp.Or(whyRefused[typ.Name()+"."+name], notSupported)
			case strings.HasPrefix(note, "- "):
				r.group, r.because = groupElsewhere, note[2:]
			default:
				r.group, r.because = groupSupported, note
			}
			rows = append(rows, r)
		}
	}
	rows = append(rows, otherRows(t, proofs, reflect.TypeFor[v1.EphemeralContainer](), "spec.ephemeralContainers[] (over /ephemeralcontainers)", map[reflect.Type]bool{})...)
	rows = append(rows, otherRows(t, proofs, reflect.TypeFor[v1.PodStatus](), "status", map[reflect.Type]bool{})...)
	proofs.unused(t)
	return rows
}

// otherRows walks the types that no manifest is decoded into.
func otherRows(t *testing.T, proofs *notes, typ reflect.Type, at string, seen map[reflect.Type]bool) (rows []specRow) {
	t.Helper()
	if seen[typ] {
		return nil
	}
	seen[typ] = true
	var below []specRow
	for _, f := range allFields(typ) {
		note := proofs.of(typ.Name(), f.name)
		r := specRow{at: at, field: f.name, typ: f.typ, group: groupSupported, because: note}
		if why, no := strings.CutPrefix(note, "- "); no {
			r.group, r.because = groupElsewhere, why
			rows = append(rows, r)
			continue
		}
		if why, no := strings.CutPrefix(note, "! "); no {
			r.group, r.because = groupRefused, why
			rows = append(rows, r)
			continue
		}
		rows = append(rows, r)
		s := structOf(f.typ)
		if _, decoded := schema()[s]; s != nil && !decoded && s.PkgPath() == typ.PkgPath() {
			name := f.name
			if f.typ.Kind() == reflect.Slice {
				name += "[]"
			}
			below = append(below, otherRows(t, proofs, s, at+"."+name, seen)...)
		}
	}
	return append(rows, below...)
}

// allFields are those of a type and of what it inlines.
func allFields(typ reflect.Type) (out []ownField) {
	for f := range typ.Fields() {
		switch name, inline := jsonName(f); {
		case inline:
			out = append(out, allFields(f.Type)...)
		case name != "":
			out = append(out, ownField{name, f.Type})
		}
	}
	slices.SortFunc(out, func(a, b ownField) int { return strings.Compare(a.name, b.name) })
	return out
}

// holds asks the decoder whether a row is true.
func (r *specRow) holds(t *testing.T) {
	t.Helper()
	path := strings.ReplaceAll(r.at, "[]", "[0]") + "." + r.field
	doc, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "p"}, "spec": wrap(strings.Split(r.at, ".")[1:], r.field, sample(r.typ))})
	if err != nil {
		t.Fatal(err)
	}
	_, errs := Decode(doc, Options{})
	said := slices.ContainsFunc(errs, func(e *Error) bool { return e.Field == path && (e.Unsupported || e.Type == UnknownField) })
	if said != (r.group == groupRefused) && valueChecks[typeAt(r)] == nil {
		t.Errorf("%s is %s, and the decoder says %v of\n%s", path, r.group, errs, doc)
	}
}

// typeAt is a row's key among the checks of values.
func typeAt(r *specRow) string {
	for typ, at := range paths(reflect.TypeFor[v1.Pod]()) {
		if key := typ + "." + r.field; at == r.at && valueChecks[key] != nil {
			return key
		}
	}
	return ""
}

// wrap puts a field at the end of a path.
func wrap(path []string, field string, value any) any {
	if len(path) == 0 {
		return map[string]any{field: value}
	}
	name, list := strings.CutSuffix(path[0], "[]")
	inner := wrap(path[1:], field, value)
	if list {
		inner = []any{inner}
	}
	return map[string]any{name: inner}
}

// sample is a value of a type that asks for something.
func sample(t reflect.Type) any {
	switch {
	case t.Kind() == reflect.Pointer:
		return sample(t.Elem())
	case t == quantityType, t.Kind() == reflect.String, t == intOrStringType:
		return "1"
	case t.Kind() == reflect.Bool:
		return true
	case t.Kind() == reflect.Slice:
		return []any{sample(t.Elem())}
	case t.Kind() == reflect.Map:
		return map[string]any{"a": sample(t.Elem())}
	case t.Kind() == reflect.Struct:
		return map[string]any{}
	}
	return 1
}

// notes say something of fields: "TYPE" is followed by lines "field field: note";
// the field * is all others.
type notes struct {
	by   map[string]map[string]string
	used map[string]bool
}

func newNotes(t *testing.T, text string) *notes {
	t.Helper()
	n := &notes{by: map[string]map[string]string{}, used: map[string]bool{}}
	typ := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		names, note, ok := strings.Cut(line, ": ")
		switch {
		case line == "":
		case !ok:
			typ = line
			n.by[typ] = map[string]string{}
		default:
			for _, name := range strings.Fields(names) {
				if n.by[typ][name] != "" {
					t.Errorf("%s.%s is told of twice", typ, name)
				}
				n.by[typ][name] = note
			}
		}
	}
	return n
}

func (n *notes) of(typ, field string) string {
	key := field
	if n.by[typ][field] == "" {
		key = "*"
	}
	n.used[typ+"."+key] = true
	note := n.by[typ][key]
	if strings.HasPrefix(note, "- ") || strings.HasPrefix(note, "! ") {
		return note
	}
	var tests []string
	for test := range strings.SplitSeq(note, ", ") {
		if test != "" {
			tests = append(tests, "`"+test+"`")
		}
	}
	return strings.Join(tests, ", ")
}

// unused notes are of fields that are gone.
func (n *notes) unused(t *testing.T) {
	t.Helper()
	for typ, fields := range n.by {
		for name := range fields {
			if !n.used[typ+"."+name] {
				t.Errorf("%s.%s is told of, and no such field is supported", typ, name)
			}
		}
	}
}

// testExists looks for a test in the source.
func testExists(t *testing.T, folder, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("../..", folder, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("\nfunc "+name+"(t *testing.T)")) {
			return true
		}
	}
	return false
}
