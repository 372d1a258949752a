package runtime

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// starts notes, as empty files by container id, the starts whose outcome nobody
// has told us. When the agent or containerd is killed in the midst of one,
// containerd shows the container as failed, in one of many words: a cancelled
// call, what is left of the task in the way of the next try, an unknown state.
// The note tells that from a container that cannot be started: what never ran
// and has a note did not crash.
type starts struct {
	dir string // "": nothing is noted
	log *slog.Logger
}

// staleStart is how old the note of a container that is gone gets.
const staleStart = time.Hour

func (s starts) path(id string) string { return filepath.Join(s.dir, filepath.Base(id)) }

// begin notes a start and says whether it is the first of that container. A
// disk without room costs the note, not the start.
func (s starts) begin(id string) (first bool) {
	if s.dir == "" {
		return true
	}
	f, err := os.OpenFile(s.path(id), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(s.dir, 0o700); err == nil {
			f, err = os.OpenFile(s.path(id), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return false
	}
	if err != nil {
		s.log.Warn("cannot note that a container is being started", "container", id, "err", err)
		return true
	}
	f.Close()
	return true
}

// end forgets a start; forgetting what is not noted is free.
func (s starts) end(id string) {
	if s.dir == "" {
		return
	}
	if err := os.Remove(s.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("cannot forget the start of a container", "container", id, "err", err)
	}
}

func (s starts) open(id string) bool {
	if s.dir == "" {
		return false
	}
	_, err := os.Lstat(s.path(id))
	return err == nil
}

// prune forgets the old notes of containers that are not listed.
func (s starts) prune(listed map[string]struct{}) {
	if s.dir == "" {
		return
	}
	notes, err := os.ReadDir(s.dir)
	if err != nil {
		return // there is none yet
	}
	for _, n := range notes {
		if _, there := listed[n.Name()]; there {
			continue
		}
		if i, err := n.Info(); err == nil && time.Since(i.ModTime()) > staleStart {
			s.end(n.Name())
		}
	}
}

// answered says that the runtime itself has said how a call went.
func answered(err error) bool {
	return err == nil || !errors.Is(err, errdefs.ErrUnavailable) && !errors.Is(err, errdefs.ErrTransient) && !errors.Is(err, context.Canceled)
}

// cutShort makes a container whose creation or start nobody finished one that
// was never started. containerd notes when it made one last of all: what is
// listed without such a time and runs nothing was left half made when it was
// killed. (Asked for its status it makes a time up.)
func (s starts) cutShort(d *Container, listed *cri.Container) {
	halfMade := d.State == StateUnknown && listed.GetCreatedAt() == 0 && d.StartedAt.IsZero()
	halfStarted := d.State == StateExited && d.StartedAt.IsZero() && s.open(d.ID)
	if !halfMade && !halfStarted {
		return
	}
	d.State, d.Interrupted = StateCreated, true
	d.FinishedAt, d.ExitCode, d.Reason, d.Message = time.Time{}, 0, "", ""
}
