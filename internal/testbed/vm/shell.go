package vm

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// ExitError says that a program in the guest ended with another code than 0.
type ExitError struct {
	Code   int
	Output string // the end of it
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("exit code %d: %s", e.Code, strings.TrimSpace(e.Output))
}

// Run runs a program in the guest as root and returns what it wrote to both
// outputs, also when it failed, and when ctx ended meanwhile. The error is an
// *ExitError when the program ended by itself. When ctx ends, what was started
// may go on.
func (v *VM) Run(ctx context.Context, name string, args ...string) (string, error) {
	words := []string{quote(name)}
	for _, a := range args {
		words = append(words, quote(a))
	}
	out, err := v.script(ctx, strings.Join(words, " "))
	if err != nil {
		err = fmt.Errorf("vm: %s: %w", strings.Join(words, " "), err)
	}
	return out, err
}

// Sh runs a bash script in the guest, which must succeed, and returns what it
// wrote. One script with five commands takes far less time than five calls.
func (v *VM) Sh(t testing.TB, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	out, err := v.script(ctx, script)
	if err != nil {
		t.Fatalf("vm: %s: %v", script, err)
	}
	return out
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Dial has a shell of the guest evaluate a text whose input and output are the
// connection that it returns. What runs there is the caller's to end.
func (v *VM) Dial(ctx context.Context, text string) (net.Conn, error) {
	conn, err := v.dial(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(conn, "eval %s; exit\n", quote(text)); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func (v *VM) dial(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(v.port)))
}

// script has a shell of the guest evaluate a text. It is quoted as a whole, so
// that a mistake in it ends there.
func (v *VM) script(ctx context.Context, text string) (string, error) {
	return v.shell(ctx, "( eval "+quote(text)+" ) </dev/null", nil)
}

// shell opens a connection, which is a shell's input and output, gives it a
// command and then what the command reads, and waits for the line that ends it.
// It does not wait for the end of the connection: a program that the command
// left in the background may hold it.
func (v *VM) shell(ctx context.Context, command string, input func(io.Writer) error) (string, error) {
	conn, err := v.dial(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	// All on one line: the shell reads no further than to the end of it.
	end := "vm-end-" + rand.Text()
	if _, err := fmt.Fprintf(conn, "%s; printf '\\n%s %%d\\n' $?; exit\n", command, end); err != nil {
		return "", err
	}
	if input != nil {
		if err := input(conn); err != nil {
			return "", err
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			return "", err
		}
	}
	return read(ctx, conn, end)
}

// read reads up to the line "END CODE".
func read(ctx context.Context, conn io.Reader, end string) (string, error) {
	var all []byte
	buf := make([]byte, 64<<10)
	for {
		n, err := conn.Read(buf)
		from := max(0, len(all)-len(end)-8)
		all = append(all, buf[:n]...)
		if at := bytes.Index(all[from:], []byte("\n"+end+" ")); at >= 0 {
			line, _, whole := strings.Cut(string(all[from+at+1:]), "\n")
			if whole {
				out := string(all[:from+at])
				code, err := strconv.Atoi(strings.TrimPrefix(line, end+" "))
				if err == nil && code != 0 {
					err = &ExitError{code, out[max(0, len(out)-4096):]}
				}
				return out, err
			}
		}
		switch {
		case ctx.Err() != nil:
			return string(all), ctx.Err()
		case err != nil:
			return string(all), fmt.Errorf("the guest's shell ended: %w; it wrote %q", err, all)
		}
	}
}

// Copy copies a file, or a folder with all that is below it, to a path of the
// guest. A folder that is there already keeps its mode. About 10 MB/s.
func (v *VM) Copy(ctx context.Context, from, to string) error {
	// When tar fails, somebody must read the rest, or its message would be lost.
	_, err := v.shell(ctx, "tar -x -C / --keep-directory-symlink --no-overwrite-dir --no-same-owner || { code=$?; cat >/dev/null; (exit $code); }", func(w io.Writer) error {
		return writeTree(w, from, to)
	})
	if err != nil {
		return fmt.Errorf("vm: copy %s to %s: %w", from, to, err)
	}
	return nil
}

func writeTree(w io.Writer, from, to string) error {
	tw := tar.NewWriter(w)
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(filepath.Join(to, rel), "/")
		if name == "" {
			return nil // the guest has a root folder
		}
		return writeFile(tw, path, name, d)
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

func writeFile(tw *tar.Writer, path, name string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(path); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name = name
	if err := tw.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(tw, f)
	return err
}
