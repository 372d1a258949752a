package file

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestConfigMapVolume is the layout of a ConfigMap volume, and how kubelet
// switches it.
func TestConfigMapVolume(t *testing.T) {
	b := newBench(t)
	b.must(os.Mkdir(b.path("..1"), 0o755))
	b.put("..1/a.yaml", manifestOf("a", "i:1"))
	b.must(os.Symlink("..1", b.path("..data")))
	b.must(os.Symlink("..data/a.yaml", b.path("a.yaml")))
	b.run()
	b.waitFor("a.yaml:a=i:1")
	b.must(os.Mkdir(b.path("..2"), 0o755))
	b.put("..2/a.yaml", manifestOf("a", "i:2"))
	b.put("..2/b.yaml", manifestOf("b", "i:2"))
	b.relink("..2", "..data")
	b.must(os.Symlink("..data/b.yaml", b.path("b.yaml")))
	b.must(os.RemoveAll(b.path("..1")))
	b.waitFor("a.yaml:a=i:2 b.yaml:b=i:2")
	b.write("..2/b.yaml", manifestOf("b", "i:3")) // in place, behind the links
	b.waitFor("a.yaml:a=i:2 b.yaml:b=i:3")
	b.must(os.Remove(b.path("b.yaml")))
	b.waitFor("a.yaml:a=i:2")
}

// TestLinksInside: a symlink that ends in the folder works, however it gets
// there, and every link of its chain is followed when it changes.
func TestLinksInside(t *testing.T) {
	b := newBench(t)
	for _, dir := range []string{"releases", "releases/1", "releases/2"} {
		b.must(os.Mkdir(b.path(dir), 0o755))
	}
	b.put("releases/1/p.yaml", manifestOf("a", "i:1"))
	b.put("releases/2/p.yaml", manifestOf("a", "i:2"))
	b.must(os.Symlink("1", b.path("releases/current")))
	b.must(os.Symlink(b.path("releases/current/p.yaml"), b.path("releases/p")))
	b.must(os.Symlink("../manifests/releases/../releases/p", b.path("a.yaml")))
	b.run()
	b.waitFor("a.yaml:a=i:1")
	b.relink("2", "releases/current")
	b.waitFor("a.yaml:a=i:2")
	b.must(os.Rename(b.path("releases/2"), b.path("releases/3")))
	b.waitProblem("a.yaml", "target does not exist")
	b.must(os.Rename(b.path("releases/1"), b.path("releases/2")))
	b.waitFor("a.yaml:a=i:1")
	b.relink("releases/3/p.yaml", "a.yaml")
	b.waitFor("a.yaml:a=i:2")
}

// TestLinksOutside: a symlink that ends elsewhere is refused by name, and the
// pods that the file had stay.
func TestLinksOutside(t *testing.T) {
	b := newBench(t)
	other := filepath.Join(filepath.Dir(b.dir), "manifests-not") // the same first letters
	b.must(os.Mkdir(other, 0o755))
	secret := filepath.Join(other, "secret.yaml")
	b.must(os.WriteFile(secret, []byte(manifestOf("secret", "i:1")), 0o644))
	b.put("a.yaml", manifestOf("a", "i:1"))
	b.must(os.Symlink(other, b.path("folder.yaml"))) // a folder, hence no manifest
	b.run()
	b.waitFor("a.yaml:a=i:1")
	for _, target := range []string{secret, "../manifests-not/secret.yaml", "folder.yaml/secret.yaml", "/proc/self/root" + secret} {
		b.relink(target, "b.yaml")
		r := b.waitProblem("b.yaml", "leads out of the folder", secret, b.dir)
		if objects(r) != "a.yaml:a=i:1" {
			t.Errorf("link to %s: %s", target, r)
		}
		b.must(os.Remove(b.path("b.yaml")))
		b.wait("the problem is gone", func(r report) bool { return r.problems() == "" })
	}
	b.relink("/dev/zero", "c.yaml")
	b.waitProblem("c.yaml", "leads out of the folder", "/dev/zero")
	b.relink("a.yaml", "c.yaml")
	b.waitFor("a.yaml:a=i:1 c.yaml:a=i:1")
	b.relink("c.yaml", "c.yaml")
	b.waitProblem("c.yaml", "too many levels of symbolic links")
	b.relink("gone.yaml", "c.yaml")
	b.waitProblem("c.yaml", "target does not exist")
}

// TestFolderIsASymlink: the folder itself may lead anywhere.
func TestFolderIsASymlink(t *testing.T) {
	b := newBench(t)
	base := filepath.Dir(b.dir)
	for _, v := range []string{"1", "2"} {
		b.must(os.MkdirAll(filepath.Join(base, "v", v), 0o755))
		b.must(os.WriteFile(filepath.Join(base, "v", v, "a.yaml"), []byte(manifestOf("a", "i:"+v)), 0o644))
		b.must(os.Symlink("a.yaml", filepath.Join(base, "v", v, "b.yaml")))
	}
	b.must(os.Symlink("../v/1", b.path("current")))
	b.must(os.Symlink(b.path("current"), filepath.Join(base, "entry")))
	b.run(func(s *Source) { s.o.Path = filepath.Join(base, "entry") })
	b.waitFor("a.yaml:a=i:1 b.yaml:a=i:1")
	b.relink("../v/2", "current")
	b.waitFor("a.yaml:a=i:2 b.yaml:a=i:2")
	b.must(os.Rename(filepath.Join(base, "v/2"), filepath.Join(base, "v/3")))
	b.waitFailure("does not exist")
	b.must(os.Rename(filepath.Join(base, "v/1"), filepath.Join(base, "v/2")))
	b.waitFor("a.yaml:a=i:1 b.yaml:a=i:1")
	b.must(os.WriteFile(filepath.Join(base, "v/2/a.yaml"), []byte(manifestOf("a", "i:4")), 0o644))
	b.waitFor("a.yaml:a=i:4 b.yaml:a=i:4")
	if r := b.waitFor("a.yaml:a=i:4 b.yaml:a=i:4"); r.snap.Objects[0].Origin != filepath.Join(base, "entry", "a.yaml") {
		t.Errorf("origin %s: it changes with the link", r.snap.Objects[0].Origin)
	}
}

// TestSpecialFiles: nothing but files is opened, and nothing hangs.
func TestSpecialFiles(t *testing.T) {
	b := newBench(t)
	b.put("a.yaml", manifestOf("a", "i:1"))
	b.must(unix.Mkfifo(b.path("fifo.yaml"), 0o644))
	b.must(os.Symlink("fifo.yaml", b.path("to-fifo.yaml")))
	b.must(os.Mkdir(b.path("folder.yaml"), 0o755))
	b.put("folder.yaml/in.yaml", manifestOf("in", "i:1"))
	b.must(os.Symlink("folder.yaml", b.path("to-folder.yaml")))
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	b.must(err)
	defer unix.Close(fd)
	b.must(unix.Bind(fd, &unix.SockaddrUnix{Name: b.path("socket.yaml")}))
	devices := unix.Mknod(b.path("device.yaml"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))) == nil
	if !devices && os.Geteuid() == 0 {
		t.Log("this machine makes no device nodes")
	}
	b.run()
	r := b.waitProblem("fifo.yaml", "is a FIFO, not a file")
	b.waitProblem("to-fifo.yaml", "is a FIFO")
	b.waitProblem("socket.yaml", "is a socket")
	want := 3
	if devices {
		b.waitProblem("device.yaml", "is a device")
		want++
	}
	if objects(r) != "a.yaml:a=i:1" || len(r.snap.Problems) != want {
		t.Errorf("%s", r)
	}
	// A file that becomes one keeps its pods.
	b.must(os.Remove(b.path("fifo.yaml")))
	b.must(unix.Mkfifo(b.path("x.tmp"), 0o644))
	b.must(os.Rename(b.path("x.tmp"), b.path("a.yaml")))
	b.waitProblem("a.yaml", "is a FIFO")
}
