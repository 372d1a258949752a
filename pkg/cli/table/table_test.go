package table

import (
	"strings"
	"testing"
)

func TestSafe(t *testing.T) {
	for in, want := range map[string]string{
		"plain-name_1":        "plain-name_1",
		"\x1b[2J\x1b]0;t\a":   "^[[2J^[]0;t^G",
		"\u009b31mred":        `\u009b31mred`,
		"a\x9bb":              `a\x9bb`,
		"a\x00b\x7f":          "a^@b^?",
		"evil\u202egnp.exe":   `evil\u202egnp.exe`,
		"zero\u200bwidth":     `zero\u200bwidth`,
		"Grüße, 世界":           "Grüße, 世界",
		"tab\there\rreturn":   "tab^Ihere^Mreturn",
		"line\nend":           "line^Jend",
		"\u2066isolate\ufeff": `\u2066isolate\ufeff`,
	} {
		if got := Safe(in); got != want {
			t.Errorf("Safe(%q) = %q, want %q", in, got, want)
		}
	}
	if got := SafeText("a\n\tb\x1b[0m"); got != "a\n\tb^[[0m" {
		t.Errorf("SafeText: %q", got)
	}
	if got := Cell("first\x1b\nsecond"); got != "first^[..." {
		t.Errorf("Cell: %q", got)
	}
}

func TestWriterAlignsAndRemembersWidths(t *testing.T) {
	var b strings.Builder
	w := New(&b, "NAME", "R", "AGE")
	w.Row("a-long-name", "1/1", "5s")
	w.Row("ü", "", "1m")
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	w.Row("b", "0/1", "0s")
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	want := "" +
		"NAME          R     AGE\n" +
		"a-long-name   1/1   5s\n" +
		"ü                   1m\n" +
		"b             0/1   0s\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}
