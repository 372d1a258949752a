package manifest

import (
	"encoding/json"
	"fmt"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestScalarsMeanWhatKubectlReads compares the type and value of unquoted words
// with sigs.k8s.io/yaml, which kubectl and kubelet read manifests with.
func TestScalarsMeanWhatKubectlReads(t *testing.T) {
	words := []string{"true", "True", "TRUE", "tRUE", "yes", "Yes", "YES", "y", "Y", "on", "On", "no", "n", "off", "OFF", "oN",
		"null", "Null", "NULL", "~", "nUll", "0", "-0", "1", "-1", "+1", "1.0", "1.", ".5", "-.5", "1e3", "1E3", "1e+3", "1.5e-3",
		"0x1F", "0X1f", "0o17", "017", "08", "0b101", "-0b101", "0b2", "1_000", "1__0", "_1", "1_", "0x_1F", "1_0.5", "12e", "1e", "e3",
		"1.10", "1.2.3", "10.0.0.1", "2001-01-01", "2001-01-01T00:00:00Z", "12:30", "12:30:45", "9223372036854775807",
		"9223372036854775808", "18446744073709551615", "18446744073709551616", "-9223372036854775808", "-9223372036854775809",
		"1e21", "1e20", "123456789012345678901234567890", "0.1", "100m", "64Mi", "1E", "1Ei", "<<", "-", "+", ".", "..", "-x", "+.5",
		"0.0", "-0.0", "1e-7", "0.000001", "99999999999999990000", "=", "nan", "inf", "Infinity", "NaN", ".5_0", "1,000"}
	for _, w := range words {
		text := "v: " + w + "\n"
		want, err := yaml.YAMLToJSON([]byte(text))
		docs, errs := parseYAML(chunk{[]byte(text), 1})
		if (err != nil) != (len(errs) > 0) {
			t.Errorf("%s: kubectl says %v, we say %v", w, err, errs)
			continue
		}
		if err != nil {
			continue
		}
		got := fmt.Sprintf(`{"v":%s}`, canonicalForm{}.append(nil, docs[0].entries[0].value, nil))
		if !sameJSON(t, want, []byte(got)) {
			t.Errorf("%s: kubectl reads %s, we read %s", w, want, got)
		}
	}
	for _, w := range []string{".inf", "-.inf", ".nan", "1e999"} {
		if docs, errs := parseYAML(chunk{[]byte("v: " + w), 1}); len(errs) != 1 {
			t.Errorf("%s is accepted as %v", w, docs)
		}
	}
}

func sameJSON(t *testing.T, a, b []byte) bool {
	t.Helper()
	var x, y map[string]any
	if err := json.Unmarshal(a, &x); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &y); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	return x["v"] == y["v"]
}

// TestOneNumberOneForm is about equality: the same number has one canonical
// form, whatever it was written as.
func TestOneNumberOneForm(t *testing.T) {
	for want, words := range map[string][]string{
		"1":                       {"1", "1.0", "1e0", "10e-1", "0x1", "01", "+1"},
		"0":                       {"0", "-0", "0.0", "-0.0", "0e5"},
		"0.5":                     {"0.5", ".5", "5e-1", "0.50"},
		"-1500":                   {"-1500", "-1.5e3", "-1_500"},
		"1e+21":                   {"1e21", "1000000000000000000000"},
		"18446744073709551615":    {"18446744073709551615"},
		"9007199254740993":        {"9007199254740993"},
		"1.7976931348623157e+308": {"1.7976931348623157e308"},
	} {
		for _, w := range words {
			if n, msg := plainScalar(w, 1); msg != "" || n.kind != kindNumber || n.text != want {
				t.Errorf("YAML's %s becomes %+v %s, want %s", w, n, msg, want)
			}
			if !json.Valid([]byte(w)) {
				continue
			}
			if got, ok := jsonNumber(w); !ok || got != want {
				t.Errorf("JSON's %s becomes %s, want %s", w, got, want)
			}
		}
	}
}
