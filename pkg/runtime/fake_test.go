package runtime

import (
	"context"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	containerdtypes "github.com/containerd/containerd/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakeRuntime is a CRI runtime in memory, served on a real unix socket. It
// keeps state, reserves names, refuses bad references and says no in the way
// that containerd does.
type fakeRuntime struct {
	cri.UnimplementedRuntimeServiceServer
	cri.UnimplementedImageServiceServer

	name      string
	criEvents bool // has GetContainerEvents
	ownEvents bool // has containerd's event service

	mu       sync.Mutex
	calls    map[string]int
	seq      int
	boxes    map[string]*fakeBox
	ctrs     map[string]*fakeCtr
	reserved map[string]string // name → id, also without a listed object
	images   map[string]*cri.Image
	changed  chan struct{} // closed and replaced on each subscription

	criSubs map[chan *cri.ContainerEventResponse]struct{}
	ownSubs map[chan *containerdtypes.Envelope]struct{}

	// strays are containers that CRI does not remove because of a task that it
	// does not know of; the value says whether the task still runs.
	strays map[string]bool
	// cutShort makes starts end without an answer.
	cutShort bool
	// records are the ids that containerd's container service lists.
	records []string
	// loseReply makes the next create of that kind succeed and its answer get lost.
	loseReply string
	// onReserved runs, unlocked, when a create meets a reserved name.
	onReserved func()

	path   string
	server *grpc.Server
	served sync.WaitGroup
}

type fakeBox struct {
	cfg     *cri.PodSandboxConfig
	ready   bool
	created int64
	ip      string
}

type fakeCtr struct {
	box    string
	cfg    *cri.ContainerConfig
	st     *cri.ContainerStatus
	lag    int // status calls that still say running after the exit; -1: all
	ended  bool
	code   int32
	reason string
}

func newFake(t *testing.T, change func(*fakeRuntime)) *fakeRuntime {
	t.Helper()
	f := &fakeRuntime{
		name: "fakeruntime", criEvents: true, calls: map[string]int{}, boxes: map[string]*fakeBox{}, ctrs: map[string]*fakeCtr{},
		reserved: map[string]string{}, images: map[string]*cri.Image{"app:1": {Id: "sha256:1", RepoTags: []string{"app:1"}, Uid: &cri.Int64Value{}}},
		changed: make(chan struct{}), criSubs: map[chan *cri.ContainerEventResponse]struct{}{}, ownSubs: map[chan *containerdtypes.Envelope]struct{}{},
		path: filepath.Join(t.TempDir(), "cri.sock"),
	}
	if change != nil {
		change(f)
	}
	f.start(t)
	t.Cleanup(f.stop)
	return f
}

func (f *fakeRuntime) start(t *testing.T) {
	t.Helper()
	l, err := net.Listen("unix", f.path)
	if err != nil {
		t.Fatal(err)
	}
	f.server = grpc.NewServer()
	cri.RegisterRuntimeServiceServer(f.server, f)
	cri.RegisterImageServiceServer(f.server, f)
	containersapi.RegisterContainersServer(f.server, fakeRecords{ids: f.records})
	if f.ownEvents {
		eventsapi.RegisterEventsServer(f.server, fakeEvents{f: f})
		tasksapi.RegisterTasksServer(f.server, fakeTasks{f: f})
	}
	f.served.Go(func() { _ = f.server.Serve(l) }) // ends with stop
}

// stop breaks every connection, as a killed daemon does; the state stays.
func (f *fakeRuntime) stop() {
	f.server.Stop()
	f.served.Wait()
}

func (f *fakeRuntime) count(op string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}

func (f *fakeRuntime) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: f.name, RuntimeVersion: "1.2.3", RuntimeApiVersion: "v1"}, nil
}

func (f *fakeRuntime) Status(_ context.Context, r *cri.StatusRequest) (*cri.StatusResponse, error) {
	resp := &cri.StatusResponse{Status: &cri.RuntimeStatus{Conditions: []*cri.RuntimeCondition{
		{Type: cri.RuntimeReady, Status: true},
		{Type: cri.NetworkReady, Status: false, Reason: "NetworkPluginNotReady", Message: "no network"},
		{Type: "SomethingElse", Status: false, Message: "not ours"},
	}}}
	if r.GetVerbose() {
		resp.Info = map[string]string{"config": `{"sandboxImage":"pause:9","containerd":{"defaultRuntimeName":"runc",
			"runtimes":{"runc":{"runtimeType":"io.containerd.runc.v2","options":{"SystemdCgroup":true}},"kata":{}}}}`}
	}
	return resp, nil
}

func (f *fakeRuntime) id(kind string) string { f.seq++; return fmt.Sprintf("%s%d", kind, f.seq) }

// reserve takes a name as containerd's registrar does: the error has no code.
func (f *fakeRuntime) reserve(name, id string) error {
	if holder, ok := f.reserved[name]; ok {
		return status.Errorf(codes.Unknown, "failed to reserve name %q: name %q is reserved for %q", name, name, holder)
	}
	f.reserved[name] = id
	return nil
}

func boxName(m *cri.PodSandboxMetadata) string {
	return fmt.Sprintf("%s_%s_%s_%d", m.GetName(), m.GetNamespace(), m.GetUid(), m.GetAttempt())
}

func ctrName(m *cri.ContainerMetadata, b *cri.PodSandboxMetadata) string {
	return fmt.Sprintf("%s_%s_%s_%s_%d", m.GetName(), b.GetName(), b.GetNamespace(), b.GetUid(), m.GetAttempt())
}

// lost drops the answer of one call.
func (f *fakeRuntime) lost(op string) error {
	if f.loseReply != op {
		return nil
	}
	f.loseReply = ""
	return status.Error(codes.Unavailable, "transport is closing")
}

func (f *fakeRuntime) RunPodSandbox(_ context.Context, r *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls["run"]++
	m := r.GetConfig().GetMetadata()
	if m.GetName() == "" || m.GetUid() == "" || m.GetNamespace() == "" {
		return nil, status.Error(codes.InvalidArgument, "sandbox without name, namespace or uid")
	}
	id := f.id("box")
	if err := f.reserve(boxName(m), id); err != nil {
		if f.onReserved != nil {
			f.mu.Unlock()
			f.onReserved()
			f.mu.Lock()
		}
		return nil, err
	}
	f.boxes[id] = &fakeBox{cfg: r.GetConfig(), ready: true, created: int64(f.seq), ip: fmt.Sprintf("10.0.0.%d", f.seq)}
	return &cri.RunPodSandboxResponse{PodSandboxId: id}, f.lost("run")
}

func (f *fakeRuntime) StopPodSandbox(_ context.Context, r *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.boxes[r.GetPodSandboxId()]
	if b == nil {
		return nil, status.Error(codes.NotFound, "no such sandbox")
	}
	b.ready = false
	return &cri.StopPodSandboxResponse{}, nil
}

func (f *fakeRuntime) RemovePodSandbox(_ context.Context, r *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.boxes[r.GetPodSandboxId()]
	if b == nil {
		return nil, status.Error(codes.NotFound, "no such sandbox")
	}
	if b.ready {
		return nil, status.Error(codes.FailedPrecondition, "sandbox is running")
	}
	delete(f.boxes, r.GetPodSandboxId())
	delete(f.reserved, boxName(b.cfg.GetMetadata()))
	for id, c := range f.ctrs {
		if c.box == r.GetPodSandboxId() {
			f.removeCtr(id)
		}
	}
	return &cri.RemovePodSandboxResponse{}, nil
}

func (f *fakeRuntime) PodSandboxStatus(_ context.Context, r *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls["boxStatus"]++
	b := f.boxes[r.GetPodSandboxId()]
	if b == nil {
		return nil, status.Error(codes.NotFound, "no such sandbox")
	}
	return &cri.PodSandboxStatusResponse{Status: f.boxStatus(r.GetPodSandboxId())}, nil
}

func (f *fakeRuntime) boxStatus(id string) *cri.PodSandboxStatus {
	b := f.boxes[id]
	st := &cri.PodSandboxStatus{Id: id, Metadata: b.cfg.GetMetadata(), CreatedAt: b.created, Labels: b.cfg.GetLabels(),
		Network: &cri.PodSandboxNetworkStatus{Ip: b.ip},
		Linux:   &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{Options: b.cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()}}}
	if !b.ready {
		st.State = cri.PodSandboxState_SANDBOX_NOTREADY
	}
	return st
}

func matches(labels, sel map[string]string) bool {
	for k, v := range sel {
		if labels[k] != v {
			return false
		}
	}
	return true
}

func (f *fakeRuntime) ListPodSandbox(_ context.Context, r *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls["listBoxes"]++
	resp := &cri.ListPodSandboxResponse{}
	for id, b := range f.boxes {
		fl := r.GetFilter()
		if !matches(b.cfg.GetLabels(), fl.GetLabelSelector()) || fl.GetId() != "" && fl.GetId() != id {
			continue
		}
		st := f.boxStatus(id)
		resp.Items = append(resp.Items, &cri.PodSandbox{Id: id, Metadata: st.Metadata, State: st.State, CreatedAt: st.CreatedAt,
			Labels: maps.Clone(b.cfg.GetLabels()), Annotations: b.cfg.GetAnnotations()})
	}
	return resp, nil
}

func (f *fakeRuntime) CreateContainer(_ context.Context, r *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls["create"]++
	b := f.boxes[r.GetPodSandboxId()]
	if b == nil || !b.ready {
		return nil, status.Error(codes.NotFound, "no such sandbox")
	}
	if !proto.Equal(r.GetSandboxConfig(), b.cfg) {
		return nil, status.Error(codes.InvalidArgument, "not the configuration that the sandbox was made from")
	}
	cfg := r.GetConfig()
	img := f.images[cfg.GetImage().GetImage()]
	if img == nil {
		return nil, status.Error(codes.NotFound, "no such image")
	}
	id := f.id("ctr")
	if err := f.reserve(ctrName(cfg.GetMetadata(), b.cfg.GetMetadata()), id); err != nil {
		return nil, err
	}
	f.ctrs[id] = &fakeCtr{box: r.GetPodSandboxId(), cfg: cfg, st: &cri.ContainerStatus{
		Id: id, Metadata: cfg.GetMetadata(), CreatedAt: int64(f.seq), Image: cfg.GetImage(), ImageRef: "repo@" + img.GetId(),
		Labels: cfg.GetLabels(), Annotations: cfg.GetAnnotations(), LogPath: cfg.GetLogPath(),
	}}
	return &cri.CreateContainerResponse{ContainerId: id}, f.lost("create")
}

func (f *fakeRuntime) ctr(id string) (*fakeCtr, error) {
	c := f.ctrs[id]
	if c == nil {
		return nil, status.Errorf(codes.NotFound, "no container %s", id)
	}
	return c, nil
}

func (f *fakeRuntime) StartContainer(_ context.Context, r *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := f.ctr(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if c.st.State != cri.ContainerState_CONTAINER_CREATED {
		return nil, status.Errorf(codes.Unknown, "container is in %s state", c.st.State)
	}
	if len(c.cfg.GetCommand()) > 0 && c.cfg.GetCommand()[0] == "/no/such" {
		c.st.State, c.st.FinishedAt, c.st.ExitCode, c.st.Reason = cri.ContainerState_CONTAINER_EXITED, 1, 128, "StartError"
		return nil, status.Error(codes.Unknown, "exec: /no/such: no such file or directory")
	}
	if f.cutShort {
		return nil, status.Error(codes.Unavailable, "error reading from server: EOF")
	}
	c.st.State, c.st.StartedAt = cri.ContainerState_CONTAINER_RUNNING, time.Now().UnixNano()
	return &cri.StartContainerResponse{}, f.lost("start")
}

func (f *fakeRuntime) StopContainer(_ context.Context, r *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[fmt.Sprintf("stop %d", r.GetTimeout())]++
	if _, err := f.ctr(r.GetContainerId()); err != nil {
		return nil, err
	}
	return &cri.StopContainerResponse{}, nil
}

func (f *fakeRuntime) removeCtr(id string) {
	c := f.ctrs[id]
	delete(f.ctrs, id)
	m := &cri.PodSandboxMetadata{Name: c.st.Labels["io.kubernetes.pod.name"], Namespace: c.st.Labels["io.kubernetes.pod.namespace"], Uid: c.st.Labels["io.kubernetes.pod.uid"]}
	delete(f.reserved, ctrName(c.st.Metadata, m))
}

func (f *fakeRuntime) RemoveContainer(_ context.Context, r *cri.RemoveContainerRequest) (*cri.RemoveContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.ctr(r.GetContainerId()); err != nil {
		return nil, err
	}
	if _, ok := f.strays[r.GetContainerId()]; ok {
		return nil, status.Errorf(codes.FailedPrecondition, "failed to delete containerd container: cannot delete running task %s", r.GetContainerId())
	}
	f.removeCtr(r.GetContainerId())
	return &cri.RemoveContainerResponse{}, nil
}

func (f *fakeRuntime) ListContainers(_ context.Context, r *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls["listCtrs"]++
	resp := &cri.ListContainersResponse{}
	for id, c := range f.ctrs {
		fl := r.GetFilter()
		if !matches(c.st.Labels, fl.GetLabelSelector()) || fl.GetId() != "" && fl.GetId() != id || fl.GetPodSandboxId() != "" && fl.GetPodSandboxId() != c.box {
			continue
		}
		resp.Containers = append(resp.Containers, &cri.Container{Id: id, PodSandboxId: c.box, Metadata: c.st.Metadata, Image: c.st.Image,
			ImageRef: "sha256:1", State: c.st.State, CreatedAt: c.st.CreatedAt, Labels: c.st.Labels, Annotations: c.st.Annotations})
	}
	return resp, nil
}

func (f *fakeRuntime) ContainerStatus(_ context.Context, r *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls["ctrStatus"]++
	c, err := f.ctr(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if c.ended && c.lag > 0 {
		c.lag--
	}
	if c.ended && c.lag == 0 {
		c.settle()
	}
	st := proto.Clone(c.st).(*cri.ContainerStatus)
	if st.CreatedAt == 0 { // containerd takes its own container's time then; the list shows 0
		st.CreatedAt = 1
	}
	return &cri.ContainerStatusResponse{Status: st}, nil
}

func (c *fakeCtr) settle() {
	c.st.State, c.st.ExitCode, c.st.Reason = cri.ContainerState_CONTAINER_EXITED, c.code, c.reason
	c.st.FinishedAt = c.st.StartedAt + int64(time.Second)
}

// end lets the process of a container end: events go out now, the status
// follows after lag calls (-1: when confirm is called).
func (f *fakeRuntime) end(id string, code int32, reason string, lag int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.ctrs[id]
	c.ended, c.code, c.reason, c.lag = true, code, reason, lag
	if lag == 0 {
		c.settle()
	}
	f.sendCRI(&cri.ContainerEventResponse{ContainerId: id, ContainerEventType: cri.ContainerEventType_CONTAINER_STOPPED_EVENT,
		CreatedAt: 77, PodSandboxStatus: f.boxStatus(c.box)})
	f.sendOwn("/tasks/exit", &eventtypes.TaskExit{ContainerID: id, ID: id, ExitStatus: uint32(code), ExitedAt: timestamppb.New(time.Unix(99, 0))})
}

func (f *fakeRuntime) confirm(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ctrs[id].settle()
}

func (f *fakeRuntime) ImageStatus(_ context.Context, r *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &cri.ImageStatusResponse{Image: f.images[r.GetImage().GetImage()]}, nil
}

func (f *fakeRuntime) ListImages(context.Context, *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	resp := &cri.ListImagesResponse{}
	for _, i := range f.images {
		resp.Images = append(resp.Images, i)
	}
	return resp, nil
}

func (f *fakeRuntime) PullImage(_ context.Context, r *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	if a := r.GetAuth(); a.GetUsername() != "u" || a.GetPassword() != "p" || a.GetServerAddress() != "reg" {
		return nil, status.Error(codes.Unknown, "401 Unauthorized")
	}
	return &cri.PullImageResponse{ImageRef: r.GetImage().GetImage() + "@sha256:1"}, nil
}

func (f *fakeRuntime) RemoveImage(_ context.Context, r *cri.RemoveImageRequest) (*cri.RemoveImageResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.images[r.GetImage().GetImage()] == nil {
		return nil, status.Error(codes.NotFound, "no such image")
	}
	delete(f.images, r.GetImage().GetImage())
	return &cri.RemoveImageResponse{}, nil
}
