package podworker

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"k8s.io/apimachinery/pkg/types"
)

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
