package manifest

import (
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
)

const (
	tableBegin = "<!-- generated: go test ./pkg/manifest -run 'TestDocumentation|TestPodSpecification' -update -->\n"
	tableEnd   = "<!-- end -->\n"
)

// TestDocumentation: the tables of fields in docs/pods.md and docs/objects.md are
// the support table, and every field of a Pod of which some values are refused
// has a row in the second one.
func TestDocumentation(t *testing.T) {
	after := replaceTable(t, "../../docs/pods.md", fieldTable(reflect.TypeFor[v1.Pod](), podRows()))
	where := paths(reflect.TypeFor[v1.Pod]())
	for key := range valueChecks {
		typ, field, _ := strings.Cut(key, ".")
		at, ofPod := where[typ]
		if row := "| `" + at + "." + field + "` |"; ofPod && !strings.Contains(after, row) {
			t.Errorf("no row that begins with %s", row)
		}
	}
	var tables strings.Builder
	for _, k := range kinds() {
		fmt.Fprintf(&tables, "\n%s (`%s`)\n\n%s", k.name, k.apiVersion, fieldTable(k.typ(), k.fields))
	}
	replaceTable(t, "../../docs/objects.md", tables.String()+"\n")
}

// replaceTable compares what a page has between its marks and returns what it
// has behind them.
func replaceTable(t *testing.T, page, want string) (after string) {
	t.Helper()
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), tableBegin)
	got, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has lost the marks around its table", page)
	}
	if got != want {
		if !*update {
			t.Errorf("the table of %s is not that of the support table: run go test ./pkg/manifest -run TestDocumentation -update", page)
		} else if err := os.WriteFile(page, []byte(before+tableBegin+want+tableEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return after
}

// fieldTable has a row for each type of the support table, in its order.
func fieldTable(root reflect.Type, rows []typeFields) string {
	where := paths(root)
	var b strings.Builder
	b.WriteString("| in | taken | refused by name |\n| --- | --- | --- |\n")
	for _, row := range rows {
		typ := reflect.TypeOf(row.of)
		if inlined(rows, typ) {
			continue
		}
		taken, refused := strings.Fields(row.supported), strings.Fields(row.refused)
		for _, more := range supportTable() {
			if m := reflect.TypeOf(more.of); inlines(typ, m) {
				taken = append(taken, strings.Fields(more.supported)...)
				refused = append(refused, strings.Fields(more.refused)...)
			}
		}
		slices.Sort(taken)
		slices.Sort(refused)
		in := "a Pod"
		if root != reflect.TypeFor[v1.Pod]() {
			in = "the object"
		}
		if where[typ.Name()] != "" {
			in = "`" + where[typ.Name()] + "`"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", in, quoted(typ, taken), quoted(typ, refused))
	}
	return b.String()
}

func quoted(typ reflect.Type, fields []string) string {
	out := make([]string, len(fields))
	for i, f := range fields {
		out[i] = "`" + f + "`"
		if valueChecks[typ.Name()+"."+f] != nil {
			out[i] += "\\*"
		}
	}
	return strings.Join(out, ", ")
}

// inlined says that a type's fields stand in another one of the rows.
func inlined(rows []typeFields, typ reflect.Type) bool {
	return slices.ContainsFunc(rows, func(row typeFields) bool { return inlines(reflect.TypeOf(row.of), typ) })
}

func inlines(outer, typ reflect.Type) bool {
	for f := range outer.Fields() {
		if _, inline := jsonName(f); inline && f.Type == typ {
			return true
		}
	}
	return false
}

// paths says by the name of a type where it stands in an object, first place
// first: what stands in containers[] may stand in initContainers[], too.
func paths(root reflect.Type) map[string]string {
	out := map[string]string{}
	var walk func(typ reflect.Type, at string)
	walk = func(typ reflect.Type, at string) {
		if old, seen := out[typ.Name()]; seen && (len(old) < len(at) || len(old) == len(at) && old <= at) {
			return
		}
		out[typ.Name()] = at
		for name, f := range schema()[typ] {
			if s := structOf(f.typ); s != nil && f.support == supported {
				if f.typ.Kind() == reflect.Slice {
					name += "[]"
				}
				walk(s, strings.TrimPrefix(at+"."+name, "."))
			}
		}
	}
	walk(root, "")
	return out
}
