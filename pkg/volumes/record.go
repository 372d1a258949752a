package volumes

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
)

const recordSuffix = ".json"

func putRecord(f *Folder, r Record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if have, err := f.readFile(r.Name + recordSuffix); err == nil && bytes.Equal(have, data) {
		return nil
	}
	return f.writeFile(r.Name+recordSuffix, data)
}

// records reads what is known of the volumes in a plugin's folder: by record,
// or, when that was lost, by the folder alone.
func (m *Manager) records(f *Folder, plugin string) ([]Record, error) {
	names, err := f.names()
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	kind := strings.TrimPrefix(plugin, "kubernetes.io~")
	if k := m.kindOfPlugin(plugin); k != nil {
		kind = k.Name()
	}
	byName := map[string]Record{}
	for _, name := range names {
		if strings.HasPrefix(name, ".") {
			continue // unfinished
		}
		base, isRecord := strings.CutSuffix(name, recordSuffix)
		r, known := byName[base]
		if !known {
			r = Record{Name: base, Kind: kind}
		}
		if isRecord {
			if data, err := f.readFile(name); err == nil && len(data) > 0 {
				if err := json.Unmarshal(data, &r); err != nil || r.Name != base {
					m.log.Warn("the record of a volume cannot be read; its folder is still found", "file", filepath.Join(f.path, name), "err", err)
					r = Record{Name: base, Kind: kind}
				}
			}
		}
		byName[base] = r
	}
	out := make([]Record, 0, len(byName))
	for _, r := range byName {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Record) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}
