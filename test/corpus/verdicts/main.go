// Command verdicts prints what nodeagent makes of a corpus, one JSON object a
// line. The judge in test/kubernetes runs it: that module must keep exactly the
// versions Kubernetes was released with, so it does not import this one.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/test/corpus"
)

// Case is one manifest and nodeagent's verdict on it.
type Case struct {
	// What says how the manifest came about.
	What string `json:"what"`
	// Manifest is the document; Old is set for an update and is what it updates.
	Manifest json.RawMessage `json:"manifest"`
	Old      json.RawMessage `json:"old,omitempty"`
	// Fields are the paths of all errors; none means accepted. Unsupported are
	// those of them that are refused as valid Kubernetes that nodeagent does not
	// do.
	Fields      []string `json:"fields"`
	Unsupported []string `json:"unsupported,omitempty"`
	// Truncated is true when there are more errors than Fields has.
	Truncated bool `json:"truncated,omitempty"`
	// Pod is the defaulted object when it was accepted.
	Pod *v1.Pod `json:"pod,omitempty"`
	// Kind is that of an object that is no Pod, and Other what Pod is for one.
	Kind  string            `json:"kind,omitempty"`
	Other manifest.Resource `json:"other,omitempty"`
	// Messages are for the reader of a disagreement.
	Messages []string `json:"messages,omitempty"`

	// Expect is set for a manifest that is valid Kubernetes and that nodeagent
	// must refuse with errors of exactly these fields: by a rule of its own, or
	// as unsupported.
	Expect  []string `json:"expect,omitempty"`
	OwnRule bool     `json:"ownRule,omitempty"`
	// ServerSide says that the manifest has parts that only an API server writes.
	ServerSide bool `json:"serverSide,omitempty"`
}

func main() {
	seed := flag.Uint64("seed", 1, "seed of the random part of the corpus")
	count := flag.Int("count", 4000, "number of random manifests; a third as many updates follow")
	flag.Parse()
	if err := run(*seed, *count); err != nil {
		fmt.Fprintln(os.Stderr, "verdicts:", err)
		os.Exit(1)
	}
}

func run(seed uint64, count int) error {
	w := bufio.NewWriter(os.Stdout)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	if err := fixed(enc); err != nil {
		return err
	}
	g := corpus.New(seed)
	var last corpus.Object
	for i := range count {
		if i%5 == 0 {
			last = g.Pod()
		}
		o, what := last, "generated"
		if i%5 != 0 {
			o, what = g.Mutate(last)
		}
		data, err := json.Marshal(o)
		if err == nil {
			err = sameInYAML(data)
		}
		if err == nil {
			err = enc.Encode(create(data, what))
		}
		if err != nil {
			return err
		}
	}
	for range count / 3 {
		c, err := update(g)
		if err == nil && c != nil {
			err = enc.Encode(c)
		}
		if err != nil {
			return err
		}
	}
	for _, kind := range corpus.Kinds {
		if err := others(enc, corpus.New(seed), kind, count/3); err != nil {
			return err
		}
	}
	return w.Flush()
}

// others judges manifests of a kind that is no Pod.
func others(enc *json.Encoder, g *corpus.Generator, kind string, count int) error {
	write := func(v corpus.Variant, serverSide bool) error {
		c := create(v.Data, v.What)
		c.Kind, c.ServerSide = kind, serverSide
		return enc.Encode(c)
	}
	for _, v := range corpus.SystematicOf(kind) {
		if err := write(v, false); err != nil {
			return err
		}
	}
	for _, v := range corpus.ServerSideOf(kind) {
		if err := write(v, true); err != nil {
			return err
		}
	}
	var last corpus.Object
	for i := range count {
		if i%3 == 0 {
			last = g.Of(kind)
		}
		o, what := last, "generated"
		if i%3 != 0 {
			o, what = g.Mutate(last)
		}
		data, err := json.Marshal(o)
		if err == nil {
			err = sameInYAML(data)
		}
		if err == nil {
			err = write(corpus.Variant{What: what, Data: data}, false)
		}
		if err != nil {
			return err
		}
	}
	for range count {
		c, err := updateOther(g, kind)
		if err == nil && c != nil {
			err = enc.Encode(c)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// updateOther is update for a kind that is no Pod.
func updateOther(g *corpus.Generator, kind string) (*Case, error) {
	base := g.Of(kind)
	data, err := json.Marshal(base)
	if err != nil {
		return nil, err
	}
	old := create(data, "")
	if old.Other == nil {
		return nil, nil
	}
	changed, what := g.UpdateOf(base)
	if data, err = json.Marshal(changed); err != nil {
		return nil, err
	}
	now := manifest.New(kind)
	if strict, err := kjson.UnmarshalStrict(data, now); err != nil || len(strict) > 0 {
		return nil, nil
	}
	switch {
	case !manifest.IsNamespaced(kind):
		now.SetNamespace("")
	case now.GetNamespace() == "":
		now.SetNamespace("default")
	}
	manifest.DefaultResource(now)
	manifest.CarryOver(now, old.Other, old.Other)
	c := &Case{What: "update: " + what, Kind: kind, Manifest: data, Old: old.Manifest, Fields: []string{}}
	for _, e := range manifest.ValidateResourceUpdate(now, old.Other) {
		c.Fields = append(c.Fields, e.Field)
		c.Messages = append(c.Messages, e.Error())
	}
	return c, nil
}

// fixed judges the part of the corpus that does not depend on the seed.
func fixed(enc *json.Encoder) error {
	for _, v := range corpus.Systematic() {
		if err := enc.Encode(create(v.Data, v.What)); err != nil {
			return err
		}
	}
	for _, v := range corpus.ServerSide() {
		c := create(v.Data, v.What)
		c.ServerSide = true
		if err := enc.Encode(c); err != nil {
			return err
		}
	}
	for _, u := range corpus.UnsupportedFields() {
		data, err := u.Manifest()
		if err != nil {
			return err
		}
		c := create(data, "unsupported "+strings.Join(u.Fields, ", "))
		c.Expect = u.Fields
		if err := enc.Encode(c); err != nil {
			return err
		}
	}
	for _, o := range corpus.OwnRules() {
		c := create(o.Data, o.What)
		c.Expect, c.OwnRule = []string{o.Field}, true
		if err := enc.Encode(c); err != nil {
			return err
		}
	}
	return nil
}

func decode(data []byte) ([]manifest.Object, []*manifest.Error) {
	return manifest.Decode(data, manifest.Options{
		// No node's name: that a pod is for another node is nodeagent's own rule.
		GenerateName: func(prefix string) string { return prefix + "abcde" }})
}

func create(data []byte, what string) *Case {
	c := &Case{What: what, Manifest: data, Fields: []string{}}
	objects, errs := decode(data)
	for _, e := range errs {
		c.Messages = append(c.Messages, e.Error())
		if strings.HasPrefix(e.Msg, "more errors follow") {
			c.Truncated = true
			continue
		}
		c.Fields = append(c.Fields, e.Field)
		if e.Unsupported {
			c.Unsupported = append(c.Unsupported, e.Field)
		}
	}
	if len(objects) == 1 {
		c.Pod, c.Other = objects[0].Pod, objects[0].Other
	}
	return c
}

// sameInYAML fails when a manifest means something else when it is written in
// YAML: the judge reads JSON.
func sameInYAML(data []byte) error {
	text, err := yaml.JSONToYAML(data)
	if err != nil {
		return err
	}
	objects, errs := decode(data)
	fromYAML, errsYAML := decode(text)
	names := func(errs []*manifest.Error) (out []string) {
		for _, e := range errs {
			out = append(out, e.Field+": "+e.Msg)
		}
		slices.Sort(out) // lines differ
		return out
	}
	if len(errs) <= 20 && len(errsYAML) <= 20 && !slices.Equal(names(errs), names(errsYAML)) {
		return fmt.Errorf("%s\ngives %q as JSON and %q as YAML", text, names(errs), names(errsYAML))
	}
	if len(objects) != len(fromYAML) || len(objects) == 1 && !bytes.Equal(objects[0].Canonical, fromYAML[0].Canonical) {
		return fmt.Errorf("%s\nis not what it is as JSON", text)
	}
	return nil
}

// update judges a change to a pod that was accepted; nil when the changed
// manifest does not even decode.
func update(g *corpus.Generator) (*Case, error) {
	base := g.Pod()
	data, err := json.Marshal(base)
	if err != nil {
		return nil, err
	}
	old := create(data, "")
	if old.Pod == nil {
		return nil, nil
	}
	changed, what := g.Update(base)
	if data, err = json.Marshal(changed); err != nil {
		return nil, err
	}
	c := create(data, "update: "+what)
	if len(c.Unsupported) > 0 {
		return nil, nil
	}
	pod := &v1.Pod{}
	if strict, err := kjson.UnmarshalStrict(c.Manifest, pod); err != nil || len(strict) > 0 {
		// Decoding was judged with the manifests; this one has no update to judge.
		return nil, nil
	}
	if pod.Namespace == "" {
		pod.Namespace = "default"
	}
	if pod.Name == "" && pod.GenerateName != "" {
		pod.Name = pod.GenerateName + "abcde"
	}
	manifest.Default(pod)
	c.Old, c.Fields, c.Messages, c.Pod, c.Truncated = old.Manifest, []string{}, nil, nil, false
	for _, e := range manifest.ValidateUpdate(pod, old.Pod) {
		c.Fields = append(c.Fields, e.Field)
		c.Messages = append(c.Messages, e.Error())
	}
	return c, nil
}
