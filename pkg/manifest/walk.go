package manifest

import (
	"cmp"
	"encoding"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// maxErrors is how many errors one document reports; a file that is something
// else altogether would give thousands.
const maxErrors = 50

// maxQuantity is the longest text of a quantity that is looked at: longer ones
// are either out of range or an attempt to make us compute with huge numbers.
const maxQuantity = 64

// walker compares a document with the schema and collects what is wrong.
type walker struct {
	errs []*Error
	// owned objects may name owners and finalizers, which are the business of a
	// cluster's controllers, and dropped: it does the rest of them no harm.
	owned bool
	// content is set within what a ConfigMap or Secret holds: text of any kind,
	// which no message shows.
	content bool
}

func (w *walker) add(line int, p *path, unsupported bool, format string, args ...any) {
	w.report(&Error{Line: line, Field: p.String(), Unsupported: unsupported, Msg: fmt.Sprintf(format, args...)})
}

func (w *walker) report(e *Error) {
	if len(w.errs) <= maxErrors {
		w.errs = append(w.errs, e)
	}
}

// structure checks an object against a Go struct of the schema.
func (w *walker) structure(n *node, t reflect.Type, p *path) {
	if n.kind != kindMap {
		w.add(n.line, p, false, "expected an object, got %s", n.describe())
		return
	}
	fields := schema()[t]
	for _, e := range n.entries {
		if len(w.errs) > maxErrors {
			return
		}
		kp := p.field(e.key)
		f, known := fields[e.key]
		if !known {
			w.report(&Error{Line: e.line, Field: kp.String(), Type: UnknownField, Msg: "unknown field" + suggest(e.key, fields)})
			continue
		}
		if e.value.kind == kindNull {
			continue
		}
		switch f.support {
		case supported:
			before := len(w.errs)
			w.content = holdsContent(t, e.key)
			w.value(e.value, f.typ, kp)
			w.content = false
			if f.check != nil && len(w.errs) == before {
				if at, msg := f.check(e.value, kp); msg != "" {
					w.add(e.line, at, true, "%s", msg)
				}
			}
		case serverSide:
		default:
			if !asksNothing(e.value, f.typ) && !(w.owned && t == metaType) {
				w.add(e.line, kp, true, "%s", cmp.Or(whyRefused[t.Name()+"."+e.key], notSupported))
			}
		}
	}
}

// holdsContent says that a field has the user's own bytes in it.
func holdsContent(t reflect.Type, name string) bool {
	switch t {
	case configMapType, secretType:
		return slices.Contains([]string{"data", "binaryData", "stringData"}, name)
	}
	return false
}

// describe is how messages show a value.
func (w *walker) describe(n *node) string {
	if w.content {
		return n.kind.String()
	}
	return n.describe()
}

// asksNothing says that a refused field is written out with the value it has
// when it is absent, as tools do that print whole Go structs. A pointer that is
// set is never nothing.
func asksNothing(n *node, t reflect.Type) bool {
	switch t.Kind() {
	case reflect.String:
		return n.kind == kindString && n.text == ""
	case reflect.Slice:
		return n.kind == kindList && len(n.items) == 0
	case reflect.Map:
		return n.kind == kindMap && len(n.entries) == 0
	default:
		return false
	}
}

var (
	configMapType     = reflect.TypeFor[v1.ConfigMap]()
	secretType        = reflect.TypeFor[v1.Secret]()
	bytesType         = reflect.TypeFor[[]byte]()
	metaType          = reflect.TypeFor[metav1.ObjectMeta]()
	quantityType      = reflect.TypeFor[resource.Quantity]()
	intOrStringType   = reflect.TypeFor[intstr.IntOrString]()
	jsonUnmarshaler   = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshalerTo = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// value checks a value against a Go type.
func (w *walker) value(n *node, t reflect.Type, p *path) {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t {
	case quantityType:
		w.quantity(n, p)
		return
	case bytesType:
		w.bytes(n, p)
		return
	case intOrStringType:
		if n.kind == kindNumber {
			w.integer(n, reflect.TypeFor[int32](), p)
		} else if n.kind != kindString {
			w.add(n.line, p, false, "expected a number or a name, got %s", n.describe())
		}
		return
	}
	if reflect.PointerTo(t).Implements(jsonUnmarshaler) || reflect.PointerTo(t).Implements(textUnmarshalerTo) {
		// The schema names no such type today; one that is added needs a rule here.
		w.add(n.line, p, true, notSupported)
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		w.structure(n, t, p)
	case reflect.Slice:
		w.list(n, t, p)
	case reflect.Map:
		w.dictionary(n, t, p)
	case reflect.String:
		if n.kind != kindString {
			w.add(n.line, p, false, "expected a string, got %s%s", w.describe(n), quoteHint(n))
		} else if !w.content && strings.Contains(n.text, "\x00") {
			w.add(n.line, p, false, "a NUL character; no process and no path can be given one")
		}
	case reflect.Bool:
		if n.kind != kindBool {
			w.add(n.line, p, false, "expected true or false, got %s", n.describe())
		}
	case reflect.Int32, reflect.Int64:
		w.integer(n, t, p)
	default:
		w.add(n.line, p, true, notSupported)
	}
}

// bytes are base64; a list of numbers is what Go's decoder takes, too.
func (w *walker) bytes(n *node, p *path) {
	switch n.kind {
	case kindString:
		if _, err := base64.StdEncoding.DecodeString(n.text); err != nil {
			w.add(n.line, p, false, "not base64: %v; text as it is goes under stringData in a Secret, under data in a ConfigMap", err)
		}
	case kindList:
		for i, item := range n.items {
			if v, err := strconv.ParseUint(item.text, 10, 8); item.kind != kindNull && (item.kind != kindNumber || err != nil || v > math.MaxUint8) {
				w.add(item.line, p.item(i), false, "expected a byte, got %s", w.describe(item))
			}
		}
	default:
		w.add(n.line, p, false, "expected a string in base64, got %s", w.describe(n))
	}
}

func quoteHint(n *node) string {
	if n.kind == kindNumber || n.kind == kindBool {
		return "; put it in quotes"
	}
	return ""
}

func (w *walker) list(n *node, t reflect.Type, p *path) {
	if n.kind != kindList {
		w.add(n.line, p, false, "expected a list, got %s", n.describe())
		return
	}
	for i, item := range n.items {
		// A null is the type's empty value here, as it is for the API server.
		if item.kind != kindNull {
			w.value(item, t.Elem(), p.item(i))
		}
	}
}

func (w *walker) dictionary(n *node, t reflect.Type, p *path) {
	if n.kind != kindMap {
		w.add(n.line, p, false, "expected an object, got %s", w.describe(n))
		return
	}
	// A null does not make a key absent here: it is an empty string or a zero.
	for _, e := range n.entries {
		if e.value.kind != kindNull {
			w.value(e.value, t.Elem(), p.mapKey(e.key))
		}
	}
}

func (w *walker) integer(n *node, t reflect.Type, p *path) {
	if n.kind != kindNumber {
		hint := ""
		if _, err := strconv.ParseInt(n.text, 10, 64); err == nil && n.kind == kindString {
			hint = "; remove the quotes"
		}
		w.add(n.line, p, false, "expected a whole number, got %s%s", n.describe(), hint)
		return
	}
	i, err := strconv.ParseInt(n.text, 10, 64)
	switch {
	case err != nil && strings.ContainsAny(n.text, ".e"):
		w.add(n.line, p, false, "expected a whole number, got %s", n.describe())
	case err != nil || t.Kind() == reflect.Int32 && (i > math.MaxInt32 || i < math.MinInt32):
		w.add(n.line, p, false, "%s does not fit into %s", n.describe(), strings.Replace(t.Kind().String(), "int", "", 1)+" bits")
	}
}

func (w *walker) quantity(n *node, p *path) {
	if n.kind != kindString && n.kind != kindNumber {
		w.add(n.line, p, false, "expected a quantity such as 100m or 64Mi, got %s", n.describe())
		return
	}
	if _, err := parseQuantity(n.text); err != nil {
		w.add(n.line, p, false, "%s is not a quantity (a number with an optional suffix such as m, k, Ki, Mi, Gi): %v",
			n.describe(), err)
	}
}

func parseQuantity(s string) (resource.Quantity, error) {
	s = strings.TrimSpace(s) // as resource.Quantity does when it decodes
	if len(s) > maxQuantity {
		return resource.Quantity{}, fmt.Errorf("longer than %d characters", maxQuantity)
	}
	if i := strings.LastIndexAny(s, "eE"); i >= 0 && i+1 < len(s) {
		// 1e-2147483648 is valid and would make decimal arithmetic allocate
		// gigabytes; exponents beyond any resource are refused before that.
		if e, err := strconv.Atoi(s[i+1:]); err == nil && (e > maxQuantity || e < -maxQuantity) {
			return resource.Quantity{}, fmt.Errorf("the exponent is out of range")
		}
	}
	return resource.ParseQuantity(s)
}

// suggest names the field that was probably meant.
func suggest(name string, fields map[string]fieldInfo) string {
	best, bestDistance := "", maxTypos+1
	for f := range fields {
		d := editDistance(strings.ToLower(name), strings.ToLower(f))
		if d < bestDistance || d == bestDistance && f < best {
			best, bestDistance = f, d
		}
	}
	if bestDistance > maxTypos || bestDistance*2 >= len(best) {
		return ""
	}
	return "; did you mean " + best + "?"
}

// maxTypos is how many letters of a field's name may be wrong.
const maxTypos = 2

// editDistance counts the insertions, deletions and replacements between two
// words; words of very different length are only said to be far apart.
func editDistance(a, b string) int {
	if len(a)-len(b) > maxTypos || len(b)-len(a) > maxTypos {
		return maxTypos + 1
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		previous := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := previous
			if a[i] != b[j] {
				replace++
			}
			previous = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
