package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	sigsyaml "sigs.k8s.io/yaml"
)

// maxFileSize bounds what Load reads, so that a wrong path (a disk image, a
// log) ends in an error and not in memory.
const maxFileSize = 1 << 20

// Load reads and checks a configuration file: strict YAML, one document. Only
// what the file says is set; defaults come from Default. Relative paths are
// taken relative to the file's folder. Every error in the file is reported at
// once, as *Error values with file, line and field path.
func Load(path string) (*NodeAgentConfiguration, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	if len(data) > maxFileSize {
		return nil, fmt.Errorf("configuration: %w", &Error{File: path, Msg: "larger than 1 MiB; this is not a configuration file"})
	}
	c, err := Parse(data, path)
	if err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	for _, p := range c.paths() {
		if *p.value != "" && !filepath.IsAbs(*p.value) {
			*p.value = filepath.Join(dir, *p.value)
		}
	}
	return c, nil
}

// Parse is Load without the file: name only stands in errors, and relative
// paths stay as they are.
func Parse(data []byte, name string) (*NodeAgentConfiguration, error) {
	root, err := document(data, name)
	if err != nil {
		return nil, err
	}
	c := &NodeAgentConfiguration{}
	d := &decoder{file: name, lines: map[string]int{}}
	d.value(root, reflect.ValueOf(c).Elem(), "")
	if len(d.errs) == 0 {
		d.checkKind(root, c)
	}
	if len(d.errs) == 0 {
		for _, p := range problems(c) {
			d.errs = append(d.errs, &Error{File: name, Line: d.lineOf(p.Field), Field: p.Field, Msg: p.Msg})
		}
	}
	return c, d.err()
}

// document parses the one YAML document that there must be.
func document(data []byte, name string) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, &Error{File: name, Line: 1, Msg: fmt.Sprintf("the file is empty; it must hold apiVersion: %s and kind: %s", APIVersion, Kind)}
		}
		return nil, syntaxError(name, err)
	}
	switch err := dec.Decode(&more); {
	case errors.Is(err, io.EOF):
	case err != nil:
		return nil, syntaxError(name, err)
	default:
		return nil, &Error{File: name, Line: more.Line, Msg: "a second document; the file must hold one " + Kind}
	}
	return doc.Content[0], nil
}

// syntaxError takes the line out of the yaml package's message, which is the
// only place where it says it.
func syntaxError(name string, err error) error {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	e := &Error{File: name, Msg: "not valid YAML: " + msg}
	if m := regexp.MustCompile(`^line (\d+): (.*)`).FindStringSubmatch(msg); m != nil {
		e.Line, _ = strconv.Atoi(m[1])
		e.Msg = "not valid YAML: " + m[2]
	}
	return e
}

func (d *decoder) checkKind(root *yaml.Node, c *NodeAgentConfiguration) {
	for _, f := range []struct{ field, got, want string }{
		{"apiVersion", c.APIVersion, APIVersion}, {"kind", c.Kind, Kind},
	} {
		line := d.lines[f.field]
		switch {
		case f.got == f.want:
		case f.got == "":
			d.fail(root, f.field, "missing; must be %q", f.want)
		default:
			d.errs = append(d.errs, &Error{File: d.file, Line: line, Field: f.field, Msg: fmt.Sprintf("must be %q, is %q", f.want, f.got)})
		}
	}
}

// lineOf finds the line of a field, or of the nearest field around it when the
// problem is that it is missing.
func (d *decoder) lineOf(field string) int {
	for field != "" {
		if l, ok := d.lines[field]; ok {
			return l
		}
		i := strings.LastIndexAny(field, ".[")
		if i < 0 {
			break
		}
		field = field[:i]
	}
	return d.lines[""]
}

// Print writes the configuration as YAML that Load accepts. It holds what the
// user put there, ManifestURLHeader's secrets included.
func (c *NodeAgentConfiguration) Print(w io.Writer) error {
	out := *c
	out.APIVersion, out.Kind = APIVersion, Kind
	b, err := sigsyaml.Marshal(&out)
	if err != nil {
		return fmt.Errorf("print configuration: %w", err)
	}
	_, err = w.Write(b)
	return err
}

// path is one field that holds a file or folder.
type pathField struct {
	field string
	value *string
}

// paths are all fields that name a file or folder.
func (c *NodeAgentConfiguration) paths() []pathField {
	return []pathField{
		{"manifests", &c.Manifests},
		{"manifestURLCA", &c.ManifestURLCA},
		{"stateDir", &c.StateDir},
		{"runDir", &c.RunDir},
		{"podLogDir", &c.PodLogDir},
		{"containerLogDir", &c.ContainerLogDir},
		{"network.confDir", &c.Network.ConfDir},
		{"network.binDir", &c.Network.BinDir},
		{"network.resolvConf", &c.Network.ResolvConf},
		{"images.credentialsFile", &c.Images.CredentialsFile},
		{"kubeconfig", &c.Kubeconfig},
		{"api.tlsCertFile", &c.API.TLSCertFile},
		{"api.tlsKeyFile", &c.API.TLSKeyFile},
		{"api.tokenFile", &c.API.TokenFile},
	}
}
