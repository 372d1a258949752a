package corpus

import (
	"fmt"
	"slices"
	"strings"
)

// place is one value inside a manifest and the way to change it.
type place struct {
	path  string
	key   string // of its object; empty in a list
	value any
	set   func(any)
	// remove takes the value out of its object or list.
	remove func()
	// duplicate repeats the value in its list; nil outside lists.
	duplicate func()
	// rename gives the value another key; nil inside lists.
	rename func(string)
}

// places lists every value of an object, sorted by key so that a seed means the
// same on every run.
func places(o Object, path string, out []place) []place {
	keys := make([]string, 0, len(o))
	for k := range o {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		p := place{path: path + "." + k, key: k, value: o[k],
			set:    func(v any) { o[k] = v },
			remove: func() { delete(o, k) },
			rename: func(to string) {
				v := o[k]
				delete(o, k)
				o[to] = v
			}}
		out = append(out, p)
		out = below(o[k], p.path, p.set, out)
	}
	return out
}

func below(v any, path string, set func(any), out []place) []place {
	switch v := v.(type) {
	case Object:
		return places(v, path, out)
	case []any:
		for i := range v {
			p := place{path: fmt.Sprintf("%s[%d]", path, i), value: v[i],
				set:       func(n any) { v[i] = n },
				remove:    func() { set(slices.Delete(slices.Clone(v), i, i+1)) },
				duplicate: func() { set(append(slices.Clone(v), clone(v[i]))) }}
			out = append(out, p)
			out = below(v[i], p.path, p.set, out)
		}
	}
	return out
}

// clone copies a JSON value.
func clone(v any) any {
	switch v := v.(type) {
	case Object:
		c := make(Object, len(v))
		for k, e := range v {
			c[k] = clone(e)
		}
		return c
	case []any:
		c := make([]any, len(v))
		for i, e := range v {
			c[i] = clone(e)
		}
		return c
	default:
		return v
	}
}

// Mutate returns a copy of a manifest with a few changes, most of them for the
// worse, and says what they are.
func (g *Generator) Mutate(o Object) (Object, string) {
	c := clone(o).(Object)
	var done []string
	for range 1 + g.r.IntN(3) {
		all := places(c, "", nil)
		if len(all) == 0 {
			break
		}
		p := all[g.r.IntN(len(all))]
		if p.path == ".apiVersion" || p.path == ".kind" {
			continue
		}
		done = append(done, p.path+" "+g.change(p))
	}
	return c, strings.Join(done, ", ")
}

// change does one thing to one place.
func (g *Generator) change(p place) string {
	switch n := g.r.IntN(20); {
	case n < 4:
		p.remove()
		return "removed"
	case n < 6 && p.duplicate != nil:
		p.duplicate()
		return "duplicated"
	case n < 7 && p.rename != nil:
		to := g.otherKey(p.key)
		p.rename(to)
		return "renamed to " + to
	case n < 8 && p.rename != nil:
		p.set(nil)
		return "null"
	case n < 9:
		v := g.anything()
		p.set(v)
		return fmt.Sprintf("set to %.60v", v)
	}
	v := g.worse(p)
	p.set(v)
	return fmt.Sprintf("set to %.60v", v)
}

// otherKey is a wrong name for a field or a strange one for a label.
func (g *Generator) otherKey(k string) string {
	return pick(g, strings.ToUpper(k), k+"x", "a/b/c", "", "-a", "a b", strings.Repeat("k", 64), "example.com/"+strings.Repeat("k", 64),
		strings.Repeat("p", 254)+"/k", "hugepages-4Ki", "hugepages-x", "storage", "pods", "Example.com/k")
}

// anything is a value whose type may be wrong.
func (g *Generator) anything() any {
	return pick[any](g, "text", 5, -5, 1.5, true, Object{}, []any{}, []any{"x"}, Object{"a": "b"}, "")
}

// worse is a value of the same type at or over a border.
func (g *Generator) worse(p place) any {
	switch p.value.(type) {
	case string:
		return g.worseString(p.path)
	case int, float64:
		return pick[any](g, 0, 1, -1, 65535, 65536, 2147483647, 2147483648, -2147483649, 9223372036854775807, 1e19, 0.5, 80.0)
	case bool:
		return g.chance(50)
	case []any:
		return pick[any](g, []any{}, []any{Object{}}, p.value)
	default:
		return pick[any](g, Object{}, p.value)
	}
}

func (g *Generator) worseString(path string) string {
	key := path[strings.LastIndexByte(path, '.')+1:]
	switch {
	case strings.Contains(path, ".limits.") || strings.Contains(path, ".requests.") || key == "sizeLimit":
		return pick(g, "0", "-1", "-1m", "1.5", "100m", "1e3", "1E", "1Ei", "9Ei", "100Ei", "0.0001", "64mb", "", "1k", "5u", " 1", "1 ", "+1", "0x1", "1.1.1", "1e-3", "2Mi", "1Gi")
	case key == "path" || key == "mountPath" || key == "workingDir":
		return pick(g, "", "relative", "/a/../b", "..", "../x", "/..a", "/", "a:b", "/m0", `C:\x`, "/"+strings.Repeat("d", 300))
	case key == "hostIP":
		return pick(g, "", "10.0.0.1", "fe80::1", "::ffff:10.0.0.1")
	}
	return pick(g, "", "Upper", "under_score", "-dash", "dash-", "a.b", "a b", " a", "a ", "..", "é", "a/b", "a=b", "default", "node-a",
		"c0", "v0", "http", "Exists", "Equal", "Gt", "NoExecute", "Always", "Never", "File", "Memory", "TCP", "Bidirectional", "HostToContainer",
		"12345", strings.Repeat("a", 15), strings.Repeat("a", 16), strings.Repeat("a", 63), strings.Repeat("a", 64),
		strings.Repeat("a", 253), strings.Repeat("a", 254), strings.Repeat("long-", 60000))
}

// Update makes a change that somebody may try on a running pod.
func (g *Generator) Update(o Object) (Object, string) {
	c := clone(o).(Object)
	containers, _ := c["spec"].(Object)["containers"].([]any)
	switch {
	case g.chance(25) && len(containers) > 0:
		image := pick[any](g, "nginx:2", "", " x", "nginx")
		containers[g.r.IntN(len(containers))].(Object)["image"] = image
		return c, fmt.Sprintf("image %q", image)
	case g.chance(20):
		c["metadata"].(Object)["labels"] = Object{"app": pick(g, "x", "a b", "")}
		return c, "labels"
	case g.chance(20):
		spec := c["spec"].(Object)
		list, _ := spec["tolerations"].([]any)
		spec["tolerations"] = append(slices.Clone(list), g.toleration())
		return c, "toleration added"
	case g.chance(20):
		spec := c["spec"].(Object)
		for _, t := range asList(spec["tolerations"]) {
			t.(Object)["tolerationSeconds"] = 7
		}
		return c, "tolerationSeconds"
	case g.chance(10):
		spec := c["spec"].(Object)
		spec["activeDeadlineSeconds"] = pick[any](g, 1, 30, 600, 601, 0, -1, nil)
		return c, "active deadline"
	case g.chance(20):
		spec := c["spec"].(Object)
		spec["terminationGracePeriodSeconds"] = pick[any](g, 1, 30, -1, 5)
		return c, "grace period"
	}
	return g.Mutate(o)
}

func asList(v any) []any {
	l, _ := v.([]any)
	return l
}
