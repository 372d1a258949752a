package config

import (
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestDocumentation: docs/configuration.md has one row for each field, with its
// type, its flag and, where it does not depend on the host, its default.
func TestDocumentation(t *testing.T) {
	rows := documented(t)
	flagOf := flagsByField()
	var one, other NodeAgentConfiguration
	Default(&one, testHost())
	Default(&other, Host{Hostname: "other", CPUs: 64})
	for _, f := range leaves("", reflect.ValueOf(one), reflect.ValueOf(other)) {
		row, ok := rows[f.path]
		if !ok {
			t.Errorf("no row for %s", f.path)
			continue
		}
		delete(rows, f.path)
		if row[1] != f.typ {
			t.Errorf("%s: type %q, want %q", f.path, row[1], f.typ)
		}
		want := ""
		if name := flagOf[f.path]; name != "" {
			want = "`--" + name + "`"
		}
		if row[3] != want {
			t.Errorf("%s: flag %q, want %q", f.path, row[3], want)
		}
		if f.fixed && f.value != "" && row[2] != "`"+f.value+"`" {
			t.Errorf("%s: default %q, want `%s`", f.path, row[2], f.value)
		}
		if row[2] == "" || row[4] == "" {
			t.Errorf("%s: a default and a meaning are needed: %q", f.path, row)
		}
	}
	for path := range rows {
		t.Errorf("the row of %s is of no field", path)
	}
}

// documented are the cells of the page's tables by field.
func documented(t *testing.T) map[string][]string {
	t.Helper()
	b, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	rows, in := map[string][]string{}, false
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			in = false
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if slices.Equal(cells, []string{"field", "type", "default", "flag", "meaning"}) {
			in = true
		} else if name := strings.Trim(cells[0], "`"); in && name != "---" {
			if rows[name] != nil || len(cells) != 5 {
				t.Fatalf("a second row, or a bar in a cell: %s", line)
			}
			rows[name] = cells
		}
	}
	return rows
}

// leaf is one field of the configuration that is no section.
type leaf struct {
	path, typ, value string
	fixed            bool // the default is the same on every host
}

func leaves(path string, one, other reflect.Value) (out []leaf) {
	for i := range one.NumField() {
		f := one.Type().Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		p := join(path, name)
		a, b := one.Field(i), other.Field(i)
		if f.Type.Kind() == reflect.Struct && f.Type != reflect.TypeFor[metav1.Duration]() {
			out = append(out, leaves(p, a, b)...)
			continue
		}
		l := leaf{path: p, typ: typeName(f.Type), fixed: reflect.DeepEqual(a.Interface(), b.Interface())}
		if !a.IsZero() {
			text, _ := json.Marshal(a.Interface())
			l.value = strings.Trim(string(text), `"`)
		} else if l.typ == "boolean" {
			l.value = "false"
		}
		out = append(out, l)
	}
	return out
}

func typeName(t reflect.Type) string {
	if t == reflect.TypeFor[metav1.Duration]() {
		return "duration"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return typeName(t.Elem())
	case reflect.Float64:
		return "number"
	case reflect.Slice:
		return "list of " + typeName(t.Elem()) + "s"
	case reflect.Map:
		if t.Elem().Kind() == reflect.Slice {
			return "map of lists"
		}
		return "map of " + typeName(t.Elem()) + "s"
	case reflect.Bool:
		return "boolean"
	case reflect.Int, reflect.Int32, reflect.Int64:
		return "integer"
	}
	return t.Kind().String()
}

// flagsByField finds which field each flag sets, by setting them one by one.
func flagsByField() map[string]string {
	out := map[string]string{}
	for _, f := range flags() {
		var src, dst, none NodeAgentConfiguration
		fill(reflect.ValueOf(&src).Elem())
		f.copy(&dst, &src)
		for _, l := range leaves("", reflect.ValueOf(dst), reflect.ValueOf(none)) {
			if !l.fixed {
				out[l.path] = f.name
			}
		}
	}
	return out
}
