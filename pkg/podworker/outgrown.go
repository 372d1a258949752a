package podworker

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/pkg/pod"
)

// maxOwnFiles is what the files that the agent gives to a pod may grow to, in
// bytes. Nothing that they are for comes near it.
const maxOwnFiles = 32 << 20

// EvictOutgrown ends pods that fill the disk through the files that the agent
// gives them: their hosts file and their termination messages, which no volume
// counts (CVE-2020-8557).
func (m *Manager) EvictOutgrown() {
	for _, r := range m.Store.Records() {
		if pod.IsTerminal(r.Pod.Status.Phase) || r.Pod.DeletionTimestamp != nil {
			continue
		}
		used, err := m.OwnFiles(r.Pod.UID)
		switch {
		case err != nil:
			m.Log.Warn("cannot measure a pod's files; will try again", "pod", pod.Describe(r.Pod), "err", err)
		case used > maxOwnFiles:
			m.Evict(r.Pod.UID, fmt.Sprintf("Usage of /etc/hosts and termination messages exceeds the limit \"%dMi\".", maxOwnFiles>>20))
		}
	}
}

// OwnFiles is what a pod's hosts file and termination messages take on the disk,
// in bytes.
func (m *Manager) OwnFiles(uid types.UID) (used int64, err error) {
	for _, name := range []string{"etc-hosts", "containers"} {
		err := filepath.WalkDir(filepath.Join(m.podDir(uid), name), func(_ string, d fs.DirEntry, err error) error {
			var info fs.FileInfo
			if err == nil {
				info, err = d.Info()
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it has just gone
			}
			if err != nil {
				return err
			}
			if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().IsRegular() {
				used += st.Blocks * 512
			}
			return nil
		})
		if err != nil {
			return 0, fmt.Errorf("cannot measure the files of pod %s: %w", uid, err)
		}
	}
	return used, nil
}
