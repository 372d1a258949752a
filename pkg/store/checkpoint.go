package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/manifest"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

const (
	checkpointFile    = "pod.json"
	checkpointVersion = 1
)

// checkpoint is pod.json: what must outlive the agent.
type checkpoint struct {
	Version    int       `json:"version"`
	UID        types.UID `json:"uid"`
	Source     string    `json:"source"`
	Origin     string    `json:"origin"`
	Line       int       `json:"line,omitempty"`
	Accepted   time.Time `json:"accepted"`
	Generation int64     `json:"generation"`
	// DeletionTimestamp and GracePeriodSeconds are set once the pod is to end.
	DeletionTimestamp  *time.Time `json:"deletionTimestamp,omitempty"`
	GracePeriodSeconds *int64     `json:"gracePeriodSeconds,omitempty"`
	// Status is kept only when its phase is terminal; any other is computed
	// anew from what runs.
	Status *v1.PodStatus `json:"status,omitempty"`
	// Amendment is what was changed while the pod runs.
	Amendment *Amendment `json:"amendment,omitempty"`
	// SpecHash lets a person find the pod; Canonical is what counts.
	SpecHash  string          `json:"specHash"`
	Canonical json.RawMessage `json:"canonical"`
}

func (s *Store) dir(uid types.UID) string  { return filepath.Join(s.o.Dir, string(uid)) }
func (s *Store) path(uid types.UID) string { return filepath.Join(s.dir(uid), checkpointFile) }

// checkpoint writes a pod down. A nil status means the visible one, if it is
// terminal.
func (s *Store) checkpoint(e *entry, status *v1.PodStatus) error {
	if status == nil {
		if rec, ok := s.ByUID(e.uid); ok {
			status = &rec.Pod.Status
		}
	}
	c := checkpoint{
		Version: checkpointVersion, UID: e.uid, Source: e.source, Origin: e.obj.Origin, Line: e.obj.Line,
		Accepted: e.accepted, Generation: e.generation, DeletionTimestamp: e.deletion, GracePeriodSeconds: e.grace,
		Amendment: e.amended, SpecHash: e.obj.SpecHash, Canonical: e.obj.Canonical,
	}
	if status != nil && pod.IsTerminal(status.Phase) {
		c.Status = status
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	// Canonical must come back byte for byte.
	enc.SetEscapeHTML(false)
	if err := enc.Encode(c); err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if err := os.MkdirAll(s.dir(e.uid), 0o700); err != nil {
		return err
	}
	return s.o.WriteFile(s.path(e.uid), b.Bytes())
}

// HalfWritten ends the name of a file that WriteFile has not finished; after a
// crash it is rubbish.
const HalfWritten = ".tmp"

// WriteFile replaces a file atomically, mode 0600. The folder is not synced: when a power
// cut undoes the rename, the file before it stands there whole, and the source
// brings the same pod again.
func WriteFile(path string, data []byte) error {
	tmp := path + HalfWritten
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp) // it may be what fills the disk
	}
	return err
}

type savedEntry struct {
	*entry
	status v1.PodStatus
}

// readCheckpoints reads all that can be read and sets the rest aside. Only a
// folder that cannot be listed is an error: to begin without it would end every
// pod.
func (s *Store) readCheckpoints() ([]savedEntry, error) {
	if err := os.MkdirAll(s.o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("folder of pods: %w", err)
	}
	dirs, err := os.ReadDir(s.o.Dir)
	if err != nil {
		return nil, fmt.Errorf("folder of pods: %w", err)
	}
	var out []savedEntry
	for _, d := range dirs {
		if !d.IsDir() {
			continue
		}
		uid := types.UID(d.Name())
		data, err := os.ReadFile(s.path(uid))
		if errors.Is(err, fs.ErrNotExist) {
			continue // a folder that a pod's worker has yet to remove
		}
		var e savedEntry
		if err == nil {
			e, err = s.restore(uid, data)
		}
		if err != nil {
			s.o.Log.Error("checkpoint cannot be used and is set aside; the pod is known again when its source delivers it", "file", s.path(uid), "err", err)
			s.setAside(uid)
			continue
		}
		out = append(out, e)
	}
	return out, nil
}

func (s *Store) setAside(uid types.UID) {
	if err := os.Rename(s.path(uid), s.path(uid)+".broken"); err != nil {
		s.o.Log.Error("cannot set a checkpoint aside", "file", s.path(uid), "err", err)
	}
}

func (s *Store) restore(uid types.UID, data []byte) (savedEntry, error) {
	var c checkpoint
	if err := json.Unmarshal(data, &c); err != nil {
		return savedEntry{}, err
	}
	if c.Version != checkpointVersion {
		return savedEntry{}, fmt.Errorf("version %d is not known to this nodeagent", c.Version)
	}
	if c.UID != uid {
		return savedEntry{}, fmt.Errorf("it is of pod %q, not of its folder's", c.UID)
	}
	objects, errs := s.o.Decode(c.Canonical, manifest.Options{Origin: c.Origin, NodeName: s.o.NodeName})
	switch {
	case len(errs) > 0:
		return savedEntry{}, errs[0]
	case len(objects) != 1 || objects[0].Pod == nil:
		return savedEntry{}, fmt.Errorf("it holds %d objects, not one pod", len(objects))
	}
	obj := objects[0]
	obj.Line = c.Line
	if c.Source == SourcePush {
		obj.RestoreManagedFields()
	}
	// It may run, and has to be looked at before anything else can be said.
	st := savedEntry{status: v1.PodStatus{Phase: v1.PodUnknown, Message: "not looked at yet since the agent started"}, entry: &entry{
		obj: obj, uid: uid, source: c.Source, accepted: c.Accepted, generation: c.Generation,
		deletion: c.DeletionTimestamp, grace: c.GracePeriodSeconds, amended: c.Amendment,
	}}
	switch {
	case c.Status == nil:
	case s.o.Reconsider != nil && s.o.Reconsider(*c.Status):
		st.status = v1.PodStatus{Phase: v1.PodPending}
	default:
		st.status = *c.Status
	}
	return st, nil
}
