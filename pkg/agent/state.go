package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/config"
	"github.com/nodeagent/nodeagent/pkg/store"
)

// Names below the state folder.
const (
	podsDir    = "pods"
	imagesDir  = "images"
	startsDir  = "starts"
	objectsDir = "objects/pods"
	// resourcesDir has the checkpoints of objects that are no pods.
	resourcesDir = "resources"
	embeddedDir  = "containerd"
	lockFile     = "lock"
	nodeFile     = "node.yaml" // what the API has set of the Node
	instFile     = "instance"
	runtimeFile  = "runtime"
	proxyFile    = "proxy-modes"
	dnsFile      = "dns-addresses"
	// What eviction and the collection of images know of earlier.
	pressureFile = "pressure"
	imageUseFile = "image-use"
	// shutdownFile has what is known of the latest shutdown.
	shutdownFile = "shutdown"
)

// lockPatience is for the lock of an agent that is dead already: a program that
// it was just about to run has the file for a moment longer.
const (
	lockPatience = 5 * time.Second
	lockPause    = 20 * time.Millisecond
)

// lockState takes the state folder for this process. The kernel drops the lock
// with the process, however it ends. A live agent's lock is an error at once.
func lockState(dir string) (unlock func(), err error) {
	// Nobody else may look around in it, but the root of a pod with users of its
	// own has to get through to what the embedded runtime keeps there.
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("cannot make the state folder %s: %w", dir, err)
	}
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the lock of the state folder: %w", err)
	}
	for left := lockPatience / lockPause; ; left-- {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		owner, dead := lockOwner(f)
		switch {
		case !errors.Is(err, unix.EWOULDBLOCK):
			err = fmt.Errorf("cannot lock %s: %w", path, err)
		case dead && left > 0:
			time.Sleep(lockPause)
			continue
		default:
			err = fmt.Errorf("the state folder %s is in use by %s: stop it first, or give this one another --state-dir and --run-dir", dir, owner)
		}
		return nil, errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Truncate(0), writeAt(f, strconv.Itoa(os.Getpid())+"\n")); err != nil {
		// A full disk must not keep the agent from starting: the lock holds without a number in it.
		_ = f.Truncate(0)
	}
	return func() { f.Close() }, nil
}

// lockOwner says who wrote to the lock, and whether that process is no more.
func lockOwner(f *os.File) (owner string, dead bool) {
	b := make([]byte, 32)
	n, _ := f.ReadAt(b, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil || pid <= 0 {
		return "another process", false
	}
	return fmt.Sprintf("nodeagent with pid %d", pid), errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

// instance is the name that marks what this agent made. It is the node's name
// at the first start and stays when the node is renamed, so that nothing is
// orphaned or doubled.
func instance(dir, nodeName string) (string, error) {
	path := filepath.Join(dir, instFile)
	b, err := os.ReadFile(path)
	if name := strings.TrimSpace(string(b)); err == nil && name != "" {
		return name, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("cannot read this agent's name: %w", err)
	}
	if err := store.WriteFile(path, []byte(nodeName+"\n")); err != nil {
		return "", fmt.Errorf("cannot keep this agent's name: %w", err)
	}
	return nodeName, nil
}

// keptRuntime is the endpoint of the runtime that the pods of this state folder
// are on, as keepRuntime noted it down; empty before there was one.
func keptRuntime(dir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, runtimeFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("cannot read which runtime the pods are on: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func keepRuntime(dir, endpoint string) error {
	if old, err := keptRuntime(dir); err == nil && old == endpoint {
		return nil
	}
	if err := store.WriteFile(filepath.Join(dir, runtimeFile), []byte(endpoint+"\n")); err != nil {
		return fmt.Errorf("cannot note down which runtime the pods are on: %w", err)
	}
	return nil
}

// settleRuntime holds an agent that has pods to the runtime they are on: what
// "auto" finds differs from one start to the next, and a second runtime would
// run every pod twice.
func settleRuntime(cfg *config.NodeAgentConfiguration, hasPods bool) (endpoint string, err error) {
	kept, err := keptRuntime(cfg.StateDir)
	if err != nil {
		return "", err
	}
	switch endpoint = cfg.Runtime.Endpoint; {
	case kept == "" || endpoint == kept || !hasPods:
		return endpoint, nil
	case endpoint == config.EndpointAuto:
		return kept, nil
	}
	return "", cannotChange("runtime.endpoint", kept, endpoint)
}

// cannotChange refuses a setting that pods were made with.
func cannotChange(field string, from, to any) error {
	return fmt.Errorf("%s cannot change while pods run (%v to %v): stop the agent, run nodeagent cleanup with the old configuration, and start it again", field, from, to)
}

// secretFolder is where Secrets may be noted down: below the run folder if that is
// in memory, else nowhere.
func secretFolder(runDir string) string {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return "" // the socket's listener says so
	}
	var st unix.Statfs_t
	if err := unix.Statfs(runDir, &st); err != nil || st.Type != unix.TMPFS_MAGIC && st.Type != unix.RAMFS_MAGIC {
		return ""
	}
	return filepath.Join(runDir, "secrets")
}
