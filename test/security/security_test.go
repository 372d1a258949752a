// Package security holds docs/security.md against the tests that it names.
package security

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// classes are what the document must have a row for.
const classes = `2017-1002101 2021-25741 2017-1002102 2019-11245 2019-11249 2021-25743 2020-8557 2020-8551 2021-20206
	2023-2431 2023-5528 2024-10220 2025-1767 2025-0426`

// TestNamedTestsExist: a row of the document is worth what its tests are.
func TestNamedTestsExist(t *testing.T) {
	doc, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range strings.Fields(classes) {
		if !strings.Contains(string(doc), "CVE-"+c) {
			t.Errorf("CVE-%s has no row", c)
		}
	}
	named := regexp.MustCompile("`((?:pkg|test)/[a-z/]+) (Test[A-Za-z0-9]+)`")
	for line := range strings.Lines(string(doc)) {
		found := named.FindAllStringSubmatch(line, -1)
		if strings.HasPrefix(line, "| CVE-") && len(found) == 0 {
			t.Errorf("no test is named in: %s", line)
		}
		for _, m := range found {
			if !has(t, m[1], m[2]) {
				t.Errorf("there is no %s in %s", m[2], m[1])
			}
		}
	}
	if n := len(named.FindAllString(string(doc), -1)); n < 20 {
		t.Errorf("the document names only %d tests", n)
	}
}

func has(t *testing.T, folder, test string) bool {
	files, err := filepath.Glob(filepath.Join("../..", folder, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "\nfunc "+test+"(t *testing.T)") {
			return true
		}
	}
	return false
}
