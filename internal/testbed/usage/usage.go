// Package usage is a node of files: cgroups, proc and a runtime that say what a pod
// uses, for tests of what is made of it.
package usage

import (
	"context"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/cgroup"
	rt "github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/stats"
	"github.com/nodeagent/nodeagent/pkg/volumes"
)

// What the pod shop/web is made of.
var (
	SandboxID = strings.Repeat("a", 64)
	WebID     = strings.Repeat("b", 64)
	Began     = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
)

// World is what a reader reads; a test changes it before it reads.
type World struct {
	Dir     string
	Now     time.Time
	Options stats.Options
	Layers  map[string]rt.Layer
	Volumes map[string]volumes.Volume
}

// New unpacks an archive of pkg/stats/testdata: "v1" or "v2".
func New(t testing.TB, cgroupVersion string) *World {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	a, err := txtar.ParseFile(filepath.Join(filepath.Dir(here), "../../../pkg/stats/testdata", cgroupVersion+".txtar"))
	if err != nil {
		t.Fatal(err)
	}
	w := &World{Dir: t.TempDir(), Now: Began.Add(10 * time.Second)}
	if err := txtar.Write(a, w.Dir); err != nil {
		t.Fatal(err)
	}
	groups, err := cgroup.New(cgroup.Options{FS: filepath.Join(w.Dir, "cgroup")})
	if err != nil {
		t.Fatal(err)
	}
	ended := Pod()
	ended.UID, ended.Name, ended.Status.Phase = "u2", "ended", v1.PodSucceeded
	w.Options = stats.Options{
		Cgroups: groups, Runtime: Runtime{w}, Volumes: fakeVolumes{w}, Proc: filepath.Join(w.Dir, "proc"), Sys: filepath.Join(w.Dir, "sys"),
		SandboxImage: "pause:1", StateDir: w.Dir, PodLogDir: filepath.Join(w.Dir, "logs"),
		OwnFiles: func(types.UID) (int64, error) { return 4096, nil },
		Pods:     func() []*v1.Pod { return []*v1.Pod{Pod(), ended} }, Clock: func() time.Time { return w.Now },
	}
	return w
}

// Reader reads the world.
func (w *World) Reader() *stats.Reader { return stats.New(w.Options) }

// Pod is shop/web, with one container.
func Pod() *v1.Pod {
	p := &v1.Pod{}
	p.Namespace, p.Name, p.UID, p.Labels = "shop", "web", "u1", map[string]string{"app": "web"}
	p.Spec.Containers = []v1.Container{{Name: "web", Resources: v1.ResourceRequirements{
		Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse("500m")},
	}}}
	p.Status.Phase, p.Status.StartTime = v1.PodRunning, &metav1.Time{Time: Began}
	return p
}

// Runtime knows one sandbox and one container.
type Runtime struct{ World *World }

func (Runtime) Known(id string) (rt.Known, bool) {
	switch id {
	case SandboxID:
		return rt.Known{UID: "u1", Sandbox: true}, true
	case WebID:
		return rt.Known{UID: "u1", Container: &rt.Container{ID: WebID, Name: "web", SpecImage: "nginx:1", Attempt: 3, StartedAt: Began}}, true
	}
	return rt.Known{}, false
}

func (f Runtime) ImageFilesystems(context.Context) (images, containers []rt.Filesystem, err error) {
	list := []rt.Filesystem{{Path: f.World.Dir, Bytes: 1000, Inodes: 10}}
	return list, list, nil
}

func (f Runtime) Layers(context.Context) (map[string]rt.Layer, error) { return f.World.Layers, nil }

type fakeVolumes struct{ w *World }

func (f fakeVolumes) Usage(context.Context, types.UID) (map[string]volumes.Volume, error) {
	return f.w.Volumes, nil
}

func (f fakeVolumes) Of(types.UID) (out []volumes.Volume, err error) {
	for name, v := range f.w.Volumes {
		v.Name = name
		out = append(out, v)
	}
	return out, nil
}
