package manifest

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestSupportTableIsComplete fails when k8s.io/api has a field that the table
// does not classify, when the table names one that is gone, and when a
// supported struct has no rows.
func TestSupportTableIsComplete(t *testing.T) {
	if err := checkTable(supportTable()); len(err) > 0 {
		t.Error(strings.Join(err, "\n"))
	}
}

// TestTableCheckFails makes sure that the check above can fail.
func TestTableCheckFails(t *testing.T) {
	for name, change := range map[string]func(*typeFields){
		"a field is not classified":   func(f *typeFields) { f.supported = strings.Replace(f.supported, " image ", " ", 1) },
		"a field does not exist":      func(f *typeFields) { f.refused += " imagination" },
		"a field is classified twice": func(f *typeFields) { f.refused += " image" },
	} {
		table := slices.Clone(supportTable())
		for i := range table {
			if reflect.TypeOf(table[i].of) == reflect.TypeFor[v1.Container]() {
				change(&table[i])
			}
		}
		if len(checkTable(table)) != 1 {
			t.Errorf("%s: %v", name, checkTable(table))
		}
	}
	if err := checkTable(slices.DeleteFunc(slices.Clone(supportTable()), func(f typeFields) bool {
		return reflect.TypeOf(f.of) == reflect.TypeFor[v1.Capabilities]()
	})); len(err) != 1 || !strings.Contains(err[0], "SecurityContext") {
		t.Errorf("a missing type gives %v", err)
	}
}

func checkTable(table []typeFields) (problems []string) {
	rows := map[reflect.Type]bool{}
	for _, f := range table {
		rows[reflect.TypeOf(f.of)] = true
	}
	for _, f := range table {
		typ := reflect.TypeOf(f.of)
		classified := map[string]int{}
		for _, name := range strings.Fields(f.supported + " " + f.serverSide + " " + f.refused) {
			if classified[name]++; classified[name] == 2 {
				problems = append(problems, typ.Name()+"."+name+" is classified twice")
			}
		}
		supportedFields := strings.Fields(f.supported)
		for _, field := range ownFields(typ) {
			if classified[field.name] == 0 {
				problems = append(problems, typ.Name()+"."+field.name+" is not classified")
			}
			delete(classified, field.name)
			if s := structOf(field.typ); s != nil && slices.Contains(supportedFields, field.name) && !rows[s] {
				problems = append(problems, s.Name()+" has no rows, but "+typ.Name()+"."+field.name+" is supported")
			}
		}
		for name, n := range classified {
			if n == 1 {
				problems = append(problems, typ.Name()+"."+name+" does not exist in k8s.io/api")
			}
		}
	}
	return problems
}

type ownField struct {
	name string
	typ  reflect.Type
}

// ownFields are the JSON fields that a type's own rows must name; what it
// inlines has rows of its own, but for TypeMeta.
func ownFields(t reflect.Type) (out []ownField) {
	for f := range t.Fields() {
		name, inline := jsonName(f)
		switch {
		case f.Type == reflect.TypeFor[metav1.TypeMeta]():
			out = append(out, ownField{"apiVersion", reflect.TypeFor[string]()}, ownField{"kind", reflect.TypeFor[string]()})
		case !inline && name != "":
			out = append(out, ownField{name, f.Type})
		}
	}
	return out
}

// structOf finds the struct that a field leads to, if the walk goes there.
func structOf(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t == quantityType || t == intOrStringType {
		return nil
	}
	return t
}

// TestValueChecksMatchFields catches a row of values that names no field.
func TestValueChecksMatchFields(t *testing.T) {
	found := map[string]bool{}
	for typ := range schema() {
		for _, f := range ownFields(typ) {
			key := typ.Name() + "." + f.name
			found[key] = schema()[typ][f.name].support == supported
		}
	}
	for key := range valueChecks {
		if !found[key] {
			t.Errorf("%s is no supported field", key)
		}
	}
}
