package file

import (
	"path/filepath"
	"strings"
)

// leftAlone says of a name in the folder that it is no manifest: hidden files,
// and what editors and people leave beside the real one.
func leftAlone(name string) bool {
	return strings.HasPrefix(name, ".") || isScratch(name)
}

// isScratch is leftAlone but for the dotfiles, which may be the symlinks that
// the content of a folder is switched by (`..data`).
func isScratch(name string) bool {
	for _, suffix := range []string{"~", ".swp", ".bak", ".tmp"} {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return len(name) > 1 && strings.HasPrefix(name, "#") && strings.HasSuffix(name, "#")
}

// isManifestName says that the name claims to be a manifest. Others are read
// too, but a reader of the error is told how to keep a file from being read.
func isManifestName(name string) bool {
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}
