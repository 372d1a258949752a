package cli

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/util/exec"

	"github.com/nodeagent/nodeagent/pkg/cli/table"
)

// CopyOptions are the flags of `cp`.
type CopyOptions struct {
	Container string
	// NoPreserve leaves owner and permissions to the container's tar.
	NoPreserve bool
}

// location is one argument of cp.
type location struct {
	namespace, pod string // empty pod: local
	path           string
}

// Copy copies a file or folder into or out of a container, whose image must
// have tar.
func (c *CLI) Copy(ctx context.Context, src, dst string, o CopyOptions) error {
	// Our own warnings come while tar in the container says something, too.
	shared := *c
	shared.Err = &lockedWriter{mu: new(sync.Mutex), w: c.Err}
	c = &shared
	from, err := c.location(src)
	if err != nil {
		return err
	}
	to, err := c.location(dst)
	if err != nil {
		return err
	}
	switch {
	case from.pod != "" && to.pod != "":
		return errors.New("one of source and destination must be local")
	case from.pod != "":
		return c.download(ctx, from, to.path, o)
	case to.pod != "":
		return c.upload(ctx, from.path, to, o)
	}
	return errors.New("one of source and destination must be in a pod: [NAMESPACE/]POD:PATH")
}

// location parses "[NAMESPACE/]POD:PATH" or a local path. What starts with a
// slash or a dot is local even when it holds a colon.
func (c *CLI) location(s string) (location, error) {
	if s == "" {
		return location{}, errors.New("a path is empty")
	}
	where, p, ok := strings.Cut(s, ":")
	if !ok || strings.HasPrefix(s, "/") || strings.HasPrefix(s, ".") {
		return location{path: s}, nil
	}
	l := location{namespace: c.Namespace, pod: where, path: p}
	if ns, name, ok := strings.Cut(where, "/"); ok {
		l.namespace, l.pod = ns, name
	}
	if l.pod == "" || l.namespace == "" || strings.Contains(l.pod, "/") || p == "" {
		return location{}, fmt.Errorf("%q: write [NAMESPACE/]POD:PATH, or ./PATH for a local file with a colon in its name", s)
	}
	return l, nil
}

func (c *CLI) copySession(ctx context.Context, l location, o CopyOptions) (session, error) {
	in := *c
	in.Namespace = l.namespace
	return in.session(ctx, l.pod, o.Container)
}

// download runs tar in the container and unpacks what it sends.
func (c *CLI) download(ctx context.Context, from location, dst string, o CopyOptions) error {
	s, err := c.copySession(ctx, from, o)
	if err != nil {
		return err
	}
	clean := path.Clean(from.path)
	dir, base := path.Split(clean)
	if base == "." || base == ".." || base == "" {
		// "/" and "." have no name of their own: take the folder's content.
		dir, base = clean, "."
	}
	s.command = []string{"tar", "cf", "-", "-C", noOption(dir), "--", base}
	pr, pw := io.Pipe()
	s.out, s.err = pw, c.Err
	var sent, unpacked error
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		sent = c.stream(gctx, s)
		pw.CloseWithError(sent) // nil is io.EOF
		return nil
	})
	g.Go(func() error {
		unpacked = c.untar(pr, base, dst)
		if unpacked == nil || errors.Is(unpacked, errEmptyArchive) {
			// Tar pads its output, and has its say about an empty one; a reader
			// that left would break the pipe.
			if _, err := io.Copy(io.Discard, pr); err != nil {
				unpacked = err
			}
			return nil
		}
		pr.CloseWithError(unpacked)
		return unpacked // ends the sender
	})
	_ = g.Wait() // which of the two errors says why is settled here
	if sent != nil && (unpacked == nil || errors.Is(unpacked, errEmptyArchive) || errors.Is(unpacked, sent)) {
		return copyError(from, sent)
	}
	return unpacked
}

// errEmptyArchive says that tar sent nothing; why, it said itself.
var errEmptyArchive = errors.New("the container sent an empty archive")

// noOption keeps a folder whose name starts with a dash from being read as one.
func noOption(dir string) string {
	switch {
	case dir == "":
		return "."
	case strings.HasPrefix(dir, "-"):
		return "./" + dir
	}
	return dir
}

func copyError(l location, err error) error {
	var code exec.ExitError
	if errors.As(err, &code) && code.Exited() {
		switch code.ExitStatus() {
		case 126, 127:
			return fmt.Errorf("copy needs tar in the container of pod %s, which has none", l.pod)
		}
		return fmt.Errorf("tar in pod %s ended with exit code %d for %s", l.pod, code.ExitStatus(), l.path)
	}
	return err
}

// untar unpacks an archive of base, which becomes dst. The archive comes out
// of the container and may say anything (CVE-2018-1002100, CVE-2019-1002101,
// CVE-2019-11246, CVE-2019-11249, CVE-2019-11251): every name is checked, and
// every file is opened through an os.Root, so that neither ".." nor a link,
// not even one made meanwhile, leads out of dst. Links and devices are left
// out.
func (c *CLI) untar(r io.Reader, base, dst string) error {
	tr := tar.NewReader(r)
	var d *destination
	defer func() {
		if d != nil {
			d.root.Close()
		}
	}()
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			if d == nil {
				return errEmptyArchive
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("archive from the container: %w", err)
		}
		rel, err := inside(base, h.Name)
		if err != nil {
			return err
		}
		if d == nil {
			if d, err = openDestination(dst, base, rel == "." && h.Typeflag == tar.TypeDir || base == "."); err != nil {
				return err
			}
		}
		if err := c.unpack(d, h, rel, tr); err != nil {
			return err
		}
	}
}

// destination is where an archive goes: a folder's content into root, or one
// file as name in root.
type destination struct {
	root *os.Root
	name string // empty for a folder
}

// openDestination makes dst for a folder; a file goes to dst, or into dst when
// that is a folder.
func openDestination(dst, base string, folder bool) (*destination, error) {
	if folder {
		if err := os.MkdirAll(dst, 0o777); err != nil {
			return nil, err
		}
		root, err := os.OpenRoot(dst)
		if err != nil {
			return nil, err
		}
		return &destination{root: root}, nil
	}
	if st, err := os.Stat(dst); err == nil && st.IsDir() {
		dst = filepath.Join(dst, base)
	}
	root, err := os.OpenRoot(filepath.Dir(dst))
	if err != nil {
		return nil, err
	}
	return &destination{root: root, name: filepath.Base(dst)}, nil
}

// inside returns the path of an entry relative to what was asked for, or an
// error when it is not below that.
func inside(base, name string) (string, error) {
	clean := path.Clean(name)
	rel, ok := clean, base == "."
	switch {
	case clean == base:
		rel, ok = ".", true
	case strings.HasPrefix(clean, base+"/"):
		rel, ok = clean[len(base)+1:], true
	}
	if !ok || path.IsAbs(clean) || !filepath.IsLocal(rel) || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("the container sent %q, which is not in %q: nothing more is unpacked", table.Safe(name), table.Safe(base))
	}
	return rel, nil
}

func (c *CLI) unpack(d *destination, h *tar.Header, rel string, body io.Reader) error {
	name := rel
	if d.name != "" {
		if rel != "." {
			return fmt.Errorf("the container sent %q for what began as a single file: nothing more is unpacked", table.Safe(h.Name))
		}
		name = d.name
	}
	// Set-id and sticky bits of a container's file have no business here.
	mode := fs.FileMode(h.Mode) & 0o777
	switch h.Typeflag {
	case tar.TypeDir:
		// Owner bits keep a read-only folder fillable.
		return d.root.MkdirAll(name, mode|0o700)
	case tar.TypeReg:
	default:
		if d.name != "" {
			return fmt.Errorf("%s is a link or a device in the container; name the file that it leads to", table.Safe(h.Name))
		}
		fmt.Fprintf(c.Err, "warning: skipping %s: it is a link or a device\n", table.Safe(h.Name))
		return nil
	}
	if dir := filepath.Dir(name); dir != "." {
		if err := d.root.MkdirAll(dir, 0o777); err != nil {
			return err
		}
	}
	f, err := d.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode|0o200)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, body)
	return errors.Join(err, f.Chmod(mode), f.Close())
}

// upload packs a local file or folder for tar in the container.
func (c *CLI) upload(ctx context.Context, src string, to location, o CopyOptions) error {
	// A link that is named is followed, as cp does; links below it are copied.
	root, err := filepath.EvalSymlinks(src)
	if err != nil {
		return err
	}
	st, err := os.Stat(root)
	if err != nil {
		return err
	}
	s, err := c.copySession(ctx, to, o)
	if err != nil {
		return err
	}
	dst := path.Clean(to.path)
	isDir, err := c.remoteDir(ctx, s, to)
	if err != nil {
		return err
	}
	if isDir {
		abs, err := filepath.Abs(src)
		if err != nil {
			return err
		}
		dst = path.Join(dst, filepath.Base(abs))
	} else if strings.HasSuffix(to.path, "/") && !st.IsDir() {
		return fmt.Errorf("%s is not a folder in pod %s", to.path, to.pod)
	}
	dir, base := path.Split(dst)
	flags := "xmf"
	s.command = []string{"tar", flags, "-", "-C", noOption(dir)}
	if o.NoPreserve {
		s.command = []string{"tar", "--no-same-permissions", "--no-same-owner", "-" + flags, "-", "-C", noOption(dir)}
	}
	pr, pw := io.Pipe()
	s.in, s.out, s.err = pr, c.Out, c.Err
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := c.pack(pw, root, base)
		pw.CloseWithError(err)
		if errors.Is(err, io.ErrClosedPipe) {
			return nil // tar left first; its error says why
		}
		return err
	})
	g.Go(func() error {
		err := c.stream(gctx, s)
		pr.Close()
		return copyError(to, err)
	})
	return g.Wait()
}

// remoteDir asks the container whether the destination is a folder.
func (c *CLI) remoteDir(ctx context.Context, s session, to location) (bool, error) {
	s.command, s.out, s.err = []string{"test", "-d", to.path}, io.Discard, io.Discard
	err := c.stream(ctx, s)
	var code exec.ExitError
	if errors.As(err, &code) && code.Exited() {
		return false, nil
	}
	return err == nil, err
}

// pack writes src to w as a tar archive in which it is called base.
func (c *CLI) pack(w io.Writer, src, base string) error {
	tw := tar.NewWriter(w)
	err := filepath.WalkDir(src, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, p)
		if err != nil {
			return err
		}
		return c.packOne(tw, p, path.Join(base, filepath.ToSlash(rel)))
	})
	return errors.Join(err, tw.Close())
}

func (c *CLI) packOne(tw *tar.Writer, p, name string) error {
	st, err := os.Lstat(p)
	if err != nil {
		return err
	}
	link := ""
	switch st.Mode().Type() {
	case 0, fs.ModeDir:
	case fs.ModeSymlink:
		if link, err = os.Readlink(p); err != nil {
			return err
		}
	default:
		fmt.Fprintf(c.Err, "warning: skipping %s: not a file, folder or symbolic link\n", table.Safe(p))
		return nil
	}
	h, err := tar.FileInfoHeader(st, link)
	if err != nil {
		return err
	}
	h.Name = name
	if st.IsDir() {
		h.Name += "/"
	}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return nil
	}
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	// A file that grows meanwhile is cut at the size that its header says.
	if _, err := io.CopyN(tw, f, h.Size); err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	return nil
}
