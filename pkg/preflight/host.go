package preflight

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// patience bounds each single question to a program, a socket or a resolver.
const patience = 5 * time.Second

// ThisHost is the machine that the program runs on.
func ThisHost() Host {
	return Host{Files: files{}, Programs: programs{}, Network: network{}, Clock: systemClock{}}
}

type files struct{}

func (files) ReadFile(path string) ([]byte, error) { return os.ReadFile(path) }

func (files) List(path string) ([]string, error) {
	entries, err := os.ReadDir(path)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out, err
}

func (files) Filesystem(path string) (Filesystem, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(path, &st)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || path == "/" {
			return Filesystem{}, fmt.Errorf("%s: %w", path, err)
		}
		path = filepath.Dir(path)
	}
	size := uint64(st.Bsize)
	return Filesystem{
		Type: typeName(int64(st.Type)), Free: st.Bavail * size, Total: st.Blocks * size,
		NoExec: st.Flags&unix.ST_NOEXEC != 0,
	}, nil
}

func typeName(magic int64) string {
	names := map[int64]string{
		unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
		unix.TMPFS_MAGIC: "tmpfs", unix.RAMFS_MAGIC: "ramfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay",
		unix.NFS_SUPER_MAGIC: "nfs", unix.SMB2_SUPER_MAGIC: "cifs", unix.V9FS_MAGIC: "9p",
		unix.F2FS_SUPER_MAGIC: "f2fs", 0x2fc12fc1: "zfs",
	}
	if n, ok := names[magic]; ok {
		return n
	}
	return fmt.Sprintf("filesystem %#x", magic)
}

type programs struct{}

// Find looks where root's PATH may not lead in a service.
func (programs) Find(name string) (string, error) {
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	if filepath.IsAbs(name) {
		return "", fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("program %s: %w", name, fs.ErrNotExist)
}

func (p programs) Output(ctx context.Context, name string, args ...string) (string, error) {
	path, err := p.Find(name)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	return string(out), err
}

type network struct{}

func (network) Listen(ctx context.Context, address string) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return l.Close()
}

func (network) Resolve(ctx context.Context, name string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return net.DefaultResolver.LookupHost(ctx, name)
}

func (network) Answers(ctx context.Context, socket string) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

func (network) CRI(ctx context.Context, socket string) (Runtime, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return Runtime{}, err
	}
	defer conn.Close()
	v, err := cri.NewRuntimeServiceClient(conn).Version(ctx, &cri.VersionRequest{})
	if err != nil {
		return Runtime{}, err
	}
	return Runtime{Name: v.RuntimeName, Version: v.RuntimeVersion, API: v.RuntimeApiVersion}, nil
}

type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }

func (systemClock) Synchronised() (bool, error) {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	return state != unix.TIME_ERROR && t.Status&unix.STA_UNSYNC == 0, err
}
