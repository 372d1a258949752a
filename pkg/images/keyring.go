package images

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
	"github.com/nodeagent/nodeagent/pkg/runtime"
)

// Keyring finds credentials for an image in a file in the format of docker's
// config.json. The file is looked at before each use and read again when it
// changed; while its new content cannot be read, the last good one counts.
type Keyring struct {
	file string
	log  *slog.Logger

	mu      sync.Mutex
	seen    fileMark
	loaded  bool // entries are of some good reading
	entries []entry
	refused map[string]string // registry host → why it cannot be used
	err     error             // of the newest reading
}

type fileMark struct {
	mod   time.Time
	size  int64
	inode uint64
	mode  fs.FileMode
}

// entry is one line of "auths": host may hold wildcards, prefix is a path.
type entry struct {
	key, host, prefix string
	auth              runtime.Auth
}

// NewKeyring reads from file at use; a file that does not exist means that
// there are no credentials. log may be nil.
func NewKeyring(file string, log *slog.Logger) *Keyring {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Keyring{file: file, log: log}
}

// Lookup returns the credentials for a normalised reference, the most specific
// first; none means anonymous. It fails (errdefs.ErrInvalid) when the file is
// unreadable and never was readable, and for a registry whose credentials a
// helper program keeps.
func (k *Keyring) Lookup(ref string) ([]runtime.Auth, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.refresh()
	if k.err != nil && !k.loaded {
		return nil, k.err
	}
	host, _ := splitRef(ref)
	for _, h := range []string{host, "*"} {
		if why := k.refused[h]; why != "" {
			return nil, fmt.Errorf("credentials for %s: %s: %w", host, why, errdefs.ErrInvalid)
		}
	}
	return matching(k.entries, ref), nil
}

// matching are the credentials for a normalised reference, each once.
func matching(entries []entry, ref string) (found []runtime.Auth) {
	host, repo := splitRef(ref)
	for _, e := range entries {
		if hostMatches(e.host, host) && strings.HasPrefix(repo, e.prefix) && !slices.Contains(found, e.auth) {
			found = append(found, e.auth)
		}
	}
	return found
}

// refresh reads the file when it is not the one that was read last.
func (k *Keyring) refresh() {
	info, err := os.Stat(k.file)
	if errors.Is(err, fs.ErrNotExist) {
		k.seen, k.loaded, k.entries, k.refused, k.err = fileMark{}, true, nil, nil, nil
		return
	}
	if err == nil && markOf(info) == k.seen {
		return
	}
	var data []byte
	if err == nil {
		k.seen = markOf(info)
		if info.Mode().Perm()&0o004 != 0 {
			k.log.Warn("the image credentials are readable by everybody; chmod 600 the file",
				"file", k.file, "mode", fmt.Sprintf("%04o", info.Mode().Perm()))
		}
		data, err = os.ReadFile(k.file)
	}
	var entries []entry
	var refused map[string]string
	if err == nil {
		entries, refused, err = parseConfig(data)
	}
	if err != nil {
		k.err = fmt.Errorf("image credentials %s: %w: %w", k.file, err, errdefs.ErrInvalid)
		k.log.Error("image credentials cannot be read", "file", k.file, "error", err, "keptOld", k.loaded)
		return
	}
	k.loaded, k.entries, k.refused, k.err = true, entries, refused, nil
}

// dockerConfig is what counts of docker's config.json.
type dockerConfig struct {
	Auths map[string]struct {
		Username      string `json:"username"`
		Password      string `json:"password"`
		Auth          string `json:"auth"`
		IdentityToken string `json:"identitytoken"`
		RegistryToken string `json:"registrytoken"`
	} `json:"auths"`
	CredHelpers map[string]string `json:"credHelpers"`
	CredsStore  string            `json:"credsStore"`
}

// parseConfig reads a config.json. Errors name the entry but never its content.
func parseConfig(data []byte) ([]entry, map[string]string, error) {
	var conf dockerConfig
	if err := json.Unmarshal(data, &conf); err != nil {
		return nil, nil, fmt.Errorf("not a docker config.json: %w", err)
	}
	refused := map[string]string{}
	for host, helper := range conf.CredHelpers {
		h, _ := splitKey(host)
		refused[h] = fmt.Sprintf("credHelpers names the helper %q for it; credential helpers are not supported, put an auths entry there instead", helper)
	}
	var entries []entry
	for key, a := range conf.Auths {
		host, prefix := splitKey(key)
		if host == "" {
			return nil, nil, fmt.Errorf("auths[%q]: not a registry", key)
		}
		// No ServerAddress, as from kubelet: runtimes compare it with the host they
		// talk to, which a wildcard, a mirror and Docker Hub do not match.
		auth := runtime.Auth{Username: a.Username, Password: a.Password,
			IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
		if a.Auth != "" {
			user, pass, err := decodeAuth(a.Auth)
			if err != nil {
				return nil, nil, fmt.Errorf("auths[%q].auth: %w", key, err)
			}
			if pass != "" || auth.IdentityToken == "" {
				auth.Username, auth.Password = user, pass
			}
		}
		if auth == (runtime.Auth{}) {
			if conf.CredsStore != "" {
				refused[host] = fmt.Sprintf("credsStore keeps them with the helper %q; credential helpers are not supported, put an auth into auths instead", conf.CredsStore)
			}
			continue
		}
		entries = append(entries, entry{key: key, host: host, prefix: prefix, auth: auth})
	}
	// As in kubelet: descending order of the key puts longer prefixes before
	// shorter ones, and names before "*".
	slices.SortFunc(entries, compareEntries)
	return entries, refused, nil
}

func compareEntries(a, b entry) int {
	if c := strings.Compare(b.host+b.prefix, a.host+a.prefix); c != 0 {
		return c
	}
	return strings.Compare(b.key, a.key)
}

// decodeAuth splits base64("user:password").
func decodeAuth(s string) (user, pass string, err error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		if b, err = base64.RawStdEncoding.DecodeString(s); err != nil {
			return "", "", errors.New("not base64")
		}
	}
	user, pass, ok := strings.Cut(strings.TrimRight(string(b), "\x00"), ":")
	if !ok {
		return "", "", errors.New("no colon between user and password")
	}
	return user, pass, nil
}

// splitKey takes a key of "auths" apart: schemes and docker's API version at
// its end do not count, and Docker Hub has three names.
func splitKey(key string) (host, prefix string) {
	s := key
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		// A wildcard in a host with a port is no URL to net/url.
		_, rest, _ := strings.Cut(s, "://")
		h, p, _ := strings.Cut(rest, "/")
		u = &url.URL{Host: h, Path: "/" + p}
	}
	p := u.Path
	if v := strings.TrimSuffix(p, "/"); v == "/v1" || v == "/v2" {
		p = ""
	} else if strings.HasPrefix(p, "/v1/") || strings.HasPrefix(p, "/v2/") {
		p = p[3:]
	}
	return canonicalHost(u.Host), strings.Trim(p, "/")
}

// splitRef takes a normalised reference apart into registry and repository.
func splitRef(ref string) (host, repo string) {
	host, repo, _ = strings.Cut(ref, "/")
	return canonicalHost(host), repo
}

func canonicalHost(h string) string {
	switch h {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return "docker.io"
	}
	return strings.ToLower(h)
}

// hostMatches compares host[:port] with a pattern, label by label, so that
// "*.example.com" matches one label only and ports must be equal.
func hostMatches(pattern, host string) bool {
	ph, pp := splitPort(pattern)
	hh, hp := splitPort(host)
	pl, hl := strings.Split(ph, "."), strings.Split(hh, ".")
	if pp != hp || len(pl) != len(hl) {
		return false
	}
	for i := range pl {
		if ok, err := path.Match(pl[i], hl[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

func splitPort(s string) (host, port string) {
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		return s[:i], s[i+1:]
	}
	return s, ""
}
