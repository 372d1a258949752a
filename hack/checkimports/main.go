// Checkimports is part of `make verify`. It fails when the code breaks a rule
// of the house that a compiler does not know:
//
//   - imports between packages point one way (docs/design.md, the table below);
//   - packages under one parent below pkg/X do not import each other;
//   - the product imports nothing that would cost it its memory budget;
//   - a function has at most 80 lines and a file that is no test at most 500;
//   - no package below pkg has a package-level init function; a test may, to hold
//     the main thread;
//   - docs/dependencies.md has a line for every module that a go.mod requires.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"sort"
	"strings"
)

const module = "github.com/nodeagent/nodeagent/"

const (
	maxFunction = 80
	maxFile     = 500
)

// layers, from the foundation up. A package may import packages of its own
// layer and of those below, never of one above. A folder stands for all that
// is below it, unless a longer one is listed.
var layers = []struct {
	name string
	dirs []string
}{
	{"foundation", []string{"pkg/errdefs", "pkg/pod", "pkg/journal", "pkg/events", "pkg/manifest", "pkg/config", "pkg/store", "pkg/proxy/ruleset"}},
	{"adapters", []string{"pkg/runtime", "pkg/images", "pkg/logs", "pkg/cni", "pkg/volumes", "pkg/cgroup", "pkg/metrics", "pkg/iptables", "pkg/nfmonitor", "pkg/nft", "pkg/proxy/backend"}},
	{"pure cores", []string{"pkg/podworker/lifecycle", "pkg/proxy/plan", "pkg/proxy/servicemap"}},
	{"controllers", []string{"pkg/podworker", "pkg/probe", "pkg/stats", "pkg/proxy", "pkg/dns", "pkg/services", "pkg/claims", "pkg/eviction", "pkg/shutdown"}},
	{"edges", []string{"pkg/source", "pkg/server", "pkg/node", "pkg/status"}},
	{"composition", []string{"pkg/agent", "pkg/cli", "pkg/preflight"}},
	{"command", []string{"cmd"}},
}

// exceptions are imports against the arrows that have a reason.
var exceptions = map[string]string{
	"pkg/podworker → pkg/status": "status is computed by a pure function that the worker calls",

	"pkg/proxy/servicemap → pkg/proxy/ruleset":  "the ruleset's words are those of the whole proxy",
	"pkg/proxy/plan → pkg/proxy/ruleset":        "the plan makes it",
	"pkg/proxy/plan → pkg/proxy/servicemap":     "the plan is made of it",
	"pkg/proxy/conntrack → pkg/proxy/ruleset":   "flows are judged by what the Services mean",
	"pkg/proxy/healthcheck → pkg/proxy/ruleset": "its ports are node ports",
}

// banned are imports that the product must not have, with the reason.
var banned = map[string]string{
	"k8s.io/client-go/kubernetes": "its scheme alone costs more memory than the agent may use",
	"k8s.io/client-go/informers":  "the store is the only cache",
	"k8s.io/kubernetes":           "a judge in tests, never a part of the product",
	"github.com/k3s-io":           "a peer, never a part of the product",
	"github.com/containers":       "a peer, never a part of the product",
}

type pkg struct {
	Dir, ImportPath string
	Imports         []string
	GoFiles         []string
	TestGoFiles     []string
	XTestGoFiles    []string
}

func main() {
	problems, err := check()
	if err != nil {
		fmt.Fprintln(os.Stderr, "checkimports:", err)
		os.Exit(2)
	}
	for _, p := range problems {
		fmt.Println(p)
	}
	if len(problems) > 0 {
		os.Exit(1)
	}
}

func check() ([]string, error) {
	pkgs, err := list()
	if err != nil {
		return nil, err
	}
	problems, err := dependencies()
	if err != nil {
		return nil, err
	}
	for _, p := range pkgs {
		problems = append(problems, imports(p)...)
		found, err := sizes(p)
		if err != nil {
			return nil, err
		}
		problems = append(problems, found...)
	}
	sort.Strings(problems)
	return problems, nil
}

func list() ([]pkg, error) {
	var errs bytes.Buffer
	cmd := exec.Command("go", "list", "-json=Dir,ImportPath,Imports,GoFiles,TestGoFiles,XTestGoFiles", "./...")
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w: %s", err, errs.String())
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs, nil
		} else if err != nil {
			return nil, err
		}
		pkgs = append(pkgs, p)
	}
}

// imports checks one package's imports.
func imports(p pkg) []string {
	from := strings.TrimPrefix(p.ImportPath, module)
	level := layer(from)
	if level < 0 {
		if strings.HasPrefix(from, "pkg/") {
			return []string{from + ": is in no layer: add it to the table in hack/checkimports"}
		}
		return nil // tests, hack and testbed may import anything
	}
	var problems []string
	for _, imp := range p.Imports {
		if why, bad := isBanned(imp); bad {
			problems = append(problems, fmt.Sprintf("%s imports %s: %s", from, imp, why))
		}
		to, ours := strings.CutPrefix(imp, module)
		if !ours {
			continue
		}
		if exceptions[from+" → "+to] != "" {
			continue
		}
		switch l := layer(to); {
		case l < 0:
			problems = append(problems, fmt.Sprintf("%s imports %s, which is no part of the product", from, to))
		case l > level:
			problems = append(problems, fmt.Sprintf("%s (%s) imports %s (%s): imports point the other way",
				from, layers[level].name, to, layers[l].name))
		case siblings(from, to):
			problems = append(problems, fmt.Sprintf("%s imports its sibling %s: their parent brings them together", from, to))
		}
	}
	return problems
}

// layer is the index of the layer with the longest folder that holds dir, or -1.
func layer(dir string) int {
	best, length := -1, 0
	for i, l := range layers {
		for _, d := range l.dirs {
			if (dir == d || strings.HasPrefix(dir, d+"/")) && len(d) > length {
				best, length = i, len(d)
			}
		}
	}
	return best
}

// siblings are two packages with the same parent, where the parent is a
// package folder below pkg ("pkg/source", not "pkg").
func siblings(a, b string) bool {
	return a != b && path.Dir(a) == path.Dir(b) && strings.Count(a, "/") >= 2 && strings.HasPrefix(a, "pkg/")
}

func isBanned(imp string) (string, bool) {
	for b, why := range banned {
		if imp == b || strings.HasPrefix(imp, b+"/") {
			return why, true
		}
	}
	return "", false
}

// sizes checks the lengths of one package's files and functions.
func sizes(p pkg) ([]string, error) {
	var problems []string
	for _, f := range p.GoFiles {
		found, err := file(p, f, maxFile)
		if err != nil {
			return nil, err
		}
		problems = append(problems, found...)
	}
	for _, f := range append(p.TestGoFiles, p.XTestGoFiles...) {
		found, err := file(p, f, 0)
		if err != nil {
			return nil, err
		}
		problems = append(problems, found...)
	}
	return problems, nil
}

func file(p pkg, name string, most int) ([]string, error) {
	full := filepath.Join(p.Dir, name)
	fset := token.NewFileSet()
	parsed, err := parser.ParseFile(fset, full, nil, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	show := strings.TrimPrefix(p.ImportPath, module) + "/" + name
	var problems []string
	if n := fset.File(parsed.Pos()).LineCount(); most > 0 && n > most {
		problems = append(problems, fmt.Sprintf("%s: %d lines, at most %d: split it", show, n, most))
	}
	for _, d := range parsed.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		line := fset.Position(fn.Pos()).Line
		if n := fset.Position(fn.End()).Line - line + 1; n > maxFunction {
			problems = append(problems, fmt.Sprintf("%s:%d: function %s has %d lines, at most %d", show, line, fn.Name.Name, n, maxFunction))
		}
		if fn.Recv == nil && fn.Name.Name == "init" && strings.HasPrefix(show, "pkg/") && !strings.HasSuffix(show, "_test.go") {
			problems = append(problems, fmt.Sprintf("%s:%d: init function: construct it where it is used", show, line))
		}
	}
	return problems, nil
}
