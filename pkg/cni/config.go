package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// maxConfigSize bounds a network configuration; real ones have a few hundred bytes.
const maxConfigSize = 1 << 20

// ParseConfig reads one network configuration: a list (*.conflist) or a single
// plugin (*.conf, *.json), as the runtime does, but with errors that name file
// and field. Every error is errdefs.ErrInvalid.
func ParseConfig(file string, data []byte) (*libcni.NetworkConfigList, error) {
	bad := func(field, format string, args ...any) error {
		where := file
		if field != "" {
			where += ": " + field
		}
		return errdefs.Errorf(errdefs.ErrInvalid, "%s: %w", where, fmt.Errorf(format, args...))
	}
	if len(data) > maxConfigSize {
		return nil, bad("", "%d bytes are more than a network configuration can have (%d)", len(data), maxConfigSize)
	}
	var top map[string]any
	if err := json.Unmarshal(data, &top); err != nil {
		return nil, bad(position(data, err), "not a JSON object: %w", err)
	}
	if field, err := checkCommon(top); err != nil {
		return nil, bad(field, "%w", err)
	}
	isList := strings.HasSuffix(file, ".conflist")
	if !isList {
		if _, ok := top["plugins"]; ok {
			return nil, bad("plugins", "a list of plugins belongs into a file that ends in .conflist")
		}
		if field, err := checkPlugin("", top); err != nil {
			return nil, bad(field, "%w", err)
		}
		conf, err := libcni.NetworkPluginConfFromBytes(data)
		if err != nil {
			return nil, bad("", "%w", err)
		}
		// The deprecated single form is still what some plugins install.
		//lint:ignore SA1019 see above
		list, err := libcni.ConfListFromConf(conf)
		if err != nil {
			return nil, bad("", "%w", err)
		}
		return list, nil
	}
	if field, err := checkPlugins(top); err != nil {
		return nil, bad(field, "%w", err)
	}
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		return nil, bad("", "%w", err)
	}
	if len(list.Plugins) == 0 && list.LoadOnlyInlinedPlugins {
		return nil, bad("plugins", "there are none")
	}
	return list, nil
}

// position turns a decoder's error into "line L, column C".
func position(data []byte, err error) string {
	var off int64 = -1
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		off = syntax.Offset
	case errors.As(err, &typ):
		off = typ.Offset
	}
	if off < 0 || off > int64(len(data)) {
		return ""
	}
	head := data[:off]
	return fmt.Sprintf("line %d, column %d", 1+bytes.Count(head, []byte("\n")), len(head)-1-bytes.LastIndexByte(head, '\n'))
}

// checkCommon looks at what lists and single plugins share.
func checkCommon(top map[string]any) (field string, err error) {
	name, ok := top["name"].(string)
	if !ok || name == "" {
		return "name", errors.New("must be a non-empty string")
	}
	if err := utils.ValidateNetworkName(name); err != nil {
		return "name", fmt.Errorf("%q: %s", name, err.Msg)
	}
	if v, ok := top["cniVersion"]; ok {
		s, ok := v.(string)
		if !ok {
			return "cniVersion", errors.New("must be a string")
		}
		if _, _, _, err := version.ParseVersion(s); err != nil {
			return "cniVersion", fmt.Errorf("%q is no version: %w", s, err)
		}
	}
	if v, ok := top["cniVersions"]; ok {
		list, ok := v.([]any)
		if !ok {
			return "cniVersions", errors.New("must be a list of strings")
		}
		for i, e := range list {
			s, ok := e.(string)
			if !ok {
				return fmt.Sprintf("cniVersions[%d]", i), errors.New("must be a string")
			}
			if _, _, _, err := version.ParseVersion(s); err != nil {
				return fmt.Sprintf("cniVersions[%d]", i), fmt.Errorf("%q is no version: %w", s, err)
			}
		}
	}
	return "", nil
}

func checkPlugins(top map[string]any) (field string, err error) {
	v, ok := top["plugins"]
	if !ok {
		return "", nil // they may be in a folder of the network's name
	}
	list, ok := v.([]any)
	if !ok || len(list) == 0 {
		return "plugins", errors.New("must be a list with at least one plugin")
	}
	for i, e := range list {
		prefix := fmt.Sprintf("plugins[%d]", i)
		p, ok := e.(map[string]any)
		if !ok {
			return prefix, errors.New("must be an object")
		}
		if field, err := checkPlugin(prefix+".", p); err != nil {
			return field, err
		}
	}
	return "", nil
}

// checkPlugin looks at one plugin's part; prefix is what its fields are under.
func checkPlugin(prefix string, p map[string]any) (field string, err error) {
	typ, ok := p["type"].(string)
	if !ok || typ == "" {
		return prefix + "type", errors.New("must name a plugin")
	}
	if err := checkType(typ); err != nil {
		return prefix + "type", err
	}
	if v, ok := p["capabilities"]; ok && v != nil {
		caps, ok := v.(map[string]any)
		if !ok {
			return prefix + "capabilities", errors.New("must be an object of booleans")
		}
		for name, v := range caps {
			if _, ok := v.(bool); !ok {
				return prefix + "capabilities." + name, errors.New("must be true or false")
			}
		}
	}
	v, ok := p["ipam"]
	if !ok || v == nil {
		return "", nil
	}
	ipam, ok := v.(map[string]any)
	if !ok {
		return prefix + "ipam", errors.New("must be an object")
	}
	if v, ok := ipam["type"]; ok {
		s, ok := v.(string)
		if !ok {
			return prefix + "ipam.type", errors.New("must name a plugin")
		}
		if s != "" {
			if err := checkType(s); err != nil {
				return prefix + "ipam.type", err
			}
		}
	}
	return checkRanges(prefix+"ipam.", ipam)
}

// checkType refuses what would make the runtime run a file outside its folder.
func checkType(typ string) error {
	if strings.ContainsAny(typ, "/\\\x00") || typ == "." || typ == ".." {
		return fmt.Errorf("%q is no name of a plugin", typ)
	}
	return nil
}

// checkRanges looks at host-local's subnets, whose mistakes show only when the
// first pod starts.
func checkRanges(prefix string, ipam map[string]any) (field string, err error) {
	if ipam["type"] != "host-local" {
		return "", nil
	}
	if v, ok := ipam["subnet"]; ok {
		if _, err := prefixOf(v); err != nil {
			return prefix + "subnet", err
		}
	}
	sets, ok := ipam["ranges"].([]any)
	if !ok {
		if v, there := ipam["ranges"]; there && v != nil {
			return prefix + "ranges", errors.New("must be a list of lists of ranges")
		}
		return "", nil
	}
	for i, s := range sets {
		set, ok := s.([]any)
		if !ok {
			return fmt.Sprintf("%sranges[%d]", prefix, i), errors.New("must be a list of ranges")
		}
		for j, r := range set {
			at := fmt.Sprintf("%sranges[%d][%d]", prefix, i, j)
			m, ok := r.(map[string]any)
			if !ok {
				return at, errors.New("must be an object")
			}
			if _, err := prefixOf(m["subnet"]); err != nil {
				return at + ".subnet", err
			}
		}
	}
	return "", nil
}

func prefixOf(v any) (netip.Prefix, error) {
	s, ok := v.(string)
	if !ok {
		return netip.Prefix{}, errors.New("must be a CIDR such as 10.88.0.0/16")
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is no CIDR such as 10.88.0.0/16", s)
	}
	return p, nil
}

// config is one file of the configuration folder as it was read.
type config struct {
	file   string
	data   []byte
	list   *libcni.NetworkConfigList // nil when err is set
	marker *marker                   // nil: not ours
	edited bool                      // ours, but changed by somebody since
	err    error
}

// configFiles are the files that a runtime looks at, in its order: the first
// one is the pods' network.
func configFiles(dir string) ([]string, error) {
	files, err := libcni.ConfFiles(dir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return nil, fmt.Errorf("read the CNI configuration folder: %w", err)
	}
	slices.Sort(files)
	return files, nil
}

// readConfig reads and checks one file; what is wrong is in its err.
func readConfig(file string) *config {
	c := &config{file: file}
	if c.data, c.err = os.ReadFile(file); c.err != nil {
		c.err = fmt.Errorf("read the CNI configuration: %w", c.err)
		return c
	}
	if filepath.Base(file) == confName {
		c.marker, c.edited = readMarker(c.data)
	}
	if c.list, c.err = ParseConfig(file, c.data); c.err != nil || !strings.HasSuffix(file, ".conflist") {
		return c
	}
	if !c.list.LoadOnlyInlinedPlugins {
		more, err := libcni.NetworkPluginConfsFromFiles(filepath.Dir(file), c.list.Name)
		if err != nil {
			c.list, c.err = nil, errdefs.Errorf(errdefs.ErrInvalid, "%s: plugins of network %s in its folder: %w", file, c.list.Name, err)
			return c
		}
		c.list.Plugins = append(c.list.Plugins, more...)
	}
	if len(c.list.Plugins) == 0 {
		c.list, c.err = nil, errdefs.Errorf(errdefs.ErrInvalid, "%s: plugins: there are none", file)
	}
	return c
}

// types are the programs that the configuration needs, in order, once each.
func (c *config) types() []string {
	var out []string
	add := func(t string) {
		if t != "" && !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	if c.list != nil {
		for _, p := range c.list.Plugins {
			add(p.Network.Type)
			add(p.Network.IPAM.Type)
		}
	}
	return out
}

// describe reads from a configuration what people want to see of it.
func (c *config) describe() Network {
	n := Network{File: c.file, Ours: c.marker != nil}
	if c.err != nil {
		n.Error = c.err.Error()
		return n
	}
	n.Name, n.CNIVersion = c.list.Name, c.list.CNIVersion
	for _, p := range c.list.Plugins {
		n.Plugins = append(n.Plugins, p.Network.Type)
		var more struct {
			Bridge string `json:"bridge"`
			IPAM   struct {
				Subnet string `json:"subnet"`
				Ranges [][]struct {
					Subnet string `json:"subnet"`
				} `json:"ranges"`
			} `json:"ipam"`
		}
		if json.Unmarshal(p.Bytes, &more) != nil {
			continue // another plugin's idea of these fields
		}
		if n.Bridge == "" {
			n.Bridge = more.Bridge
		}
		if more.IPAM.Subnet != "" {
			n.CIDRs = append(n.CIDRs, more.IPAM.Subnet)
		}
		for _, set := range more.IPAM.Ranges {
			for _, r := range set {
				n.CIDRs = append(n.CIDRs, r.Subnet)
			}
		}
	}
	return n
}
