package manifest

import (
	"encoding/json"
	"math"
	"regexp"
	"strconv"
	"strings"
)

// yamlFloat is what sigs.k8s.io/yaml, and with it kubectl and kubelet, takes
// for a decimal number.
var yamlFloat = regexp.MustCompile(`^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$`)

// plainScalar gives an unquoted YAML scalar its type. It follows YAML 1.1 as
// kubectl reads it (yes, on and 0755 are a boolean, a boolean and 493), so that
// a manifest means here what it means there. The second result is a message
// when the value has no JSON form.
func plainScalar(s string, line int) (*node, string) {
	n := &node{kind: kindString, line: line, text: s, raw: s, cost: len(s) + 2}
	switch s {
	case "", "~", "null", "Null", "NULL":
		n.kind = kindNull
		return n, ""
	case "y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON":
		n.kind, n.text = kindBool, "true"
		return n, ""
	case "n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF":
		n.kind, n.text = kindBool, "false"
		return n, ""
	case ".nan", ".NaN", ".NAN", ".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF", "-.inf", "-.Inf", "-.INF":
		return nil, "expected a finite number, got " + s
	}
	text, ok, finite := plainNumber(s)
	switch {
	case !ok:
		return n, ""
	case !finite:
		return nil, "the number " + shorten(s) + " is too large"
	}
	n.kind, n.text = kindNumber, text
	return n, ""
}

// plainNumber returns the canonical form of a YAML number; ok says that s is
// one at all.
func plainNumber(s string) (text string, ok, finite bool) {
	switch c := s[0]; {
	case c == '.':
		f, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return "", false, false
		}
		return formatFloat(f), true, true
	case c == '+' || c == '-' || c >= '0' && c <= '9':
	default:
		return "", false, false
	}
	plain := strings.ReplaceAll(s, "_", "")
	if i, err := strconv.ParseInt(plain, 0, 64); err == nil {
		return strconv.FormatInt(i, 10), true, true
	}
	if u, err := strconv.ParseUint(plain, 0, 64); err == nil {
		return strconv.FormatUint(u, 10), true, true
	}
	if yamlFloat.MatchString(plain) {
		f, err := strconv.ParseFloat(plain, 64)
		if err != nil {
			return "", true, false
		}
		return formatFloat(f), true, true
	}
	return "", false, false
}

// jsonNumber returns the canonical form of a JSON number: 1, 1.0 and 1e0 are
// one value.
func jsonNumber(s string) (string, bool) {
	if i, err := strconv.ParseInt(s, 10, 64); err == nil {
		return strconv.FormatInt(i, 10), true
	}
	if u, err := strconv.ParseUint(s, 10, 64); err == nil {
		return strconv.FormatUint(u, 10), true
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return "", false
	}
	return formatFloat(f), true
}

// formatFloat writes a finite number as encoding/json does, and -0 as 0.
func formatFloat(f float64) string {
	if f == 0 || math.IsInf(f, 0) || math.IsNaN(f) {
		return "0"
	}
	b, err := json.Marshal(f)
	if err != nil {
		return "0"
	}
	return string(b)
}
