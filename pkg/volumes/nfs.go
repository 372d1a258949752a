package volumes

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// nfs is a folder that a server exports. fsGroup does not touch it: whose it is,
// is the server's business.
type nfs struct{ mounter Mounter }

func (nfs) Name() string                           { return "nfs" }
func (nfs) Plugin() string                         { return "kubernetes.io~nfs" }
func (nfs) Handles(v *v1.Volume) bool              { return v.NFS != nil }
func (nfs) Record(*v1.Volume) Record               { return Record{Foreign: true} }
func (nfs) TearDown(context.Context, Record) error { return nil }

func (k nfs) SetUp(ctx context.Context, r Request) (Mounted, error) {
	src := r.Volume.NFS
	if err := mountNFS(ctx, k.mounter, r, src, nil, src.ReadOnly); err != nil {
		return Mounted{}, err
	}
	return Mounted{Name: r.Volume.Name, Kind: k.Name(), HostPath: filepath.Join(r.Folder.path, r.Volume.Name), ReadOnly: src.ReadOnly}, nil
}

// mountNFS mounts an export onto the volume's folder, once.
func mountNFS(ctx context.Context, m Mounter, r Request, src *v1.NFSVolumeSource, options []string, readOnly bool) error {
	source, options, err := nfsArguments(src, options, readOnly)
	if err != nil {
		return err
	}
	mounted, err := isMount(r.Folder, r.Volume.Name)
	if err != nil && !errors.Is(err, unix.ENOENT) || mounted {
		return err
	}
	fd, err := makeDirAt(r.Folder.fd, r.Volume.Name, 0o750)
	if err != nil {
		return fmt.Errorf("making the mount point: %w", err)
	}
	defer unix.Close(fd)
	return m.MountHelper(ctx, source, fdPath(fd), "nfs", options)
}

// nfsArguments are what mount(8) is given. Nothing of it passes a shell; what
// could be taken for an option or end an argument is refused all the same.
func nfsArguments(src *v1.NFSVolumeSource, options []string, readOnly bool) (source string, _ []string, err error) {
	host := src.Server
	if host == "" || strings.HasPrefix(host, "-") || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r == ',' || r == '/' || r == 0x7f }) {
		return "", nil, errdefs.Errorf(errdefs.ErrInvalid, "%q is not the name or address of an NFS server", host)
	}
	if !absolute(src.Path) || strings.ContainsFunc(src.Path, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return "", nil, errdefs.Errorf(errdefs.ErrInvalid, "%q is not the path of an export: it must be absolute, without \"..\" and control characters", src.Path)
	}
	if strings.Count(host, ":") > 1 && !strings.HasPrefix(host, "[") {
		host = "[" + host + "]" // an IPv6 address
	}
	for _, o := range options {
		if o == "" || strings.ContainsFunc(o, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			return "", nil, errdefs.Errorf(errdefs.ErrInvalid, "mount option %q must not be empty or hold spaces", o)
		}
	}
	options = slices.Clone(options)
	if readOnly && !slices.Contains(options, "ro") {
		options = append(options, "ro")
	}
	return host + ":" + src.Path, options, nil
}

// helperPatience is how long mount(8) may take: a server that does not answer
// must not hold the pod's worker for good.
const helperPatience = 2 * time.Minute

// MountHelper runs mount(8), which finds the program for the file system.
func (kernelMounter) MountHelper(ctx context.Context, source, target, fstype string, options []string) error {
	ctx, cancel := context.WithTimeout(ctx, helperPatience)
	defer cancel()
	args := []string{"-t", fstype}
	if len(options) > 0 {
		args = append(args, "-o", strings.Join(options, ","))
	}
	out, err := exec.CommandContext(ctx, "mount", append(args, "--", source, target)...).CombinedOutput()
	if ctx.Err() != nil {
		return errdefs.Errorf(errdefs.ErrTransient, "mounting %s (%s) was given up: %w", source, fstype, ctx.Err())
	}
	if err != nil {
		return errdefs.Errorf(errdefs.ErrTransient, "mounting %s (%s): %w: %s", source, fstype, err, strings.TrimSpace(string(out)))
	}
	return nil
}
