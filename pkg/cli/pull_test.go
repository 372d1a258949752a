package cli

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"testing"

	"github.com/nodeagent/nodeagent/pkg/server/api"
)

// output is a terminal that is one, or is not.
type output bool

func (output) In() bool                                 { return false }
func (o output) Out() bool                              { return bool(o) }
func (output) Raw() (func() error, error)               { return func() error { return nil }, nil }
func (output) Size() (uint16, uint16, error)            { return 80, 24, nil }
func (output) Resized(context.Context) <-chan os.Signal { return nil }

func TestPull(t *testing.T) {
	const image = "docker.io/library/big:1"
	half := api.PullProgress{Image: image, Done: 500_000, Total: 1_000_000}
	done := api.PullProgress{Image: image, Done: 1_000_000, Total: 1_000_000, Complete: true, ID: "sha256:1", Ref: image}
	for name, tc := range map[string]struct {
		progress []api.PullProgress
		terminal bool
		out, err string
	}{
		"to a file": {[]api.PullProgress{half, done}, false, image + ": pulling\n" + image + ": complete, " + image + "\n", ""},
		"on a terminal": {[]api.PullProgress{{Done: 500}, half, done}, true,
			"\r" + image + ": 500B\x1b[K\r" + image + ": [###############---------------] 50%  500kB/1MB\x1b[K\r" +
				image + ": [##############################] 100%  1MB/1MB\x1b[K\n" + image + ": complete, " + image + "\n", ""},
		"no name but its id": {[]api.PullProgress{{Complete: true, ID: "sha256:1"}}, false, image + ": pulling\n" + image + ": complete, sha256:1\n", ""},
		"it fails":           {[]api.PullProgress{half, {Error: "no such image"}}, false, image + ": pulling\n", "error: pull of " + image + ": no such image\n"},
		"the agent goes away": {[]api.PullProgress{half}, false, image + ": pulling\n",
			"error: pull of " + image + ": the agent went away before it was complete\n"},
	} {
		t.Run(name, func(t *testing.T) {
			f, c, out, errs := newFake(t)
			c.Terminal = output(tc.terminal)
			f.extra = func(w http.ResponseWriter, r *http.Request) bool {
				var asked api.PullRequest
				if err := json.NewDecoder(r.Body).Decode(&asked); err != nil || asked.Image != image || r.URL.Path != api.Prefix+api.PathPull {
					t.Errorf("%s %s with %+v, %v", r.Method, r.URL, asked, err)
				}
				enc := json.NewEncoder(w)
				for _, p := range tc.progress {
					if err := enc.Encode(p); err != nil {
						t.Error(err)
					}
				}
				return true
			}
			code := Report(errs, c.Pull(t.Context(), image))
			if out.String() != tc.out || errs.String() != tc.err || code != min(1, len(tc.err)) {
				t.Errorf("code %d, err %q, out\n%q, want\n%q", code, errs, out, tc.out)
			}
		})
	}
}
