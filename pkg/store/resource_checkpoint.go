package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/nodeagent/nodeagent/pkg/manifest"
)

// resourceCheckpoint is what must outlive the agent of an object that is no pod.
type resourceCheckpoint struct {
	Version    int       `json:"version"`
	Source     string    `json:"source"`
	Origin     string    `json:"origin"`
	Line       int       `json:"line,omitempty"`
	Accepted   time.Time `json:"accepted"`
	Order      uint64    `json:"order"`
	Generation int64     `json:"generation"`
	Problem    string    `json:"problem,omitempty"`
	// Resolved is the object as SetResource left it; absent before that.
	Resolved manifest.Resource `json:"resolved,omitempty"`
	// Canonical is what the source wants.
	Canonical json.RawMessage `json:"canonical"`
}

const jsonSuffix = ".json"

// kindDir is where the checkpoints of a kind ("secrets") are; empty: nowhere.
func (s *Store) kindDir(resource string) string {
	if resource == secrets {
		return s.o.SecretDir
	}
	return filepath.Join(s.o.ResourceDir, resource)
}

// secrets is the kind that is kept elsewhere.
const secrets = "secrets"

// resourcePath is empty for an object of which nothing is kept.
func (s *Store) resourcePath(r *resource) string {
	dir := s.kindDir(manifest.ResourceName(r.obj.Kind()))
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, string(r.obj.Other.GetUID())+jsonSuffix)
}

func (s *Store) checkpointResource(r *resource) error {
	path := s.resourcePath(r)
	if path == "" {
		return nil
	}
	c := resourceCheckpoint{
		Version: checkpointVersion, Source: r.rec.Source, Origin: r.obj.Origin, Line: r.obj.Line, Accepted: r.rec.Accepted,
		Order: r.rec.Order, Generation: r.generation, Problem: r.rec.Problem, Canonical: r.obj.Canonical,
	}
	if r.rec.Resolved {
		c.Resolved = r.rec.Object
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	// Canonical must come back byte for byte.
	enc.SetEscapeHTML(false)
	if err := enc.Encode(c); err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return s.o.WriteFile(path, b.Bytes())
}

func (s *Store) removeResourceCheckpoint(r *resource) error {
	path := s.resourcePath(r)
	if path == "" {
		return nil
	}
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// loadResources fills the store from checkpoints; as with pods, only a folder
// that cannot be listed is an error.
func (s *Store) loadResources() error {
	var saved []*resource
	for _, k := range manifest.Kinds() {
		dir := s.kindDir(k.Resource)
		if dir == "" {
			continue
		}
		files, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("folder of %s: %w", k.Resource, err)
		}
		for _, f := range files {
			path := filepath.Join(dir, f.Name())
			if filepath.Ext(path) != jsonSuffix {
				continue
			}
			r, err := s.restoreResource(path)
			if err == nil && s.resourcePath(r) != path {
				err = fmt.Errorf("it is of %s with UID %s, not of its name's", r.key(), r.obj.Other.GetUID())
			}
			if err != nil {
				s.o.Log.Error("checkpoint cannot be used and is set aside; the object is known again when its source delivers it", "file", path, "err", err)
				_ = os.Rename(path, path+".broken") // one that stays is refused again
				continue
			}
			saved = append(saved, r)
		}
	}
	// Two of one key should not be; the newer one is what the user wants.
	slices.SortFunc(saved, func(a, b *resource) int { return b.rec.Accepted.Compare(a.rec.Accepted) })
	for _, r := range saved {
		key := r.key()
		if s.others[key] != nil {
			if err := s.removeResourceCheckpoint(r); err != nil {
				s.o.Log.Error("cannot remove the older one of two checkpoints", "object", key, "err", err)
			}
			continue
		}
		s.latest = max(s.latest, r.rec.Order)
		r.rec.Object = s.presentResource(r, r.rec.Object, s.o.Revisions.Next())
		s.others[key] = r
		if w := s.wanted[r.rec.Source]; w != nil {
			w[key] = r.obj
			s.sources[r.rec.Source].objects++
		}
	}
	return nil
}

func (s *Store) restoreResource(path string) (*resource, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var c struct {
		resourceCheckpoint
		Resolved json.RawMessage `json:"resolved"`
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, err
	}
	if c.Version != checkpointVersion {
		return nil, fmt.Errorf("version %d is not known to this nodeagent", c.Version)
	}
	obj, err := s.decodeOther(c.Canonical, c.Origin)
	if err != nil {
		return nil, err
	}
	obj.Line = c.Line
	if c.Source == SourcePush {
		obj.RestoreManagedFields()
	}
	r := &resource{obj: obj, generation: c.Generation, rec: Resource{
		Object: obj.Other, Wanted: obj.Other, Canonical: obj.Canonical, Source: c.Source, Origin: c.Origin,
		Accepted: c.Accepted, Order: c.Order, Problem: c.Problem,
	}}
	if len(c.Resolved) == 0 {
		return r, nil
	}
	resolved, err := manifest.Restore(obj.Kind(), c.Resolved)
	if err != nil {
		// What was allocated is lost; what is wanted is not.
		s.o.Log.Warn("what was allocated for an object cannot be read back and is allocated anew", "file", path, "err", err)
		return r, nil
	}
	r.rec.Object, r.rec.Resolved = resolved, true
	return r, nil
}

// decodeOther reads one object that is no pod.
func (s *Store) decodeOther(data []byte, origin string) (manifest.Object, error) {
	objects, errs := s.o.Decode(data, manifest.Options{Origin: origin, NodeName: s.o.NodeName})
	switch {
	case len(errs) > 0:
		return manifest.Object{}, errs[0]
	case len(objects) != 1 || objects[0].Other == nil:
		return manifest.Object{}, fmt.Errorf("it holds %d objects, not one that is no pod", len(objects))
	}
	return objects[0], nil
}
