//go:build bench

package bench

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/internal/testbed"
)

// lab is one node on which systems take turns.
type lab struct {
	t      *testing.T
	n      *testbed.Node
	shared string    // the folder that pods write to
	began  time.Time // when the last drop began
	w      *watcher
	tap    *tap
	conn   map[bool]*grpc.ClientConn // the floor's, by whether it goes through the tap
	tapped bool                      // systems that start now go through the tap
	count  int

	manifest func(l *lab, pod string) string // of what is dropped
}

func newLab(t *testing.T) *lab {
	l := &lab{t: t, n: testbed.NewNode(t), conn: map[bool]*grpc.ClientConn{}, manifest: manifest}
	l.shared = l.n.Path("shared")
	for _, d := range []string{l.shared, l.n.Path("stage"), l.n.Path("kubelet-manifests"), l.n.Path("kubelet"), l.n.Path("bin")} {
		if err := os.MkdirAll(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	rootCgroup(l)
	l.w = newWatcher(t, l.shared)
	l.tap = newTap(t, l.n.Path("tap.sock"), l.n.RuntimeSocket())
	for _, tapped := range []bool{false, true} {
		l.tapped = tapped
		c, err := grpc.NewClient("unix://"+l.runtime(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		l.conn[tapped] = c
	}
	// The agent writes the default network, which all then use.
	l.turn(&agent{}, false, func() {})
	return l
}

// runtime is the socket that the system whose turn it is speaks to.
func (l *lab) runtime() string {
	if l.tapped {
		return l.n.Path("tap.sock")
	}
	return l.n.RuntimeSocket()
}

// program copies a binary to the node once: processes that run the same file
// share its pages, and Pss then shows each a part.
func (l *lab) program(src string) string {
	l.t.Helper()
	dst := l.n.Path("bin/" + filepath.Base(src))
	if _, err := os.Stat(dst); err == nil {
		return dst
	}
	in, err := os.Open(src)
	if err != nil {
		l.t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		l.t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		l.t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		l.t.Fatal(err)
	}
	return dst
}

// rootCgroup makes the node's cgroup, which kubelet wants to exist.
func rootCgroup(l *lab) {
	hierarchies, err := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	if err != nil {
		l.t.Fatal(err)
	}
	for _, h := range append(hierarchies, "/sys/fs/cgroup/cgroup.procs") {
		if _, err := os.Stat(h); err != nil {
			continue
		}
		if err := os.MkdirAll(filepath.Join(filepath.Dir(h), l.n.Name), 0o755); err != nil {
			l.t.Fatal(err)
		}
	}
}

// turn gives the node to a system, and takes all it made away afterwards.
func (l *lab) turn(s system, tapped bool, measure func()) {
	l.tapped = tapped
	s.start(l)
	measure()
	s.stop(l)
	l.sweep()
}

// names are new pod names.
func (l *lab) names(n int) []string {
	pods := make([]string, n)
	for i := range pods {
		l.count++
		pods[i] = fmt.Sprintf("b%05d", l.count)
	}
	return pods
}

// settle is what each system gets to tidy up after its pods have ended, so that
// this does not run into the next sample.
const settle = 300 * time.Millisecond

// gone removes pods and waits until none of them runs.
func (l *lab) gone(s system, pods []string) {
	s.remove(l, pods)
	l.n.Eventually(5*time.Minute, s.name()+" ends its pods", func() error {
		for _, b := range l.n.Sandboxes() {
			if b.State == runtimeapi.PodSandboxState_SANDBOX_READY {
				return fmt.Errorf("sandbox %s is ready", b.Metadata.Name)
			}
		}
		return nil
	})
	time.Sleep(settle)
}

// sweep removes every sandbox, whoever made it. One may go by itself: a system
// that has been stopped can have asked for that as its last.
func (l *lab) sweep() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	var g errgroup.Group
	g.SetLimit(4)
	for _, b := range l.n.Sandboxes() {
		g.Go(func() error {
			if _, err := l.n.CRI().StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: b.Id}); err != nil && status.Code(err) != codes.NotFound {
				return err
			}
			_, err := l.n.CRI().RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: b.Id})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		l.t.Fatal(err)
	}
}
