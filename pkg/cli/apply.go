package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/nodeagent/nodeagent/pkg/cli/table"
	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

// maxManifest bounds one file that is read; the agent takes no more either.
const maxManifest = 10 << 20

// file is one manifest file's content.
type file struct {
	name string // "-" for standard input
	data []byte
}

// read reads files, "-" for standard input and folders, of which it takes
// *.yaml, *.yml and *.json in the order of their names.
func (c *CLI) read(args []string) ([]file, error) {
	var out []file
	for _, a := range args {
		if a == "-" {
			b, err := readAll(c.In, "standard input")
			if err != nil {
				return nil, err
			}
			out = append(out, file{"-", b})
			continue
		}
		names, err := manifestsIn(a)
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			f, err := os.Open(n)
			if err != nil {
				return nil, err
			}
			b, err := readAll(f, n)
			if err = errors.Join(err, f.Close()); err != nil {
				return nil, err
			}
			out = append(out, file{n, b})
		}
	}
	return out, nil
}

func readAll(r io.Reader, name string) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(b) > maxManifest {
		return nil, fmt.Errorf("%s: larger than %d MiB; this is not a manifest", name, maxManifest>>20)
	}
	return b, nil
}

func manifestsIn(path string) ([]string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		if !strings.HasPrefix(e.Name(), ".") && !e.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, ext) {
			out = append(out, filepath.Join(path, e.Name()))
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s holds no *.yaml, *.yml or *.json file: %w", path, fs.ErrNotExist)
	}
	return out, nil
}

// Apply makes the agent run what manifests say: objects that are not there are
// created, others replaced by what the manifest says now. The documents go to
// the agent as they were written. namespaceGiven says that the user insists on
// the namespace.
func (c *CLI) Apply(ctx context.Context, args []string, namespaceGiven bool) error {
	files, err := c.read(args)
	if err != nil {
		return err
	}
	failed, count := false, 0
	for _, f := range files {
		objects, errs := manifest.Decode(f.data, manifest.Options{Origin: f.name, Namespace: c.Namespace})
		for _, e := range errs {
			fmt.Fprintln(c.Err, "error: "+table.Safe(e.Error()))
		}
		failed = failed || len(errs) > 0
		for _, o := range objects {
			count++
			key := o.Key()
			if namespaceGiven && key.Namespace != "" && key.Namespace != c.Namespace {
				Report(c.Err, fmt.Errorf("%s:%d: %s %s is for namespace %q, not %q", f.name, o.Line, o.Kind(), key.Name, key.Namespace, c.Namespace))
				failed = true
				continue
			}
			word, err := c.applyOne(ctx, o)
			switch {
			case isStatus(err):
				Report(c.Err, err)
				failed = true
			case err != nil:
				return err
			default:
				fmt.Fprintf(c.Out, "%s/%s %s\n", strings.ToLower(o.Kind()), table.Safe(key.Name), word)
			}
		}
	}
	if count == 0 && !failed {
		return errors.New("no objects passed to apply")
	}
	if failed {
		return errFailed()
	}
	return nil
}

// applyOne says what it did: created, configured or unchanged.
func (c *CLI) applyOne(ctx context.Context, o manifest.Object) (string, error) {
	if o.Pod == nil {
		return c.applyResource(ctx, o)
	}
	path := podPath(o.Pod.Namespace, o.Pod.Name)
	var before, after v1.Pod
	err := c.client.get(ctx, path, nil, &before)
	if apierrors.IsNotFound(err) {
		err = c.client.do(ctx, http.MethodPost, podsPath(o.Pod.Namespace), nil, "application/json", o.Canonical, &after)
		return "created", err
	}
	if err != nil {
		return "", err
	}
	if err := c.client.do(ctx, http.MethodPut, path, nil, "application/json", o.Canonical, &after); err != nil {
		return "", err
	}
	if sameWish(&before, &after) {
		return "unchanged", nil
	}
	return "configured", nil
}

// sameWish says whether two states of a pod ask for the same. A resourceVersion
// also tells of the status, which goes on by itself.
func sameWish(a, b *v1.Pod) bool {
	return a.UID == b.UID && maps.Equal(a.Labels, b.Labels) && maps.Equal(a.Annotations, b.Annotations) &&
		apiequality.Semantic.DeepEqual(a.Spec, b.Spec)
}

// namedIn finds the objects that manifests name. It does not ask whether they are
// valid: what was accepted by an older agent must be deletable by this one.
func (c *CLI) namedIn(args []string) ([]target, error) {
	files, err := c.read(args)
	if err != nil {
		return nil, err
	}
	var out []target
	for _, f := range files {
		for dec := yaml.NewDecoder(bytes.NewReader(f.data)); ; {
			var o named
			err := dec.Decode(&o)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", f.name, err)
			}
			keys, err := o.keys(c.Namespace)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", f.name, err)
			}
			out = append(out, keys...)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("the manifests name no object")
	}
	return out, nil
}

// named is as much of a manifest as says which objects it is about.
type named struct {
	Kind     string `yaml:"kind"`
	Metadata struct {
		Name      string `yaml:"name"`
		Namespace string `yaml:"namespace"`
	} `yaml:"metadata"`
	Items []named `yaml:"items"`
}

func (o named) keys(namespace string) ([]target, error) {
	item, isList := strings.CutSuffix(o.Kind, "List")
	switch {
	case isList && (item == "" || isObject(item)):
		var out []target
		for _, i := range o.Items {
			if i.Kind == "" {
				i.Kind = item
			}
			keys, err := i.keys(namespace)
			if err != nil {
				return nil, err
			}
			out = append(out, keys...)
		}
		return out, nil
	case o.Kind == "" && o.Metadata.Name == "":
		return nil, nil // an empty document
	case !isObject(o.Kind) || o.Metadata.Name == "":
		return nil, fmt.Errorf("%s %q is no object with a name, of: %s", o.Kind, o.Metadata.Name, strings.Join(ObjectKinds(), ", "))
	}
	if o.Metadata.Namespace != "" {
		namespace = o.Metadata.Namespace
	}
	return []target{{o.Kind, pod.Key{Namespace: namespace, Name: o.Metadata.Name}}}, nil
}

func isObject(kind string) bool { return kindPath(kind, "") != "" }
