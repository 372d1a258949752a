package file

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// churn is a way to change a folder again and again.
type churn struct {
	name  string
	setup func(b *bench)
	step  func(b *bench, i int)
}

func churns() []churn {
	rename := func(b *bench, from, to string) { b.must(os.Rename(b.path(from), b.path(to))) }
	return []churn{
		{
			"a file is renamed to and fro",
			func(b *bench) { b.put("a.yaml", manifestOf("a", "i:0")) },
			func(b *bench, i int) {
				rename(b, "a.yaml", "z.yaml")
				rename(b, "z.yaml", "a.yaml")
			},
		}, {
			"a file is replaced",
			func(b *bench) { b.put("a.yaml", manifestOf("a", "i:0")) },
			func(b *bench, i int) { b.put("a.yaml", manifestOf("a", fmt.Sprint("i:", i))) },
		}, {
			"a file is rewritten in place",
			func(b *bench) { b.put("a.yaml", manifestOf("a", "i:0")) },
			func(b *bench, i int) { b.write("a.yaml", manifestOf("a", fmt.Sprint("i:", i))) },
		}, {
			"two files change places",
			func(b *bench) {
				b.put("a.yaml", manifestOf("a", "i:0"))
				b.put("z.yaml", manifestOf("b", "i:0"))
			},
			func(b *bench, i int) {
				rename(b, "a.yaml", "m.yaml")
				rename(b, "z.yaml", "a.yaml")
				rename(b, "m.yaml", "z.yaml")
			},
		}, {
			"..data is switched",
			func(b *bench) {
				b.generation("..g", 0)
				b.must(os.Symlink("..g0", b.path("..data")))
				b.must(os.Symlink("..data/a.yaml", b.path("a.yaml")))
				b.must(os.Symlink("..data/b.yaml", b.path("b.yaml")))
			},
			func(b *bench, i int) {
				b.generation("..g", i+1)
				b.relink(fmt.Sprintf("..g%d", i+1), "..data")
				b.must(os.RemoveAll(b.path(fmt.Sprintf("..g%d", i))))
			},
		}, {
			"the folder is switched",
			func(b *bench) {
				b.must(os.Rename(b.dir, b.dir+".real"))
				b.real = b.dir + ".real/"
				b.generation("g", 0)
				b.must(os.Symlink(b.real+"g0", b.dir))
			},
			func(b *bench, i int) {
				b.generation("g", i+1)
				tmp := b.real + "link"
				b.must(os.Symlink(fmt.Sprintf("%sg%d", b.real, i+1), tmp))
				b.must(os.Rename(tmp, b.dir))
				b.must(os.RemoveAll(fmt.Sprintf("%sg%d", b.real, i)))
			},
		},
	}
}

// TestNeverMissing changes a folder as fast as the kernel can, in every way in
// which a pod is always there for who looks at the right moment. No snapshot may
// lack it, none may have a problem, and what is last is seen last.
func TestNeverMissing(t *testing.T) {
	const rounds = 500
	for _, c := range churns() {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			c.setup(b)
			var seen atomic.Int64
			b.sink.check = func(s snapshot) error {
				seen.Add(1)
				if len(s.Problems) > 0 {
					return fmt.Errorf("a problem: %s", report{snap: s})
				}
				return b.needs(s, "a")
			}
			b.run()
			b.wait("the first look", func(report) bool { return true })
			// Others do what does not matter meanwhile.
			var busy sync.WaitGroup
			stop := make(chan struct{})
			busy.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
						name := filepath.Join(filepath.Dir(b.dir), fmt.Sprint("other", i%10))
						_ = os.WriteFile(name, nil, 0o600)
						_ = os.Rename(name, name+".tmp")
					}
				}
			})
			for i := range rounds {
				c.step(b, i)
			}
			close(stop)
			busy.Wait()
			last := b.settle()
			b.stop()
			for _, r := range b.sink.reports {
				if r.err != nil {
					t.Fatal(r)
				}
			}
			t.Logf("%d snapshots; the last is %s", seen.Load(), last)
		})
	}
}

// generation makes a folder with two files, between which pod a moves with
// every generation.
func (b *bench) generation(prefix string, n int) {
	b.Helper()
	dir := b.real + fmt.Sprintf("%s%d", prefix, n)
	if b.real == "" {
		dir = b.path(dir)
	}
	b.must(os.Mkdir(dir, 0o755))
	pods := []string{manifestOf("a", "i:0"), manifestOf("b", fmt.Sprint("i:", n))}
	for i, name := range []string{"a.yaml", "b.yaml"} {
		b.must(os.WriteFile(filepath.Join(dir, name), []byte(pods[(i+n)%2]), 0o644))
	}
}

// settle waits until the sink was told what the folder says now.
func (b *bench) settle() report {
	b.Helper()
	want := b.now()
	return b.wait("the last state: "+want, func(r report) bool { return objects(r) == want })
}

// now is what a source that starts now sees.
func (b *bench) now() string {
	b.Helper()
	fresh := &bench{T: b.T, dir: b.dir, sink: newSink(), log: &strings.Builder{}}
	fresh.run()
	defer fresh.stop()
	return objects(fresh.wait("a fresh look", func(r report) bool { return r.err == nil && r.problems() == "" }))
}
