package usage_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	testbed "github.com/nodeagent/nodeagent/internal/testbed/usage"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/server/usage"
)

// many knows a sandbox and a container of each of a hundred pods.
type many struct{ testbed.Runtime }

func (many) Known(id string) (runtime.Known, bool) {
	uid := types.UID(strings.TrimLeft(id[1:], "0"))
	if id[0] == 'a' {
		return runtime.Known{UID: uid, Sandbox: true}, true
	}
	return runtime.Known{UID: uid, Container: &runtime.Container{ID: id, Name: "web", SpecImage: "nginx:1", StartedAt: testbed.Began}}, true
}

// BenchmarkScrape reads a hundred pods from files and writes each of the texts.
func BenchmarkScrape(b *testing.B) {
	for _, version := range []string{"v1", "v2"} {
		w := testbed.New(b, version)
		var pods []*v1.Pod
		for i := range 100 {
			p := testbed.Pod()
			p.UID, p.Name = types.UID(fmt.Sprintf("u%d", i+100)), fmt.Sprintf("web-%d", i)
			pods = append(pods, p)
		}
		dirs, err := filepath.Glob(w.Dir + "/cgroup/*/kubepods/burstable/podu1")
		if version == "v2" {
			dirs = []string{w.Dir + "/cgroup/kubepods/burstable/podu1"}
		}
		if err != nil || len(dirs) == 0 {
			b.Fatal("no cgroups", err)
		}
		for _, dir := range dirs {
			for _, p := range pods {
				to := filepath.Join(filepath.Dir(dir), "pod"+string(p.UID))
				if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
					b.Fatal(err)
				}
				for _, id := range []string{testbed.SandboxID, testbed.WebID} {
					if err := os.Rename(filepath.Join(to, id), filepath.Join(to, id[:1]+strings.Repeat("0", 63-len(p.UID))+string(p.UID))); err != nil {
						b.Fatal(err)
					}
				}
			}
		}
		w.Options.Pods = func() []*v1.Pod { return pods }
		w.Options.Runtime = many{testbed.Runtime{World: w}}
		r := w.Reader()
		b.Run("cadvisor/"+version, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := usage.CAdvisor(io.Discard, r, usage.Machine{}); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("resource/"+version, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := usage.Resource(io.Discard, r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
