package podworker

import (
	"context"
	"errors"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/images"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/store"
	"github.com/nodeagent/nodeagent/pkg/volumes"
)

// refresh brings the files of volumes in line with the objects they are made
// of. It is done at every look, the first one after a restart included: nobody
// needs to remember what changed. retry is when to try again what failed.
func (s *turn) refresh(ctx context.Context, rec store.Record, observed *runtime.Pod) (retry time.Time) {
	sandbox := observed.Sandbox()
	if s.released.Load() || rec.Pod.DeletionTimestamp != nil || pod.IsTerminal(rec.Pod.Status.Phase) || sandbox == nil || !sandbox.Ready {
		return time.Time{}
	}
	err := s.m.Volumes.Refresh(ctx, rec.Pod)
	switch {
	case err == nil:
		s.stale = ""
		return time.Time{}
	case ctx.Err() != nil:
		return time.Time{}
	case err.Error() != s.stale:
		s.stale = err.Error()
		s.m.Log.Warn("volumes are not what their objects say now; will try again", "pod", pod.Describe(rec.Pod), "err", err)
		for _, message := range messages(err, s.stale) {
			s.m.Recorder.PodEvent(rec.Pod, "", v1.EventTypeWarning, failureReason(errMount), message)
		}
	}
	return s.m.Clock().Add(failMax)
}

// earlier is the first of two times of which either may be never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// messages are what users are told of an error: one for each volume that is not
// ready, as with kubelet, else the one given.
func messages(err error, message string) (out []string) {
	var list volumes.SetUpError
	if !errors.As(err, &list) {
		return []string{message}
	}
	for _, e := range list {
		out = append(out, e.Error())
	}
	return out
}

// mountsMore says that a container for debugging, which came later, mounts a
// volume that no other does: it is yet to be set up.
func mountsMore(p *v1.Pod, mounted map[string]volumes.Mounted) bool {
	return slices.ContainsFunc(p.Spec.EphemeralContainers, func(e v1.EphemeralContainer) bool {
		return slices.ContainsFunc(e.VolumeMounts, func(m v1.VolumeMount) bool {
			_, there := mounted[m.Name]
			return !there
		})
	})
}

// configError marks what kubelet calls an error of the container's
// configuration: the runtime was not asked.
func configError(err error) error {
	if err == nil {
		return nil
	}
	return errdefs.Errorf(runtime.ErrConfig, "%w", err)
}

// mountOptions is what the mounts of a container depend on, with the images
// that it mounts, which are there. Only for what not every runtime can, the
// runtime is asked what it can.
func (s *turn) mountOptions(ctx context.Context, spec *v1.Container, env func(string) (string, bool), images map[string]string, handler string) (volumes.MountOptions, error) {
	o := volumes.MountOptions{Env: env, Images: images}
	recursive := slices.ContainsFunc(spec.VolumeMounts, func(m v1.VolumeMount) bool { return m.RecursiveReadOnly != nil })
	if !recursive && len(images) == 0 {
		return o, nil
	}
	can, err := s.m.Features(ctx)
	if err != nil {
		return o, err
	}
	if len(images) > 0 && !can.ImageVolumes {
		return o, errdefs.Errorf(errdefs.ErrInvalid, "the container runtime of this node does not mount images; containerd does since 2.1, CRI-O since 1.31")
	}
	o.RecursiveReadOnly = slices.Contains(can.RecursiveReadOnly, handler)
	return o, nil
}

// volumeImages brings the images that a container mounts as volumes, and puts
// their references into refs. What is returned is ready when all are.
func (s *turn) volumeImages(ctx context.Context, p *v1.Pod, spec *v1.Container, attempt uint32, refs map[string]string) images.State {
	for _, m := range spec.VolumeMounts {
		for i := range p.Spec.Volumes {
			v := &p.Spec.Volumes[i]
			if v.Name != m.Name || v.Image == nil || refs[v.Name] != "" {
				continue
			}
			// A name that no container has: the image is asked for beside its own.
			img := s.m.Images.Request(ctx, p, &v1.Container{
				Name: spec.Name + "/" + v.Name, Image: v.Image.Reference, ImagePullPolicy: v.Image.PullPolicy,
			}, attempt)
			if !img.Ready {
				return img
			}
			refs[v.Name] = img.Ref
		}
	}
	return images.State{Ready: true}
}
