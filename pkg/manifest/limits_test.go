package manifest

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
	"testing"
)

const tinyPod = "apiVersion: v1\nkind: Pod\nmetadata: {name: tiny}\nspec: {containers: [{name: c, image: i}]}\n"

// TestHostileInput feeds what tries to make the decoder work or remember
// without bound; each is refused by what is wrong with it, and the document
// behind it is still read.
func TestHostileInput(t *testing.T) {
	bomb := "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
	for i := 1; i < 30; i++ {
		bomb += fmt.Sprintf("a%d: &a%d [*a%d,*a%d,*a%d,*a%d,*a%d,*a%d,*a%d,*a%d,*a%d]\n", i, i, i-1, i-1, i-1, i-1, i-1, i-1, i-1, i-1, i-1)
	}
	var merges strings.Builder
	merges.WriteString("base: &base\n")
	for i := range 5000 {
		fmt.Fprintf(&merges, "  k%d: v\n", i)
	}
	for i := range 500 {
		fmt.Fprintf(&merges, "m%d: {<<: *base}\n", i)
	}
	many := "apiVersion: v1\nkind: Pod\nmetadata: {name: many}\nspec:\n"
	for i := range 20000 {
		many += fmt.Sprintf("  unknown%d: 1\n", i)
	}
	escapes := "apiVersion: v1\nkind: Pod\nmetadata: {name: e}\nspec:\n  containers:\n  - {name: c, image: i, args: ['" +
		strings.Repeat(`"`, maxDocument-1000) + "']}\n"
	for name, c := range map[string]struct{ data, want string }{
		"too large":             {"a: " + strings.Repeat("x", maxDocument) + "\n", "the limit is 1572864"},
		"too large JSON":        {`{"a": "` + strings.Repeat("x", maxDocument) + "\"}\n", "the limit is 1572864"},
		"alias bomb":            {bomb, "aliases make this document larger"},
		"long alias":            {"a: &a " + strings.Repeat("x", 500_000) + "\nb: [*a,*a,*a,*a,*a,*a,*a]\n", "aliases make this document larger"},
		"merge bomb":            {merges.String(), "<<"},
		"deep flow":             {strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + "\n", "nested deeper"},
		"deep JSON":             {strings.Repeat(`{"a":`, 5000) + "1" + strings.Repeat("}", 5000) + "\n", "nested deeper"},
		"deep open":             {strings.Repeat("[", 700_000) + "\n", "not valid YAML"},
		"deep blocks":           {strings.Repeat("- ", 5000) + "a\n", "nested deeper"},
		"deep lists":            {strings.Repeat(`{"apiVersion":"v1","kind":"List","items":[`, 20) + strings.Repeat("]}", 20) + "\n", "lists are nested deeper"},
		"a key of a megabyte":   {"? " + strings.Repeat("k", 1<<20) + "\n: [1, 2, 3, {a: b, a: c}]\n", "key is there twice"},
		"thousands of errors":   {many, "more errors follow"},
		"escapes grow":          {escapes, "once aliases and escapes are written out"},
		"NUL":                   {"a: b\nc: \x00\n", "line 2: a NUL byte"},
		"not UTF-8":             {"a: b\nc: d\ne: \xff\xfe\n", "line 3: not UTF-8"},
		"UTF-16":                {"\xff\xfea\x00\n", "NUL byte"},
		"escape character":      {"a: \x1b[0m\n", "control characters are not allowed"},
		"a document of anchors": {strings.Repeat("&a a: \n", 1000), "twice"},
	} {
		t.Run(name, func(t *testing.T) {
			data := []byte(c.data + "---\n" + tinyPod)
			objects, errs := Decode(data, Options{})
			if len(errs) == 0 || len(errs) > 2*maxErrors {
				t.Fatalf("%d errors", len(errs))
			}
			all := ""
			for _, e := range errs {
				all += e.Error() + "\n"
				if len(e.Error()) > 1000 {
					t.Errorf("an error has %d bytes", len(e.Error()))
				}
			}
			if !strings.Contains(all, c.want) {
				t.Errorf("the errors are %s, want %q", all, c.want)
			}
			if len(objects) != 1 || objects[0].Pod.Name != "tiny" {
				t.Errorf("the document behind it gives %d objects", len(objects))
			}
		})
	}
}

// TestMemoryIsBounded decodes the documents that cost most per byte and holds
// the garbage they make to a multiple of their size.
func TestMemoryIsBounded(t *testing.T) {
	for name, data := range map[string][]byte{
		"short lines": bytes.Repeat([]byte("- a\n"), maxDocument/4-1),
		"flow items":  append(append([]byte("["), bytes.Repeat([]byte("a,"), maxDocument/2-2)...), ']'),
		"JSON items":  append(append([]byte(`{"a":[`), bytes.Repeat([]byte("1,"), maxDocument/2-20)...), "1]}"...),
		"comments":    bytes.Repeat([]byte("#\n"), maxDocument/2-1),
		"blank lines": bytes.Repeat([]byte("\n"), maxDocument-1),
		"separators":  bytes.Repeat([]byte("---\n"), maxDocument/4),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		Decode(data, Options{})
		runtime.ReadMemStats(&after)
		per := (after.TotalAlloc - before.TotalAlloc) / uint64(len(data))
		t.Logf("%s: %d bytes allocated per byte of input", name, per)
		if per > 2000 {
			t.Errorf("%s allocate %d bytes per byte of input", name, per)
		}
	}
}

// TestLineBreaks: whatever ends a line ends a comment, too, and is counted.
func TestLineBreaks(t *testing.T) {
	const text = "# a comment\n---\n# another\n" + tinyPod + "---\n" + tinyPod + "nonsense: 1\n"
	for name, end := range map[string]string{"LF": "\n", "CRLF": "\r\n", "CR": "\r"} {
		t.Run(name, func(t *testing.T) {
			data := []byte(strings.ReplaceAll(text, "\n", end))
			before := bytes.Clone(data)
			objects, errs := Decode(data, Options{})
			if len(objects) != 1 || objects[0].Line != 4 {
				t.Errorf("objects %v", objects)
			}
			if len(errs) != 1 || errs[0].Line != 13 || errs[0].Field != "nonsense" {
				t.Errorf("errors %v", errs)
			}
			if !bytes.Equal(data, before) {
				t.Error("Decode changes its input")
			}
		})
	}
	for _, end := range []string{"\u0085", "\u2028", "\u2029"} {
		if objects, errs := Decode([]byte("# a comment"+end+tinyPod), Options{}); len(objects) != 1 || len(errs) != 0 {
			t.Errorf("a comment that %+q ends: %v, %v", end, objects, errs)
		}
	}
}

// TestManyBadDocuments: a file of something else is reported so that somebody
// can read it, and what is right in it is found all the same.
func TestManyBadDocuments(t *testing.T) {
	objects, errs := Decode([]byte(strings.Repeat("--- a\n", 5000)+"---\n"+tinyPod), Options{Origin: "f"})
	if len(objects) != 1 || objects[0].Line != 5002 {
		t.Errorf("%d objects", len(objects))
	}
	if len(errs) != maxReported+1 {
		t.Fatalf("%d errors", len(errs))
	}
	if last := errs[maxReported].Error(); last != "f:101: more errors follow; correct these first" {
		t.Errorf("the last is %q", last)
	}
}
