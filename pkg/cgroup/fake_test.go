package cgroup

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"golang.org/x/sys/unix"
)

// fakeKernel makes a plain folder behave like a cgroup file system: a new
// cgroup has the files that its controllers bring, wrong values are refused,
// and a cgroup with processes or children cannot be removed.
type fakeKernel struct {
	mu     sync.Mutex
	fs     string
	v2     bool
	marks  map[string]string
	writes []string // "dir/file=value" below fs, in order
}

var v1Files = map[string]map[string]string{
	"cpu":     {"cpu.shares": "1024", "cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "-1"},
	"memory":  {"memory.limit_in_bytes": "9223372036854771712"},
	"pids":    {"pids.max": "max"},
	"cpuset":  {"cpuset.cpus": "", "cpuset.mems": ""},
	"hugetlb": {"hugetlb.2MB.limit_in_bytes": "max"},
	"freezer": {"freezer.state": "THAWED"},
}

var v2Files = map[string]map[string]string{
	"cpu":     {"cpu.weight": "100", "cpu.max": "max 100000"},
	"memory":  {"memory.max": "max", "memory.min": "0", "memory.low": "0"},
	"pids":    {"pids.max": "max"},
	"hugetlb": {"hugetlb.2MB.max": "max"},
}

func newFakeV1(t *testing.T, controllers ...string) *fakeKernel {
	t.Helper()
	k := &fakeKernel{fs: t.TempDir(), marks: map[string]string{}}
	for _, c := range controllers {
		dir := filepath.Join(k.fs, c)
		must(t, os.Mkdir(dir, 0o755))
		k.populate(dir)
		for _, one := range strings.Split(c, ",") {
			if one != c { // as distributions do
				must(t, os.Symlink(c, filepath.Join(k.fs, one)))
			}
		}
		if c == "cpuset" {
			must(t, os.WriteFile(filepath.Join(dir, "cpuset.cpus"), []byte("0-3\n"), 0o644))
			must(t, os.WriteFile(filepath.Join(dir, "cpuset.mems"), []byte("0\n"), 0o644))
		}
	}
	return k
}

func newFakeV2(t *testing.T, controllers string) *fakeKernel {
	t.Helper()
	k := &fakeKernel{fs: t.TempDir(), v2: true, marks: map[string]string{}}
	must(t, os.WriteFile(filepath.Join(k.fs, "cgroup.controllers"), []byte(controllers+"\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(k.fs, "cgroup.subtree_control"), nil, 0o644))
	must(t, os.WriteFile(filepath.Join(k.fs, "cgroup.procs"), nil, 0o644))
	return k
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// populate puts the files of the controllers that reach dir.
func (k *fakeKernel) populate(dir string) {
	put := func(name, value string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0o644); err != nil {
			panic(err)
		}
	}
	put("cgroup.procs", "")
	if k.v2 {
		up, _ := os.ReadFile(filepath.Join(filepath.Dir(dir), "cgroup.subtree_control"))
		put("cgroup.controllers", string(up))
		put("cgroup.subtree_control", "")
		for _, c := range strings.Fields(string(up)) {
			for f, v := range v2Files[c] {
				put(f, v)
			}
		}
		return
	}
	rel, _ := filepath.Rel(k.fs, dir)
	tree, _, _ := strings.Cut(rel, "/")
	for _, c := range strings.Split(tree, ",") {
		for f, v := range v1Files[c] {
			put(f, v)
		}
	}
}

func (k *fakeKernel) Mkdir(dir string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	k.populate(dir)
	return nil
}

func (k *fakeKernel) Rmdir(dir string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(procs)) != "" || len(subdirs(dir)) > 0 {
		return &os.PathError{Op: "rmdir", Path: dir, Err: unix.EBUSY}
	}
	delete(k.marks, dir)
	return os.RemoveAll(dir)
}

func (k *fakeKernel) Write(dir, file, value string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	path := filepath.Join(dir, file)
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	refuse := func(errno unix.Errno) error { return &os.PathError{Op: "write", Path: path, Err: errno} }
	switch file {
	case "cgroup.subtree_control":
		if procs, _ := read(dir, "cgroup.procs"); procs != "" && dir != k.fs {
			return refuse(unix.EBUSY)
		}
		offered, _ := read(dir, "cgroup.controllers")
		have := strings.Fields(string(old))
		for _, c := range strings.Fields(value) {
			if !strings.HasPrefix(c, "+") || !strings.Contains(" "+offered+" ", " "+c[1:]+" ") {
				return refuse(unix.ENOENT)
			}
			have = append(have, c[1:])
		}
		value = strings.Join(have, " ")
		defer k.handDown(dir)
	case "cgroup.procs":
		value = strings.TrimSpace(string(old) + "\n" + value)
		// A process is in one cgroup: leave the parent's.
		up := filepath.Join(filepath.Dir(dir), "cgroup.procs")
		rest, _ := os.ReadFile(up)
		pid := value[strings.LastIndexByte(value, '\n')+1:]
		keep := []string{}
		for _, p := range strings.Fields(string(rest)) {
			if p != pid {
				keep = append(keep, p)
			}
		}
		if err := os.WriteFile(up, []byte(strings.Join(keep, "\n")), 0o644); err != nil {
			return err
		}
	case "cpu.shares", "cpu.weight":
		lowest, highest := uint64(2), uint64(262144)
		if file == "cpu.weight" {
			lowest, highest = 1, 10000
		}
		if n, err := strconv.ParseUint(value, 10, 64); err != nil || n < lowest || n > highest {
			return refuse(unix.EINVAL)
		}
	case "cpu.max":
		if f := strings.Fields(value); len(f) != 2 || (f[0] != "max" && atoi(f[0]) < 1000) {
			return refuse(unix.EINVAL)
		}
	case "cpu.cfs_quota_us":
		if n := atoi(value); n != -1 && n < 1000 {
			return refuse(unix.EINVAL)
		}
	}
	rel, _ := filepath.Rel(k.fs, path)
	k.writes = append(k.writes, rel+"="+value)
	return os.WriteFile(path, []byte(value), 0o644)
}

// handDown gives the children of a v2 cgroup the files that they lack.
func (k *fakeKernel) handDown(dir string) {
	have, _ := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	for _, path := range subdirs(dir) {
		if err := os.WriteFile(filepath.Join(path, "cgroup.controllers"), have, 0o644); err != nil {
			panic(err)
		}
		for _, c := range strings.Fields(string(have)) {
			for f, v := range v2Files[c] {
				if exists(filepath.Join(path, f)) {
					continue
				}
				if err := os.WriteFile(filepath.Join(path, f), []byte(v), 0o644); err != nil {
					panic(err)
				}
			}
		}
	}
}

func atoi(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return -2
	}
	return n
}

func (k *fakeKernel) Mark(dir, owner string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !exists(dir) {
		return os.ErrNotExist
	}
	k.marks[dir] = owner
	return nil
}

func (k *fakeKernel) Marked(dir string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.marks[dir]
}

func (k *fakeKernel) file(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(k.fs, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// fakeSystemd makes the folders that systemd would, and remembers properties.
type fakeSystemd struct {
	k     *fakeKernel
	n     names
	props map[string]map[string]string
	log   []string
}

func (s *fakeSystemd) path(name string) string {
	p, prefix := s.k.fs, ""
	for _, c := range strings.Split(strings.TrimSuffix(name, ".slice"), "-") {
		p = filepath.Join(p, prefix+c+".slice")
		prefix += c + "-"
	}
	return p
}

func (s *fakeSystemd) Start(ctx context.Context, name string, props ...sd.Property) error {
	s.log = append(s.log, "start "+name)
	if s.props == nil {
		s.props = map[string]map[string]string{}
	}
	if _, ok := s.props[name]; !ok {
		s.props[name] = map[string]string{}
	}
	// systemd knows no huge pages.
	for _, c := range []string{"+cpu", "+cpuset", "+io", "+memory", "+pids"} {
		if err := s.k.Write(filepath.Dir(s.path(name)), "cgroup.subtree_control", c); err != nil {
			return err
		}
	}
	if err := s.k.Mkdir(s.path(name)); err != nil && !os.IsExist(err) {
		return fmt.Errorf("systemd would have made the parent: %w", err)
	}
	return s.Set(ctx, name, props...)
}

func (s *fakeSystemd) Set(_ context.Context, name string, props ...sd.Property) error {
	have, ok := s.props[name]
	if !ok {
		return fmt.Errorf("unit %s is not loaded", name)
	}
	for _, p := range props {
		have[p.Name] = p.Value.String()
	}
	return nil
}

func (s *fakeSystemd) Stop(_ context.Context, name string) error {
	s.log = append(s.log, "stop "+name)
	delete(s.props, name)
	return nil
}

func newTest(t *testing.T, k *fakeKernel, o Options) *Manager {
	t.Helper()
	o.FS = k.fs
	o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	m, err := New(o)
	must(t, err)
	m.kernel = k
	m.pageSizes = []string{"2MB"}
	m.self = ""
	if m.units != nil {
		m.units = &fakeSystemd{k: k, n: m.names}
	}
	return m
}
