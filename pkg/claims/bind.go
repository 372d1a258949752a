// Package claims does what a control plane does for volumes where there is none:
// it binds PersistentVolumeClaims to PersistentVolumes, makes the claims of
// ephemeral volumes, and says of each what has become of it. What it decides is
// written to the store, first to the volume and then to the claim, and read from
// there after a restart.
package claims

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// state is all volumes and claims; what is in it is changed by bind.
type state struct {
	volumes map[string]*v1.PersistentVolume
	claims  map[pod.Key]*v1.PersistentVolumeClaim
	// order are the claims, first come first.
	order []pod.Key
	// named are the volumes whose manifest says for which claim they are.
	named map[string]bool
	// here says whether a volume can be had on this node.
	here func(*v1.PersistentVolume) bool
	now  time.Time
	// notes is what users should hear of.
	notes []note
}

// note is about a claim, or a volume when the namespace is empty.
type note struct {
	key             pod.Key
	reason, message string
}

// bind makes every claim and volume what it ought to be. It decides from what is
// there: nothing is remembered but in their specs and phases.
func (s *state) bind() {
	for _, key := range s.order {
		s.claim(s.claims[key])
	}
	names := make([]string, 0, len(s.volumes))
	for name := range s.volumes {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		s.settle(s.volumes[name])
	}
}

func (s *state) claim(c *v1.PersistentVolumeClaim) {
	if c.Spec.VolumeName == "" {
		v := s.find(c)
		if v == nil {
			c.Status = v1.PersistentVolumeClaimStatus{Phase: v1.ClaimPending}
			class := classOf(c)
			message := "no persistent volumes available for this claim and no storage class is set"
			if class != "" {
				message = fmt.Sprintf("no persistent volumes available for this claim, and nothing here provisions volumes of storage class %q", class)
			}
			s.notes = append(s.notes, note{pod.KeyOf(c), "FailedBinding", message})
			return
		}
		s.join(v, c)
		return
	}
	was := c.Status.Phase == v1.ClaimBound || c.Status.Phase == v1.ClaimLost
	v := s.volumes[c.Spec.VolumeName]
	switch {
	case v != nil && isFor(v, c) && v.Status.Phase != v1.VolumeReleased && v.Status.Phase != v1.VolumeFailed:
		s.join(v, c)
	case v != nil && v.Spec.ClaimRef == nil:
		if why := unfit(v, c); why != "" && !was {
			s.pending(c, "VolumeMismatch", fmt.Sprintf("Cannot bind to requested volume %q: %s", v.Name, why))
			return
		}
		s.join(v, c)
	case was:
		c.Status.Phase = v1.ClaimLost
		message := "Bound claim has lost its PersistentVolume. Data on the volume is lost!"
		if v != nil {
			message = "Two claims are bound to the same volume, this one is bound incorrectly"
		}
		s.notes = append(s.notes, note{pod.KeyOf(c), "ClaimLost", message})
	case v != nil:
		s.pending(c, "FailedBinding", fmt.Sprintf("volume %q already bound to a different claim.", v.Name))
	default:
		s.pending(c, "FailedBinding", fmt.Sprintf("volume %q does not exist", c.Spec.VolumeName))
	}
}

func (s *state) pending(c *v1.PersistentVolumeClaim, reason, message string) {
	c.Status = v1.PersistentVolumeClaimStatus{Phase: v1.ClaimPending}
	s.notes = append(s.notes, note{pod.KeyOf(c), reason, message})
}

// join binds a volume and a claim to each other.
func (s *state) join(v *v1.PersistentVolume, c *v1.PersistentVolumeClaim) {
	if !isFor(v, c) || v.Spec.ClaimRef.UID == "" {
		v.Spec.ClaimRef = &v1.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: c.Namespace, Name: c.Name, UID: c.UID}
	}
	s.phase(v, v1.VolumeBound, "", "")
	c.Spec.VolumeName = v.Name
	c.Status = v1.PersistentVolumeClaimStatus{Phase: v1.ClaimBound, AccessModes: v.Spec.AccessModes, Capacity: v.Spec.Capacity}
}

// settle is about volumes that no claim was joined to.
func (s *state) settle(v *v1.PersistentVolume) {
	ref := v.Spec.ClaimRef
	if ref == nil || ref.UID == "" {
		s.phase(v, v1.VolumeAvailable, "", "")
		return
	}
	c := s.claims[pod.Key{Namespace: ref.Namespace, Name: ref.Name}]
	switch {
	case c != nil && c.UID == ref.UID && c.Spec.VolumeName == v.Name && c.Status.Phase == v1.ClaimBound && v.Status.Phase == v1.VolumeBound:
	case c != nil && c.UID == ref.UID && c.Spec.VolumeName != "" && c.Spec.VolumeName != v.Name && !s.named[v.Name]:
		// The claim has another volume now.
		v.Spec.ClaimRef = nil
		s.phase(v, v1.VolumeAvailable, "", "")
	case v.Spec.PersistentVolumeReclaimPolicy == v1.PersistentVolumeReclaimRetain:
		s.phase(v, v1.VolumeReleased, "", "")
	default:
		// Delete and Recycle: what lies on a host's disk or a server is not ours.
		reason, message := "VolumeFailed"+string(v.Spec.PersistentVolumeReclaimPolicy), "nodeagent deletes no data: remove what is on the volume, and then the PersistentVolume"
		s.phase(v, v1.VolumeFailed, reason, message)
		s.notes = append(s.notes, note{pod.Key{Name: v.Name}, reason, message})
	}
}

func (s *state) phase(v *v1.PersistentVolume, phase v1.PersistentVolumePhase, reason, message string) {
	v.Status.Reason, v.Status.Message = reason, message
	if v.Status.Phase != phase || v.Status.LastPhaseTransitionTime == nil {
		v.Status.Phase, v.Status.LastPhaseTransitionTime = phase, new(metav1.NewTime(s.now).Rfc3339Copy())
	}
}

// isFor says that a volume was given, or is meant, for a claim.
func isFor(v *v1.PersistentVolume, c *v1.PersistentVolumeClaim) bool {
	ref := v.Spec.ClaimRef
	return ref != nil && ref.Namespace == c.Namespace && ref.Name == c.Name && (ref.UID == "" || ref.UID == c.UID)
}

// find is the volume for a claim that names none: one that is meant for it, else
// the smallest that fits.
func (s *state) find(c *v1.PersistentVolumeClaim) *v1.PersistentVolume {
	var best *v1.PersistentVolume
	selector, err := metav1.LabelSelectorAsSelector(c.Spec.Selector)
	if c.Spec.Selector == nil {
		selector = labels.Everything()
	} else if err != nil {
		return nil // validation lets none through
	}
	for _, v := range s.volumes {
		if v.Status.Phase == v1.VolumeReleased || v.Status.Phase == v1.VolumeFailed || v.Spec.ClaimRef != nil && !isFor(v, c) || lacks(v, c) != "" || !s.here(v) {
			continue
		}
		if isFor(v, c) {
			return v
		}
		if classOfVolume(v) != classOf(c) || !selector.Matches(labels.Set(v.Labels)) {
			continue
		}
		if best == nil || smaller(v, best) {
			best = v
		}
	}
	return best
}

// smaller orders volumes by size, and those of one size by name.
func smaller(a, b *v1.PersistentVolume) bool {
	x, y := a.Spec.Capacity[v1.ResourceStorage], b.Spec.Capacity[v1.ResourceStorage]
	return cmp.Or(x.Cmp(y), cmp.Compare(a.Name, b.Name)) < 0
}

// unfit says why a volume that a claim names cannot be its.
func unfit(v *v1.PersistentVolume, c *v1.PersistentVolumeClaim) string {
	if classOfVolume(v) != classOf(c) {
		return "storageClassName does not match"
	}
	return lacks(v, c)
}

// lacks says what a volume does not have that a claim asks for.
func lacks(v *v1.PersistentVolume, c *v1.PersistentVolumeClaim) string {
	mode := func(m *v1.PersistentVolumeMode) v1.PersistentVolumeMode {
		if m == nil {
			return v1.PersistentVolumeFilesystem
		}
		return *m
	}
	has, asks := v.Spec.Capacity[v1.ResourceStorage], c.Spec.Resources.Requests[v1.ResourceStorage]
	switch {
	case has.Cmp(asks) < 0:
		return "requested PV is too small"
	case mode(v.Spec.VolumeMode) != mode(c.Spec.VolumeMode):
		return "incompatible volumeMode"
	}
	for _, m := range c.Spec.AccessModes {
		if !slices.Contains(v.Spec.AccessModes, m) {
			return "incompatible accessMode"
		}
	}
	return ""
}

// classOf is the storage class of a claim; the annotation is its name of long ago,
// and goes first, as in Kubernetes.
func classOf(c *v1.PersistentVolumeClaim) string {
	if class, ok := c.Annotations[v1.BetaStorageClassAnnotation]; ok {
		return class
	}
	if c.Spec.StorageClassName != nil {
		return *c.Spec.StorageClassName
	}
	return ""
}

func classOfVolume(v *v1.PersistentVolume) string {
	if class, ok := v.Annotations[v1.BetaStorageClassAnnotation]; ok {
		return class
	}
	return v.Spec.StorageClassName
}

// same says that nothing of what this package writes is different.
func sameVolume(a, b *v1.PersistentVolume) bool {
	return apiequality.Semantic.DeepEqual(a.Spec.ClaimRef, b.Spec.ClaimRef) && apiequality.Semantic.DeepEqual(a.Status, b.Status)
}

func sameClaim(a, b *v1.PersistentVolumeClaim) bool {
	return a.Spec.VolumeName == b.Spec.VolumeName && apiequality.Semantic.DeepEqual(a.Status, b.Status)
}
