package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// dependenciesPage has a section for each go.mod and in it a line for each
// module that it requires directly.
const dependenciesPage = "docs/dependencies.md"

// dependencies compares the page with every go.mod below the working folder.
func dependencies() ([]string, error) {
	text, err := os.ReadFile(dependenciesPage)
	if err != nil {
		return nil, err
	}
	required := map[string][]string{}
	err = filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == ".git":
			return fs.SkipDir
		case d.Name() == "go.mod":
			required[path], err = directRequires(path)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return compareDependencies(string(text), required), nil
}

func directRequires(goMod string) ([]string, error) {
	out, err := exec.Command("go", "mod", "edit", "-json", goMod).Output()
	if err != nil {
		return nil, fmt.Errorf("go mod edit -json %s: %w", goMod, err)
	}
	var m struct {
		Require []struct {
			Path     string
			Indirect bool
		}
	}
	if err := json.Unmarshal(out, &m); err != nil {
		return nil, fmt.Errorf("go mod edit -json %s: %w", goMod, err)
	}
	var direct []string
	for _, r := range m.Require {
		if !r.Indirect {
			direct = append(direct, r.Path)
		}
	}
	return direct, nil
}

// compareDependencies finds what the page lacks and what it has too much of.
// required holds the modules of each go.mod by its path.
func compareDependencies(page string, required map[string][]string) (problems []string) {
	listed := map[string]map[string]bool{}
	section := map[string]bool{}
	for line := range strings.Lines(page) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "## `"); ok {
			section = map[string]bool{}
			listed[strings.TrimSuffix(name, "`")] = section
		}
		if row, ok := strings.CutPrefix(line, "| `"); ok {
			module, _, _ := strings.Cut(row, "`")
			section[module] = true
		}
	}
	bad := func(format string, args ...any) {
		problems = append(problems, dependenciesPage+": "+fmt.Sprintf(format, args...))
	}
	for file, modules := range required {
		for _, m := range modules {
			if !listed[file][m] {
				bad("no line under `%s` for %s: say what it earns its place with", file, m)
			}
			delete(listed[file], m)
		}
		for m := range listed[file] {
			bad("%s is listed under `%s`, which does not require it directly", m, file)
		}
		delete(listed, file)
	}
	for file := range listed {
		bad("there is no %s", file)
	}
	return problems
}
