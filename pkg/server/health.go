package server

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// Check is one line of /readyz, and of /healthz and /livez when Live is set.
type Check struct {
	Name string
	// Live: a failure means that the process itself is broken, not what it
	// depends on.
	Live bool
	// Check returns nil when all is well. It must not block.
	Check func() error
}

// checks lists what a health path looks at, ping first.
func (s *Server) checks(live bool) []Check {
	all := []Check{{Name: "ping", Live: true, Check: func() error { return nil }}}
	all = append(all, s.o.Checks...)
	if live {
		return slices.DeleteFunc(all, func(c Check) bool { return !c.Live })
	}
	info := s.o.Node.Info()
	all = append(all,
		Check{Name: "runtime", Check: func() error { return notReady(info.Runtime.Ready, info.Runtime.Reason) }},
		Check{Name: "network", Check: func() error { return notReady(info.Network.Ready, info.Network.Reason) }})
	for _, src := range s.o.Node.Sources() {
		all = append(all, Check{Name: "source-" + src.Name, Check: func() error {
			switch {
			case src.Synced:
				return nil
			case src.Error != "":
				return fmt.Errorf("not synced yet: %s", src.Error)
			case src.Tried:
				return fmt.Errorf("%s: not synced yet", src.Target)
			}
			return fmt.Errorf("%s: not tried yet", src.Target)
		}})
	}
	return all
}

func notReady(ready bool, reason string) error {
	switch {
	case ready:
		return nil
	case reason == "":
		return fmt.Errorf("not ready")
	}
	return fmt.Errorf("not ready: %s", reason)
}

// health serves /healthz, /livez and /readyz in kube-apiserver's text form:
// "ok", or every check when one fails or ?verbose is given. ?exclude=NAME
// leaves one out; PATH/NAME runs one alone.
func (s *Server) health(w http.ResponseWriter, r *http.Request, path, only string) {
	q := r.URL.Query()
	var b strings.Builder
	failed, seen := false, false
	for _, c := range s.checks(path != "readyz") {
		if only != "" && c.Name != only {
			continue
		}
		seen = true
		if slices.Contains(q["exclude"], c.Name) {
			fmt.Fprintf(&b, "[+]%s excluded: ok\n", c.Name)
			continue
		}
		if err := c.Check(); err != nil {
			failed = true
			fmt.Fprintf(&b, "[-]%s failed: %s\n", c.Name, strings.ReplaceAll(err.Error(), "\n", "; "))
			continue
		}
		fmt.Fprintf(&b, "[+]%s ok\n", c.Name)
	}
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-cache, private")
	_, verbose := q["verbose"]
	switch {
	case !seen:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintf(w, "%s has no check %q\n", path, only)
	case failed:
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprintf(w, "%s%s check failed\n", b.String(), path)
	case verbose:
		fmt.Fprintf(w, "%s%s check passed\n", b.String(), path)
	default:
		fmt.Fprint(w, "ok")
	}
}
