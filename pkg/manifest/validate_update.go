package manifest

import (
	"strings"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// ValidateUpdate checks that a user may turn old into updated, by the API
// server's rules for the fields of the support table: labels, annotations,
// container images and further tolerations may change, nothing else. Both pods
// are defaulted and neither is changed. Metadata that a server keeps (UID when
// empty, resourceVersion, timestamps) is taken from old.
func ValidateUpdate(updated, old *v1.Pod) field.ErrorList {
	pod := updated.DeepCopy()
	if pod.UID == "" {
		pod.UID = old.UID
	}
	pod.ResourceVersion = old.ResourceVersion
	pod.Generation = old.Generation
	pod.CreationTimestamp = old.CreationTimestamp
	pod.DeletionTimestamp = old.DeletionTimestamp
	pod.DeletionGracePeriodSeconds = old.DeletionGracePeriodSeconds

	previous := old.DeepCopy()
	if previous.ResourceVersion == "" {
		// Only a store's copy has one; two manifests are compared without.
		pod.ResourceVersion, previous.ResourceVersion = "0", "0"
	}
	errs := apivalidation.ValidateObjectMetaUpdate(&pod.ObjectMeta, &previous.ObjectMeta, field.NewPath("metadata"))
	errs = append(errs, Validate(pod)...)
	errs = append(errs, validateMirrorUpdate(pod, previous, field.NewPath("metadata", "annotations").Key(annotationMirror))...)
	errs = append(errs, validateAppArmorUpdate(pod.Annotations, previous.Annotations, field.NewPath("metadata", "annotations"))...)
	return append(errs, validateSpecUpdate(&pod.Spec, &previous.Spec, field.NewPath("spec"))...)
}

// validateMirrorUpdate keeps the mark of a mirror pod as it is.
func validateMirrorUpdate(pod, old *v1.Pod, p *field.Path) field.ErrorList {
	was, had := old.Annotations[annotationMirror]
	is, has := pod.Annotations[annotationMirror]
	if had == has && was == is {
		return nil
	}
	return field.ErrorList{field.Forbidden(p, "cannot be added, changed or removed")}
}

func validateSpecUpdate(spec, old *v1.PodSpec, p *field.Path) (errs field.ErrorList) {
	for _, l := range []struct {
		name     string
		now, was []v1.Container
	}{{"containers", spec.Containers, old.Containers}, {"initContainers", spec.InitContainers, old.InitContainers}} {
		at := p.Child(l.name)
		if len(l.now) != len(l.was) {
			return append(errs, field.Forbidden(at, "an update cannot add or remove containers; delete the pod and create it again"))
		}
		for i := range l.now {
			image := l.now[i].Image
			if image == "" {
				errs = append(errs, field.Required(at.Index(i).Child("image"), ""))
			}
			if strings.TrimSpace(image) != image {
				errs = append(errs, field.Invalid(at.Index(i).Child("image"), image, "must not have leading or trailing white space"))
			}
		}
	}
	deadline, stop := validateDeadlineUpdate(spec.ActiveDeadlineSeconds, old.ActiveDeadlineSeconds, p.Child("activeDeadlineSeconds"))
	if errs = append(errs, deadline...); stop {
		return errs
	}
	errs = append(errs, validateTolerationsUpdate(spec.Tolerations, old.Tolerations, p.Child("tolerations"))...)

	// What may change is taken from the old pod; anything that still differs may
	// not.
	rest := spec.DeepCopy()
	for i := range rest.Containers {
		rest.Containers[i].Image = old.Containers[i].Image
	}
	for i := range rest.InitContainers {
		rest.InitContainers[i].Image = old.InitContainers[i].Image
	}
	rest.Tolerations, rest.ActiveDeadlineSeconds = old.Tolerations, old.ActiveDeadlineSeconds
	rest.EphemeralContainers = old.EphemeralContainers // no manifest has them
	if !apiequality.Semantic.DeepEqual(rest, old) {
		errs = append(errs, field.Forbidden(p, "an update of a pod may change only containers[*].image, "+
			"initContainers[*].image, shorten activeDeadlineSeconds and add tolerations; delete the pod and create it again"))
	}
	return errs
}

// validateTolerationsUpdate lets tolerations be added and their seconds change.
func validateTolerationsUpdate(now, was []v1.Toleration, p *field.Path) field.ErrorList {
	for _, w := range was {
		kept := false
		for _, n := range now {
			n.TolerationSeconds = w.TolerationSeconds
			kept = kept || n == w
		}
		if !kept {
			return field.ErrorList{field.Forbidden(p, "a toleration can be added, or its tolerationSeconds changed, but none removed or changed otherwise")}
		}
	}
	return validateTolerations(now, p)
}
