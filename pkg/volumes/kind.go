package volumes

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// Kind is one way to provide a volume. It keeps no state between calls: what
// it did is found in the pod's folder and the mount table.
type Kind interface {
	// Name is the field of spec.volumes[] that asks for it: "emptyDir".
	Name() string
	// Plugin is the folder's name below <pod>/volumes, as kubelet spells it:
	// "kubernetes.io~empty-dir".
	Plugin() string
	// Handles says whether the volume has this kind's source.
	Handles(v *v1.Volume) bool
	// Record is what List and TearDown must know of the volume when the pod's
	// spec is gone; name and kind are filled in by the caller.
	Record(v *v1.Volume) Record
	// SetUp makes the volume ready. It is called again after a crash, in the
	// middle of which it may have been, for each new sandbox, and, of a kind
	// that is live, whenever an object may have changed: what is ready stays as
	// it is.
	SetUp(ctx context.Context, r Request) (Mounted, error)
	// TearDown undoes what is beyond the pod's folder (a disk is detached, a
	// session ended). All mounts below the folder are gone by then and the
	// folder itself is removed afterwards. It never touches what the user
	// owns, and succeeds when nothing is to be done.
	TearDown(ctx context.Context, r Record) error
}

// live is a kind whose content follows the objects it is made of.
type live interface {
	Kind
	follows()
}

// Request is one volume to set up.
type Request struct {
	Pod    *v1.Pod
	Volume *v1.Volume
	// Folder is <pod>/volumes/<plugin>, open; the volume's own place is
	// Volume.Name in it. Names that begin with a dot or hold one are the
	// kind's own: a volume's name has none.
	Folder *Folder
}

// Record is what is kept about a volume beside its folder, in <name>.json,
// written before anything is done: a half-done setup is known by it.
type Record struct {
	Name     string `json:"name"`
	Kind     string `json:"kind"`
	HostPath string `json:"hostPath,omitempty"` // where it is bound from, when not the folder
	Medium   string `json:"medium,omitempty"`
	Limit    int64  `json:"limit,omitempty"` // bytes, 0: none
	// Foreign says that its space is not the pod's: it is not measured.
	Foreign bool `json:"foreign,omitempty"`
}

// kinds are all kinds, in the order they are asked.
func kinds(o Options) []Kind {
	c := content{mounter: o.Mounter, objects: o.Objects, allocatable: o.Allocatable, clock: o.Clock}
	pv := claims{mounter: o.Mounter, objects: o.Objects, matches: o.NodeMatches, podsDir: o.PodsDir}
	return []Kind{
		emptyDir{mounter: o.Mounter}, hostPath{},
		configMap{c}, secret{c}, downwardAPI{c}, projected{c},
		persistentVolumeClaim{pv}, ephemeral{pv}, nfs{o.Mounter}, image{},
	}
}

func (m *Manager) kindOf(v *v1.Volume) Kind {
	i := slices.IndexFunc(m.kinds, func(k Kind) bool { return k.Handles(v) })
	if i < 0 {
		return nil
	}
	return m.kinds[i]
}

func (m *Manager) kindOfPlugin(folder string) Kind {
	i := slices.IndexFunc(m.kinds, func(k Kind) bool { return k.Plugin() == folder })
	if i < 0 {
		return nil
	}
	return m.kinds[i]
}

// sourceName is the field that a volume's source stands in, for messages.
func sourceName(v *v1.Volume) string {
	b, err := json.Marshal(v.VolumeSource)
	if err != nil {
		return "unknown"
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(b, &fields) != nil || len(fields) == 0 {
		return "no source"
	}
	var names []string
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}
