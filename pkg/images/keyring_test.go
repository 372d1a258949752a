package images

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/pkg/errdefs"
)

// users are who a file's content gives for a reference, in order.
func users(t *testing.T, k *Keyring, ref string) string {
	t.Helper()
	auths, err := k.Lookup(ref)
	if err != nil {
		return "error"
	}
	var out []string
	for _, a := range auths {
		out = append(out, a.Username+a.IdentityToken+a.RegistryToken)
	}
	return strings.Join(out, " ")
}

func keyringOf(t *testing.T, content string) (*Keyring, string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return NewKeyring(file, nil), file
}

func TestKeyring(t *testing.T) {
	b64 := base64.StdEncoding.EncodeToString([]byte("encoded:p:w"))
	k, _ := keyringOf(t, fmt.Sprintf(`{"auths":{
		"https://index.docker.io/v1/": {"username":"hub","password":"x"},
		"r.example.org": {"auth":%q},
		"r.example.org/team": {"username":"team","password":"x"},
		"*.wild.org": {"username":"wild","password":"x"},
		"ports.org:5000": {"username":"port","password":"x"},
		"tokens.org": {"identitytoken":"idt"}, "bearer.org": {"registrytoken":"regt"},
		"helped.org": {}},
		"credHelpers":{"ecr.org":"ecr-login"}, "credsStore":"desktop"}`, b64))
	for ref, want := range map[string]string{
		"docker.io/library/nginx:1":  "hub",
		"r.example.org/other:1":      "encoded",
		"r.example.org/team/app:1":   "team encoded",
		"a.wild.org/x:1":             "wild",
		"a.b.wild.org/x:1":           "",
		"wild.org/x:1":               "",
		"ports.org:5000/x:1":         "port",
		"ports.org/x:1":              "",
		"tokens.org/x:1":             "idt",
		"bearer.org/x:1":             "regt",
		"nobody.org/x:1":             "",
		"ecr.org/x:1":                "error",
		"helped.org/x:1":             "error",
		"R.Example.org/other:1":      "encoded",
		"r.example.org/team@sha256:": "team encoded",
	} {
		if got := users(t, k, ref); got != want {
			t.Errorf("%s: %q, want %q", ref, got, want)
		}
	}
	auths, _ := k.Lookup("r.example.org/other:1")
	if len(auths) != 1 || auths[0].Password != "p:w" {
		t.Errorf("a password with a colon: %+v", auths)
	}
}

func TestKeyringFollowsItsFile(t *testing.T) {
	k, file := keyringOf(t, `{"auths":{"r.org":{"username":"one","password":"x"}}}`)
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		// File systems keep time in ticks; two writes can fall into one.
		if err := os.Chtimes(file, time.Time{}, time.Now().Add(time.Duration(len(s))*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if got := users(t, k, "r.org/x:1"); got != "one" {
		t.Fatal(got)
	}
	write(`{"auths":{"r.org":{"username":"second","password":"x"}}}`)
	if got := users(t, k, "r.org/x:1"); got != "second" {
		t.Errorf("after a change: %q", got)
	}
	write(`{"auths":`)
	if got := users(t, k, "r.org/x:1"); got != "second" {
		t.Errorf("while the file is damaged: %q, want the last good", got)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if got := users(t, k, "r.org/x:1"); got != "" {
		t.Errorf("without a file: %q", got)
	}
}

func TestKeyringNeverReadable(t *testing.T) {
	for name, content := range map[string]string{
		"no JSON":   `{`,
		"no base64": `{"auths":{"r.org":{"auth":"secret!"}}}`,
		"no colon":  `{"auths":{"r.org":{"auth":"c2VjcmV0"}}}`,
		"no host":   `{"auths":{"":{"username":"secret"}}}`,
	} {
		k, file := keyringOf(t, content)
		_, err := k.Lookup("r.org/x:1")
		if !errors.Is(err, errdefs.ErrInvalid) || !strings.Contains(err.Error(), file) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestNormalize(t *testing.T) {
	digest := "sha256:" + strings.Repeat("a", 64)
	for in, want := range map[string]string{
		"nginx":                     "docker.io/library/nginx:latest",
		"nginx:1":                   "docker.io/library/nginx:1",
		"team/app":                  "docker.io/team/app:latest",
		"r.org:5000/app":            "r.org:5000/app:latest",
		"r.org/app:1@" + digest:     "r.org/app@" + digest,
		"index.docker.io/library/x": "docker.io/library/x:latest",
		"UPPER":                     "", "": "", "a:b:c": "", "r.org/app@sha256:12": "",
	} {
		got, err := Normalize(in)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
}
