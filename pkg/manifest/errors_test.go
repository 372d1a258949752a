package manifest

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// TestErrorType: callers tell what was not understood from what is not allowed,
// without reading prose.
func TestErrorType(t *testing.T) {
	const head = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - name: a\n"
	for doc, want := range map[string]struct {
		field string
		is    field.ErrorType
	}{
		"{{{":                     {"", ""},
		head + "    image: [x]\n": {"spec.containers[0].image", ""},
		head + "    imago: x\n":   {"spec.containers[0].imago", UnknownField},
		head + "    env: []\n":    {"spec.containers[0].image", field.ErrorTypeRequired},
		head + "    image: x\n  nodeName: other\n":          {"spec.nodeName", field.ErrorTypeInvalid},
		head + "    image: x\n  restartPolicy: Sometimes\n": {"spec.restartPolicy", field.ErrorTypeNotSupported},
	} {
		_, errs := Decode([]byte(doc), Options{NodeName: "n"})
		if len(errs) != 1 || errs[0].Field != want.field || errs[0].Type != want.is {
			t.Errorf("%s%+v, want field %q, type %q", doc, errs, want.field, want.is)
		}
	}
}

func TestPodsOnly(t *testing.T) {
	item := `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"a","image":"x"}]}}`
	for _, kind := range []string{"List", "PodList"} {
		list := []byte(`{"apiVersion":"v1","kind":"` + kind + `","items":[` + item + `]}`)
		if o, errs := Decode(list, Options{}); len(o) != 1 || len(errs) > 0 {
			t.Errorf("%s: %d objects, %v", kind, len(o), errs)
		}
		o, errs := Decode(list, Options{Only: "Pod"})
		if len(o) > 0 || len(errs) != 1 || !errs[0].Unsupported || errs[0].Field != "kind" || !strings.Contains(errs[0].Msg, "one Pod") {
			t.Errorf("%s where a Pod is due: %d objects, %v", kind, len(o), errs)
		}
	}
}
