package runtime

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/pod"
)

const (
	// settleLimit bounds how long a reader waits for a status that lags behind
	// an exit event that did not tell the exit code.
	settleLimit = time.Second
	settleEvery = 2 * time.Millisecond
	// detailCalls is how many status calls one list makes at once.
	detailCalls = 4
)

// Pods lists every pod of ours with full detail, ordered by UID. It makes two
// list calls and one status call per object that is new or changed state.
// Labels and annotations in the result are shared: do not change them.
func (c *Client) Pods(ctx context.Context) ([]Pod, error) {
	mark := c.index.mark()
	pods, err := c.observe(ctx, "", false)
	if err != nil {
		return nil, err
	}
	live := make(map[string]struct{}, 4*len(pods))
	out := make([]Pod, 0, len(pods))
	for _, p := range pods {
		for i := range p.Sandboxes {
			live[p.Sandboxes[i].ID] = struct{}{}
		}
		for i := range p.Containers {
			live[p.Containers[i].ID] = struct{}{}
		}
		out = append(out, *p)
	}
	c.index.prune(mark, live)
	c.starts.prune(live)
	slices.SortFunc(out, func(a, b Pod) int { return cmp.Compare(a.UID, b.UID) })
	return out, nil
}

// Pod shows one pod; a Pod with only its UID when the runtime has nothing of
// it. Called after an Event it shows what the event was about, although the
// runtime's status lags behind its events by some 30 ms: an exit that an event
// told in full is shown as told, for any other Pod waits at most a second.
func (c *Client) Pod(ctx context.Context, uid types.UID) (Pod, error) {
	pods, err := c.observe(ctx, uid, true)
	if err != nil {
		return Pod{UID: uid}, err
	}
	if p := pods[uid]; p != nil {
		return *p, nil
	}
	return Pod{UID: uid}, nil
}

// ours says whether an object with these labels belongs to this agent.
func (c *Client) ours(labels map[string]string) bool {
	owner, owned := labels[pod.LabelOwner]
	if owned {
		return owner == c.o.Owner
	}
	return c.o.AdoptKubelet && labels[pod.LabelPodUID] != ""
}

// selector narrows a list to ours and, when given, to one pod. Adopted objects
// have no owner label to select by; they are filtered after the list.
func (c *Client) selector(uid types.UID) map[string]string {
	sel := map[string]string{}
	if !c.o.AdoptKubelet {
		sel[pod.LabelOwner] = c.o.Owner
	}
	if uid != "" {
		sel[pod.LabelPodUID] = string(uid)
	}
	return sel
}

func (c *Client) listSandboxes(ctx context.Context, sel map[string]string) ([]*cri.PodSandbox, error) {
	r, err := invoke(ctx, c, "list_podsandbox", "", callTimeout, c.rt.ListPodSandbox,
		&cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: sel}})
	return r.GetItems(), err
}

func (c *Client) listContainers(ctx context.Context, sel map[string]string) ([]*cri.Container, error) {
	r, err := invoke(ctx, c, "list_containers", "", callTimeout, c.rt.ListContainers,
		&cri.ListContainersRequest{Filter: &cri.ContainerFilter{LabelSelector: sel}})
	return r.GetContainers(), err
}

// observe lists and details; uid "" means all. wait is for an exit that an
// event told and the status does not.
func (c *Client) observe(ctx context.Context, uid types.UID, wait bool) (map[types.UID]*Pod, error) {
	// Containers first: a container that is listed then has its sandbox listed.
	ctrs, err := c.listContainers(ctx, c.selector(uid))
	if err != nil {
		return nil, err
	}
	boxes, err := c.listSandboxes(ctx, c.selector(uid))
	if err != nil {
		return nil, err
	}
	ctrs = slices.DeleteFunc(ctrs, func(l *cri.Container) bool { return !c.ours(l.GetLabels()) })
	boxes = slices.DeleteFunc(boxes, func(l *cri.PodSandbox) bool { return !c.ours(l.GetLabels()) })

	gotCtrs := make([]*Container, len(ctrs))
	gotBoxes := make([]*Sandbox, len(boxes))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(detailCalls)
	for i, l := range boxes {
		if s := c.knownSandbox(l, wait); s != nil {
			gotBoxes[i] = s
			continue
		}
		g.Go(func() (err error) { gotBoxes[i], err = c.detailSandbox(gctx, l, wait); return err })
	}
	for i, l := range ctrs {
		if d := c.knownContainer(l, wait); d != nil {
			gotCtrs[i] = d
			continue
		}
		g.Go(func() (err error) { gotCtrs[i], err = c.detailContainer(gctx, l, wait); return err })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return assemble(boxes, gotBoxes, ctrs, gotCtrs), nil
}

// assemble groups by pod; a nil detail is an object that went away meanwhile.
func assemble(boxes []*cri.PodSandbox, gotBoxes []*Sandbox, ctrs []*cri.Container, gotCtrs []*Container) map[types.UID]*Pod {
	pods := map[types.UID]*Pod{}
	of := func(uid, ns, name string) *Pod {
		p := pods[types.UID(uid)]
		if p == nil {
			p = &Pod{UID: types.UID(uid), Namespace: ns, Name: name}
			pods[p.UID] = p
		}
		return p
	}
	for i, l := range boxes {
		if gotBoxes[i] != nil {
			m := l.GetMetadata()
			p := of(m.GetUid(), m.GetNamespace(), m.GetName())
			p.Sandboxes = append(p.Sandboxes, *gotBoxes[i])
		}
	}
	for i, l := range ctrs {
		if gotCtrs[i] != nil {
			lb := l.GetLabels()
			p := of(lb[pod.LabelPodUID], lb[pod.LabelPodNamespace], lb[pod.LabelPodName])
			p.Containers = append(p.Containers, *gotCtrs[i])
		}
	}
	for _, p := range pods {
		// The attempt comes first: it grows with each try while the clock may
		// be set back, as it is on boards that boot without one.
		slices.SortFunc(p.Sandboxes, func(a, b Sandbox) int {
			return cmp.Or(cmp.Compare(b.Attempt, a.Attempt), b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(a.ID, b.ID))
		})
		slices.SortFunc(p.Containers, func(a, b Container) int {
			return cmp.Or(cmp.Compare(b.Attempt, a.Attempt), b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(a.ID, b.ID))
		})
	}
	return pods
}

// knownSandbox answers from the list or the cache, nil when a call is needed.
func (c *Client) knownSandbox(l *cri.PodSandbox, wait bool) *Sandbox {
	if l.GetState() != cri.PodSandboxState_SANDBOX_READY {
		s := sandboxOf(l)
		c.index.setSandbox(uidOf(l), s, false)
		return s
	}
	if c.index.sandboxEnded(l.GetId()) {
		s := sandboxOf(l)
		s.Ready = false
		return s
	}
	if wait && c.index.lagging(l.GetId()) {
		return nil
	}
	return c.index.readySandbox(l.GetId())
}

func uidOf(l *cri.PodSandbox) types.UID { return types.UID(l.GetMetadata().GetUid()) }

func sandboxOf(l *cri.PodSandbox) *Sandbox {
	return &Sandbox{
		ID: l.GetId(), Attempt: l.GetMetadata().GetAttempt(),
		Ready:     l.GetState() == cri.PodSandboxState_SANDBOX_READY,
		CreatedAt: nanos(l.GetCreatedAt()), Labels: l.GetLabels(), Annotations: l.GetAnnotations(),
	}
}

// detailSandbox reads the addresses of a ready sandbox.
func (c *Client) detailSandbox(ctx context.Context, l *cri.PodSandbox, wait bool) (*Sandbox, error) {
	ask := func() (*Sandbox, bool, error) {
		r, err := invoke(ctx, c, "podsandbox_status", l.GetId(), callTimeout, c.rt.PodSandboxStatus,
			&cri.PodSandboxStatusRequest{PodSandboxId: l.GetId()})
		if err != nil {
			return nil, false, err
		}
		s, st := sandboxOf(l), r.GetStatus()
		s.Ready = st.GetState() == cri.PodSandboxState_SANDBOX_READY
		if !s.Ready {
			return s, false, nil
		}
		hostNet := st.GetLinux().GetNamespaces().GetOptions().GetNetwork() == cri.NamespaceMode_NODE
		if !hostNet {
			s.IPs = addresses(st.GetNetwork())
		}
		return s, hostNet || len(s.IPs) > 0, nil
	}
	s, final, err := ask()
	if err == nil && s.Ready && wait && c.index.lagging(l.GetId()) {
		err = c.settle(ctx, l.GetId(), func() (bool, error) {
			s, final, err = ask()
			return err == nil && !s.Ready, err
		})
	}
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil, nil //nolint:nilnil // gone between list and status
	}
	if err != nil {
		return nil, err
	}
	c.index.setSandbox(uidOf(l), s, final)
	return s, nil
}

func addresses(n *cri.PodSandboxNetworkStatus) []string {
	var ips []string
	if n.GetIp() != "" {
		ips = append(ips, n.GetIp())
	}
	for _, a := range n.GetAdditionalIps() {
		if a.GetIp() != "" {
			ips = append(ips, a.GetIp())
		}
	}
	return ips
}

// knownContainer answers from the cache, nil when a call is needed.
func (c *Client) knownContainer(l *cri.Container, wait bool) *Container {
	state := stateOf(l.GetState())
	if wait && state != StateExited && c.index.lagging(l.GetId()) {
		return nil
	}
	d := c.index.container(l.GetId(), state)
	if d == nil {
		return nil
	}
	return c.withExit(d)
}

// withExit lays an exit that an event told over the runtime's status.
func (c *Client) withExit(d *Container) *Container {
	told := *d
	if c.index.ended(&told) {
		return &told
	}
	return d
}

func (c *Client) detailContainer(ctx context.Context, l *cri.Container, wait bool) (*Container, error) {
	ask := func() (*Container, error) {
		r, err := c.containerStatus(ctx, l.GetId())
		if err != nil {
			return nil, err
		}
		d := containerOf(l, r)
		c.starts.cutShort(d, l)
		return d, nil
	}
	d, err := ask()
	if err == nil && d.State != StateExited && !d.Interrupted && wait && c.index.lagging(l.GetId()) {
		err = c.settle(ctx, l.GetId(), func() (bool, error) {
			d, err = ask()
			return err == nil && (d.State == StateExited || d.Interrupted), err
		})
	}
	if errors.Is(err, errdefs.ErrNotFound) {
		return nil, nil //nolint:nilnil // gone between list and status
	}
	if err != nil {
		return nil, err
	}
	if d.Interrupted {
		return d, nil
	}
	c.index.setContainer(types.UID(l.GetLabels()[pod.LabelPodUID]), d)
	return c.withExit(d), nil
}

func (c *Client) containerStatus(ctx context.Context, id string) (*cri.ContainerStatus, error) {
	r, err := invoke(ctx, c, "container_status", id, callTimeout, c.rt.ContainerStatus,
		&cri.ContainerStatusRequest{ContainerId: id})
	return r.GetStatus(), err
}

// settle asks again until done, the limit, or an error. Reaching the limit is
// not an error: the caller then takes what the runtime says.
func (c *Client) settle(ctx context.Context, id string, done func() (bool, error)) error {
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	limit := time.NewTimer(settleLimit)
	defer limit.Stop()
	for {
		select {
		case <-ctx.Done():
			return translate("wait for the end of "+id, ctx.Err())
		case <-limit.C:
			c.index.gaveUp(id)
			return nil
		case <-tick.C:
			if ok, err := done(); ok || err != nil {
				return err
			}
		}
	}
}

// containerOf joins what the list and the status say.
func containerOf(l *cri.Container, st *cri.ContainerStatus) *Container {
	d := &Container{
		ID: l.GetId(), SandboxID: l.GetPodSandboxId(),
		Name: st.GetMetadata().GetName(), Attempt: st.GetMetadata().GetAttempt(),
		State:     stateOf(st.GetState()),
		CreatedAt: nanos(st.GetCreatedAt()), StartedAt: nanos(st.GetStartedAt()), FinishedAt: nanos(st.GetFinishedAt()),
		ExitCode: st.GetExitCode(), Reason: st.GetReason(), Message: st.GetMessage(),
		ImageRef: st.GetImageRef(), LogPath: st.GetLogPath(),
		Labels: st.GetLabels(), Annotations: st.GetAnnotations(),
	}
	if u := st.GetUser().GetLinux(); u != nil {
		d.User = &v1.LinuxContainerUser{UID: u.GetUid(), GID: u.GetGid(), SupplementalGroups: u.GetSupplementalGroups()}
	}
	d.Init = d.Annotations[pod.AnnotationContainerKind] == kindInit
	// Not the runtime's own name for it, which is never the one in the spec.
	d.SpecImage = cmp.Or(d.Annotations[pod.AnnotationContainerImage], st.GetImage().GetUserSpecifiedImage())
	// containerd 1.6 has no image id field; the list's reference is the id there.
	d.ImageID = cmp.Or(st.GetImageId(), l.GetImageId(), l.GetImageRef())
	return d
}

func stateOf(s cri.ContainerState) ContainerState {
	switch s {
	case cri.ContainerState_CONTAINER_CREATED:
		return StateCreated
	case cri.ContainerState_CONTAINER_RUNNING:
		return StateRunning
	case cri.ContainerState_CONTAINER_EXITED:
		return StateExited
	default:
		return StateUnknown
	}
}

// nanos reads a CRI time: nanoseconds since 1970, 0 for not yet.
func nanos(n int64) time.Time {
	if n <= 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}
