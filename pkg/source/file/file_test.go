package file

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/store"
)

func TestFolder(t *testing.T) {
	b := newBench(t)
	b.put("b.yaml", manifestOf("b1", "i:1")+"---\n"+manifestOf("b2", "i:1"))
	b.run()
	b.waitFor("b.yaml:b1=i:1 b.yaml:b2=i:1")
	b.put("a.json", `{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"containers":[{"name":"c","image":"i:2"}]}}]}`)
	b.waitFor("a.json:a=i:2 b.yaml:b1=i:1 b.yaml:b2=i:1")
	b.write("b.yaml", manifestOf("b2", "i:3"))
	b.waitFor("a.json:a=i:2 b.yaml:b2=i:3")
	b.must(os.Remove(b.path("a.json")))
	b.waitFor("b.yaml:b2=i:3")
	b.must(os.Rename(b.path("b.yaml"), b.path("c.yaml")))
	b.waitFor("c.yaml:b2=i:3")
	b.must(os.Rename(b.path("c.yaml"), filepath.Join(b.dir, "..", "c.yaml")))
	b.waitFor("")
	b.stop()
	for _, r := range b.sink.reports {
		if r.err != nil || len(r.snap.Problems) > 0 {
			t.Errorf("unexpected: %s", r)
		}
	}
}

func TestEmptyFolderSyncs(t *testing.T) {
	b := newBench(t)
	b.run()
	b.waitFor("")
}

// TestOrder: the store lets the first of two win, so that files come by name.
func TestOrder(t *testing.T) {
	b := newBench(t)
	for _, name := range []string{"z.yaml", "m.json", "a.yaml", "B.yaml", "10.yaml", "9.yaml"} {
		b.put(name, manifestOf("same", "i:"+strings.ToLower(name)))
	}
	b.run()
	b.waitFor("10.yaml:same=i:10.yaml 9.yaml:same=i:9.yaml B.yaml:same=i:b.yaml a.yaml:same=i:a.yaml m.json:same=i:m.json z.yaml:same=i:z.yaml")
}

func TestOneFile(t *testing.T) {
	b := newBench(t)
	file := b.path("pods.bak") // whatever its name: the user said so
	b.put("pods.bak", manifestOf("a", "i:1"))
	b.put("other.yaml", manifestOf("other", "i:1"))
	b.run(func(s *Source) { s.o.Path = file })
	b.waitFor("pods.bak:a=i:1")
	b.write("pods.bak", manifestOf("a", "i:2"))
	b.waitFor("pods.bak:a=i:2")
	b.put("pods.bak", manifestOf("a", "i:3"))
	b.waitFor("pods.bak:a=i:3")
	b.put("pods.bak", "spec: [")
	b.waitProblem("pods.bak", file)
	b.must(os.Remove(file))
	b.waitFailure("does not exist")
	b.put("pods.bak", manifestOf("a", "i:4"))
	b.waitFor("pods.bak:a=i:4")
	b.must(os.Remove(file))
	b.waitFailure("does not exist")
	b.must(os.Mkdir(file, 0o755))
	b.waitFailure("empty folder")
	b.put("pods.bak/in.yaml", manifestOf("a", "i:5"))
	b.waitFor("in.yaml:a=i:5")
	b.put("pods.bak/in.yaml", "# nothing is wanted\n")
	b.waitFor("")
}

func TestOneFileBehindSymlinks(t *testing.T) {
	b := newBench(t)
	other := filepath.Join(filepath.Dir(b.dir), "elsewhere")
	b.must(os.Mkdir(other, 0o755))
	for _, v := range []string{"1", "2"} {
		b.must(os.WriteFile(filepath.Join(other, v+".yaml"), []byte(manifestOf("a", "i:"+v)), 0o644))
	}
	b.must(os.Symlink("../elsewhere/1.yaml", b.path("middle")))
	b.must(os.Symlink(b.path("middle"), b.path("pods.yaml")))
	b.run(func(s *Source) { s.o.Path = b.path("pods.yaml") })
	b.waitFor("pods.yaml:a=i:1")
	b.relink("../elsewhere/2.yaml", "middle")
	b.waitFor("pods.yaml:a=i:2")
	b.must(os.WriteFile(filepath.Join(other, "2.yaml"), []byte(manifestOf("a", "i:3")), 0o644))
	b.waitFor("pods.yaml:a=i:3")
	b.must(os.Rename(filepath.Join(other, "1.yaml"), filepath.Join(other, "2.yaml")))
	b.waitFor("pods.yaml:a=i:1")
	b.must(os.Remove(filepath.Join(other, "2.yaml")))
	b.waitFailure("does not exist")
	b.must(os.WriteFile(filepath.Join(other, "2.yaml"), []byte(manifestOf("a", "i:4")), 0o644))
	b.waitFor("pods.yaml:a=i:4")
}

// relink replaces a symlink atomically.
func (b *bench) relink(target, name string) {
	b.Helper()
	tmp := filepath.Join(filepath.Dir(b.dir), "tmp-link")
	b.must(os.Symlink(target, tmp))
	b.must(os.Rename(tmp, b.path(name)))
}

// TestPathComesAndGoes: a path that is not there is a failure, which keeps pods,
// and never an empty snapshot; it is followed again when it is back.
func TestPathComesAndGoes(t *testing.T) {
	b := newBench(t)
	deep := b.path("some/where/manifests")
	b.sink.check = func(s store.Snapshot) error { return b.needs(s, "a") }
	b.run(func(s *Source) { s.o.Path = deep })
	b.waitFailure(deep + " does not exist")
	b.must(os.Mkdir(b.path("ready"), 0o755))
	b.put("ready/a.yaml", manifestOf("a", "i:1"))
	b.must(os.MkdirAll(b.path("some/where"), 0o755))
	b.must(os.Rename(b.path("ready"), deep))
	b.waitFor("a.yaml:a=i:1")

	for _, gone := range []string{"some/where/manifests", "some/where"} {
		b.must(os.Rename(b.path(gone), b.path("away")))
		b.waitFailure("does not exist")
		// While it is away it is not the folder that was meant.
		away := strings.Replace(deep, b.path(gone), b.path("away"), 1)
		b.must(os.WriteFile(filepath.Join(away, "a.yaml"), []byte(manifestOf("a", "i:2-"+filepath.Base(gone))), 0o644))
		b.must(os.Rename(b.path("away"), b.path(gone)))
		b.waitFor("a.yaml:a=i:2-" + filepath.Base(gone))
		b.put("some/where/manifests/a.yaml", manifestOf("a", "i:1"))
		b.waitFor("a.yaml:a=i:1")
	}

	// Made anew: empty first, then filled.
	b.must(os.Rename(deep, b.path("old")))
	b.waitFailure("does not exist")
	b.must(os.Mkdir(deep, 0o755))
	b.waitFailure("replaced by an empty folder")
	b.put("some/where/manifests/a.yaml", manifestOf("a", "i:3"))
	b.waitFor("a.yaml:a=i:3")

	// Not a folder at all.
	b.must(os.Rename(deep, b.path("older")))
	b.must(unix.Mkfifo(deep, 0o600))
	b.waitFailure("is a FIFO")
	b.must(os.Remove(deep))
	b.must(os.Symlink(deep, deep))
	b.waitFailure("too many levels of symbolic links")
	b.must(os.Remove(deep))
	b.must(os.Rename(b.path("older"), deep))
	b.waitFor("a.yaml:a=i:3")
}

// needs is what a snapshot must not lack.
func (b *bench) needs(s store.Snapshot, pods ...string) error {
	have := map[string]bool{}
	for _, o := range s.Objects {
		have[o.Pod.Name] = true
	}
	for _, name := range pods {
		if !have[name] {
			return &missing{name, report{snap: s}.String()}
		}
	}
	return nil
}

type missing struct{ pod, in string }

func (m *missing) Error() string { return "pod " + m.pod + " is missing in " + m.in }

// TestFolderIsRefilled: pods are not given up while a folder that was made anew
// is being filled file by file.
func TestFolderIsRefilled(t *testing.T) {
	b := newBench(t)
	b.put("a.yaml", manifestOf("a", "i:1"))
	b.put("b.yaml", manifestOf("b", "i:1"))
	b.sink.check = func(s store.Snapshot) error { return b.needs(s, "a", "b") }
	b.run()
	b.waitFor("a.yaml:a=i:1 b.yaml:b=i:1")
	b.must(os.Rename(b.dir, b.dir+".old"))
	b.waitFailure("does not exist")
	b.must(os.Mkdir(b.dir, 0o755))
	b.waitFailure("empty folder")
	b.put("a.yaml", manifestOf("a", "i:2"))
	b.wait("the first file", func(r report) bool { return strings.HasPrefix(objects(r), "a.yaml:a=i:2") })
	b.put("b.yaml", manifestOf("b", "i:2"))
	b.waitFor("a.yaml:a=i:2 b.yaml:b=i:2")
	b.stop()
	b.sink.check = nil
	b.must(b.sink.broken)
	// What was not put back is given up in the end.
	b.sink = newSink()
	b.run()
	b.waitFor("a.yaml:a=i:2 b.yaml:b=i:2")
	b.must(os.Mkdir(b.dir+".new", 0o755))
	b.must(os.Rename(b.dir, b.dir+".older"))
	b.must(os.Rename(b.dir+".new", b.dir))
	b.put("b.yaml", manifestOf("b", "i:3"))
	b.waitFor("b.yaml:b=i:3")
}

// TestServices: other kinds come, change and go like pods, and one that has a
// pod's name is not that pod.
func TestServices(t *testing.T) {
	b := newBench(t)
	service := func(name string, port int) string {
		return fmt.Sprintf("{apiVersion: v1, kind: Service, metadata: {name: %s}, spec: {ports: [{port: %d}]}}\n", name, port)
	}
	holds := func(r report, port int32) bool {
		for _, o := range r.snap.Objects {
			if s, ok := o.Other.(*v1.Service); ok && s.Name == "same" {
				return s.Spec.Ports[0].Port == port
			}
		}
		return port == 0
	}
	b.put("pod.yaml", manifestOf("same", "i:1"))
	b.put("service.yaml", service("same", 80))
	b.run()
	b.wait("a pod and a Service of one name", func(r report) bool { return len(r.snap.Objects) == 2 && holds(r, 80) })
	b.write("service.yaml", service("same", 81))
	b.wait("another port", func(r report) bool { return holds(r, 81) })
	b.must(os.Remove(b.path("service.yaml")))
	b.wait("the pod alone", func(r report) bool { return len(r.snap.Objects) == 1 && holds(r, 0) })
}
