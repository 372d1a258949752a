package podworker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/logs"
	"github.com/nodeagent/nodeagent/pkg/pod"
	"github.com/nodeagent/nodeagent/pkg/runtime"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// Limits of a termination message, in bytes and lines, as the API documents.
const (
	maxMessage         = 4096
	maxMessageFromLog  = 2048
	maxMessageLogLines = 80
)

func (m *Manager) podDir(uid types.UID) string { return filepath.Join(m.PodsDir, string(uid)) }

// logDir is <pod-log-dir>/<namespace>_<name>_<uid>, kubelet's name for it.
func (m *Manager) logDir(p *v1.Pod) string {
	return filepath.Join(m.PodLogDir, p.Namespace+"_"+p.Name+"_"+string(p.UID))
}

// logPath is a container's log, relative to the pod's.
func logPath(container string, attempt uint32) string {
	return filepath.Join(container, strconv.Itoa(int(attempt))+".log")
}

// linkLog makes <container-log-dir>/<pod>_<namespace>_<container>-<id>.log,
// where log collectors look. A link that cannot be made costs no pod its start.
func (m *Manager) linkLog(p *v1.Pod, container, id string, o runtime.ContainerOptions) {
	link := m.logLink(p, container, id)
	err := os.MkdirAll(m.ContainerLogDir, 0o755)
	if err == nil {
		err = os.Symlink(filepath.Join(o.Sandbox.LogDir, o.LogPath), link)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		m.Log.Warn("cannot link a container's log", "pod", pod.Describe(p), "container", container, "err", err)
	}
}

func (m *Manager) logLink(p *v1.Pod, container, id string) string {
	return filepath.Join(m.ContainerLogDir, p.Name+"_"+p.Namespace+"_"+container+"-"+id+".log")
}

// removeContainerFiles removes the log, its link and the message of a
// container that the runtime has forgotten.
func (m *Manager) removeContainerFiles(p *v1.Pod, observed *runtime.Pod, id string) {
	for i := range observed.Containers {
		c := &observed.Containers[i]
		if c.ID != id {
			continue
		}
		paths := []string{
			m.logLink(p, c.Name, id),
			m.messageFile(p.UID, c.Name, c.Attempt),
		}
		paths = append(paths, m.resourcesFile(p.UID, c.Name, c.Attempt))
		for _, n := range allNotes {
			paths = append(paths, m.noteFile(p.UID, c, n))
		}
		if err := logs.Remove(m.PodLogDir, filepath.Base(m.logDir(p)), c.Name, c.Attempt); err != nil {
			m.Log.Warn("cannot remove the log of a container that is gone", "pod", pod.Describe(p), "err", err)
		}
		for _, path := range paths {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				m.Log.Warn("cannot remove a file of a container that is gone", "pod", pod.Describe(p), "err", err)
			}
		}
	}
}

func (m *Manager) messageFile(uid types.UID, container string, attempt uint32) string {
	return filepath.Join(m.podDir(uid), "containers", container, strconv.Itoa(int(attempt))+".msg")
}

// makeMessageFile makes the file behind terminationMessagePath; any user of
// the container may write it.
func (m *Manager) makeMessageFile(p *v1.Pod, container string, attempt uint32) (string, error) {
	path := m.messageFile(p.UID, container, attempt)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", fmt.Errorf("cannot make the termination message of %s in pod %s: %w", container, pod.Describe(p), err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|unix.O_NOFOLLOW, 0o666)
	if err != nil {
		return "", fmt.Errorf("cannot make the termination message of %s in pod %s: %w", container, pod.Describe(p), err)
	}
	defer f.Close()
	return path, f.Chmod(0o666) // whatever the umask says
}

// terminationMessage is what a dead container left to say.
func (m *Manager) terminationMessage(p *v1.Pod, c *runtime.Container) string {
	msg, err := tail(m.messageFile(p.UID, c.Name, c.Attempt), maxMessage)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Sprintf("Error reading termination message: %v", err)
	}
	spec, _, ok := pod.Container(p, c.Name)
	if len(msg) > 0 || !ok || c.ExitCode == 0 || spec.TerminationMessagePolicy != v1.TerminationMessageFallbackToLogsOnError {
		return strings.ToValidUTF8(string(msg), "\uFFFD")
	}
	raw, err := tail(filepath.Join(m.logDir(p), logPath(c.Name, c.Attempt)), 4*maxMessage)
	if err != nil {
		return ""
	}
	return strings.ToValidUTF8(string(messageFromLog(raw)), "\uFFFD")
}

// messageFromLog strips CRI's "time stream tag " from the last lines.
func messageFromLog(raw []byte) []byte {
	lines := bytes.SplitAfter(raw, []byte("\n"))
	if len(lines) > maxMessageLogLines+1 {
		lines = lines[len(lines)-maxMessageLogLines-1:]
	}
	var out []byte
	for _, l := range lines {
		f := bytes.SplitN(l, []byte(" "), 4)
		if len(f) != 4 {
			continue
		}
		if string(f[2]) == "P" {
			f[3] = bytes.TrimSuffix(f[3], []byte("\n")) // a part of a line
		}
		out = append(out, f[3]...)
	}
	if len(out) > maxMessageFromLog {
		out = out[len(out)-maxMessageFromLog:]
	}
	return out
}

// tail reads the last n bytes of a regular file. The file may be in a
// container's hands: a link or a pipe in its place is not followed.
func tail(path string, n int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	return io.ReadAll(io.NewSectionReader(f, max(0, st.Size()-n), n))
}

// hosts is what a pod's /etc/hosts holds: on the host's network, what the
// host's does.
func (m *Manager) hosts(p *v1.Pod, ips []string) (string, error) {
	var b strings.Builder
	if p.Spec.HostNetwork {
		host, err := os.ReadFile(m.HostsFile)
		if err != nil {
			return "", fmt.Errorf("cannot read what the hosts file of pod %s begins with: %w", pod.Describe(p), err)
		}
		b.Write(append(bytes.TrimRight(host, "\n"), '\n'))
	} else {
		b.WriteString("# Written by nodeagent for this pod.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
			"fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
		names := m.hostname(p)
		if full := m.fqdn(p); full != "" {
			names = full + "\t" + names // the first one is what `hostname -f` prints
		}
		for _, ip := range ips {
			b.WriteString(ip + "\t" + names + "\n")
		}
	}
	for _, a := range p.Spec.HostAliases {
		b.WriteString(a.IP + "\t" + strings.Join(a.Hostnames, "\t") + "\n")
	}
	return b.String(), nil
}

// writeHosts writes the pod's /etc/hosts. The file is written in place: it is
// bound into containers, and a rename would leave them with the old one.
func (m *Manager) writeHosts(p *v1.Pod, ips []string) (string, error) {
	text, err := m.hosts(p, ips)
	if err != nil {
		return "", err
	}
	path := filepath.Join(m.podDir(p.UID), "etc-hosts")
	if old, err := os.ReadFile(path); err == nil && string(old) == text {
		return path, nil
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return "", fmt.Errorf("cannot write the hosts file of pod %s: %w", pod.Describe(p), err)
	}
	return path, nil
}

// removeTraces removes what is on disk of a pod that no longer runs. The
// checkpoint stays: the store removes it last.
func (m *Manager) removeTraces(ctx context.Context, uid types.UID) error {
	if err := m.Volumes.TearDown(ctx, uid); err != nil {
		return err
	}
	if err := m.Cgroups.Remove(ctx, uid); err != nil {
		return err
	}
	if err := RemoveLogs(m.PodLogDir, m.ContainerLogDir, uid); err != nil {
		return err
	}
	for _, name := range []string{"containers", "etc-hosts", userFile, userFile + store.HalfWritten, evictedFile, evictedFile + store.HalfWritten} {
		if err := os.RemoveAll(filepath.Join(m.podDir(uid), name)); err != nil {
			return fmt.Errorf("cannot remove the files of pod %s: %w", uid, err)
		}
	}
	// Only an empty folder goes; with a checkpoint in it, the store removes it.
	if err := os.Remove(m.podDir(uid)); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("cannot remove the folder of pod %s: %w", uid, err)
	}
	return nil
}

// RemoveLogs removes a pod's log folder in logDir and the links in linkDir that
// lead into it. A link that cannot be removed is reported once: the folder, by
// which its links are found, goes all the same.
func RemoveLogs(logDir, linkDir string, uid types.UID) error {
	folders, err := os.ReadDir(logDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove the logs of pod %s: %w", uid, err)
	}
	for _, f := range folders {
		id := strings.SplitN(f.Name(), "_", 3) // namespace, name, uid
		if len(id) < 3 || id[2] != string(uid) {
			continue
		}
		logs := filepath.Join(logDir, f.Name())
		err := errors.Join(removeLinks(linkDir, id[1]+"_"+id[0]+"_", logs+"/"), os.RemoveAll(logs))
		if err != nil {
			return fmt.Errorf("cannot remove the logs of pod %s: %w", uid, err)
		}
	}
	return nil
}

// removeLinks removes the links of that prefix that lead into a folder.
func removeLinks(dir, prefix, into string) error {
	links, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, l := range links {
		path := filepath.Join(dir, l.Name())
		if !strings.HasPrefix(l.Name(), prefix) {
			continue
		}
		if target, e := os.Readlink(path); e == nil && strings.HasPrefix(target, into) {
			err = errors.Join(err, os.Remove(path))
		}
	}
	return err
}
