//go:build bench

package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// floor makes the three CRI calls of every pod, some pods at once, and nothing
// else. What it asks for is what the others ask for.
type floor struct {
	inFlight int

	mu   sync.Mutex
	pods map[string]*floorPod
}

type floorPod struct {
	sandbox, container string // ids
	config             *runtimeapi.PodSandboxConfig
}

func (f *floor) name() string { return fmt.Sprintf("floor (%d in flight)", f.inFlight) }
func (f *floor) pid() int     { return 0 }
func (f *floor) start(*lab)   { f.pods = map[string]*floorPod{} }
func (f *floor) stop(*lab)    {}

func (f *floor) remove(l *lab, _ []string) { l.sweep() }

func (f *floor) drop(l *lab, pods []string) {
	var g errgroup.Group
	g.SetLimit(f.inFlight)
	l.began = time.Now()
	for _, p := range pods {
		g.Go(func() error { return f.run(l, p) })
	}
	if err := g.Wait(); err != nil {
		l.t.Fatal(err)
	}
}

func (f *floor) run(l *lab, pod string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	uid := "floor-" + pod
	p := &floorPod{config: &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: pod, Namespace: "default", Uid: uid},
		Hostname:     pod,
		LogDirectory: l.n.Path("logs/pods/default_" + pod + "_" + uid),
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"192.0.2.53"}},
		Labels:       map[string]string{"io.kubernetes.pod.name": pod, "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": uid},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    "/" + l.n.Name + "/kubepods/besteffort/pod" + uid,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}},
		},
	}}
	s, err := runtimeapi.NewRuntimeServiceClient(l.conn[l.tapped]).RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: p.config})
	if err != nil {
		return fmt.Errorf("floor: sandbox of %s: %w", pod, err)
	}
	p.sandbox = s.PodSandboxId
	f.mu.Lock()
	f.pods[pod] = p
	f.mu.Unlock()
	return p.start(ctx, l, pod, 0)
}

// start makes the two calls that a restart needs, too. Like the others it binds
// /etc/hosts and a termination log of the pod's own.
func (p *floorPod) start(ctx context.Context, l *lab, pod string, attempt uint32) error {
	mounts := []*runtimeapi.Mount{{HostPath: l.shared, ContainerPath: "/bench"}}
	for _, path := range []string{"/etc/hosts", "/dev/termination-log"} {
		host := l.n.Path(fmt.Sprintf("stage/%s-%d-%s", pod, attempt, filepath.Base(path)))
		if err := os.WriteFile(host, nil, 0o666); err != nil {
			return err
		}
		mounts = append(mounts, &runtimeapi.Mount{HostPath: host, ContainerPath: path})
	}
	rt := runtimeapi.NewRuntimeServiceClient(l.conn[l.tapped])
	c, err := rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.sandbox, SandboxConfig: p.config,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "main", Attempt: attempt},
			Image:    &runtimeapi.ImageSpec{Image: "busybox:latest"},
			Command:  []string{"/bin/sh", "-c", script(pod)},
			Labels:   p.config.Labels,
			LogPath:  fmt.Sprintf("main/%d.log", attempt),
			Mounts:   mounts,
			Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{CpuShares: 2, OomScoreAdj: 1000},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
		}})
	if err != nil {
		return fmt.Errorf("floor: container of %s: %w", pod, err)
	}
	p.container = c.ContainerId
	if _, err := rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		return fmt.Errorf("floor: start of %s: %w", pod, err)
	}
	return nil
}

// awaitExit subscribes to containerd's exits. What it returns waits for that of
// the pod's container and makes the calls of a restart.
func (f *floor) awaitExit(l *lab, pod string) func() error {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	events, err := eventsapi.NewEventsClient(l.conn[l.tapped]).Subscribe(ctx, &eventsapi.SubscribeRequest{
		Filters: []string{`namespace==k8s.io,topic=="/tasks/exit"`}})
	if err != nil {
		cancel()
		l.t.Fatal(err)
	}
	return func() error {
		defer cancel()
		p := f.pods[pod]
		for {
			e, err := events.Recv()
			if err != nil {
				return fmt.Errorf("floor: events: %w", err)
			}
			var exit eventtypes.TaskExit
			if err := proto.Unmarshal(e.GetEvent().GetValue(), &exit); err != nil {
				return fmt.Errorf("floor: events: %w", err)
			}
			if exit.ContainerID == p.container && exit.ID == p.container {
				return p.start(ctx, l, pod, 1)
			}
		}
	}
}
