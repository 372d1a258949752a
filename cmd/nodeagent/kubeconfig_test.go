package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/nodeagent/nodeagent/pkg/cli"
)

// client of the kubeconfig that a command line prints, or what it says in place
// of one.
func runKubeconfig(t *testing.T, state string, args ...string) (*rest.Config, string) {
	t.Helper()
	var out, errs bytes.Buffer
	a := newApp(cli.Streams{Out: &out, Err: &errs}, func(string) string { return "" })
	a.defaultConfig = filepath.Join(state, "none.yaml")
	args = append([]string{"kubeconfig", "--state-dir", state}, args...)
	if a.main(context.Background(), args) != 0 {
		return nil, errs.String()
	}
	if out.Len() == 0 {
		return nil, ""
	}
	c, err := clientcmd.RESTConfigFromKubeConfig(out.Bytes())
	if err != nil {
		t.Fatalf("%v\n%s", err, out.Bytes())
	}
	return c, ""
}

func TestKubeconfig(t *testing.T) {
	state := t.TempDir()
	c, said := runKubeconfig(t, state)
	if c == nil || c.Host != "https://127.0.0.1:10247" || len(c.CAData) == 0 || len(c.BearerToken) < 32 {
		t.Fatalf("%+v, %s", c, said)
	}
	if again, _ := runKubeconfig(t, state, "--server", "https://192.0.2.7:1"); again.BearerToken != c.BearerToken || again.Host != "https://192.0.2.7:1" {
		t.Errorf("%+v", again)
	}
	renewed, _ := runKubeconfig(t, state, "--renew")
	if renewed.BearerToken == c.BearerToken || !bytes.Equal(renewed.CAData, c.CAData) {
		t.Error("--renew is for the token, and for it alone")
	}
	file := filepath.Join(t.TempDir(), "new", "config")
	if _, said := runKubeconfig(t, state, "--output", file); said != "" {
		t.Fatal(said)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if _, said := runKubeconfig(t, state, "--api-listen", "none"); !strings.Contains(said, "set api.listen") {
		t.Errorf("said %q", said)
	}
}

// With files of the user's own the kubeconfig has what is in them.
func TestKubeconfigOfOwnFiles(t *testing.T) {
	state := t.TempDir()
	file := filepath.Join(state, "config.yaml")
	for name, text := range map[string]string{
		"tls.crt": "-----BEGIN CERTIFICATE-----\n", "token": "secret\n",
		"config.yaml": "apiVersion: nodeagent/v1alpha1\nkind: NodeAgentConfiguration\napi: {listen: 0.0.0.0:1, tlsCertFile: tls.crt, tlsKeyFile: tls.key, tokenFile: token}\n",
	} {
		if err := os.WriteFile(filepath.Join(state, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, said := runKubeconfig(t, state, "--config", file)
	if c == nil || c.BearerToken != "secret" || string(c.CAData) != "-----BEGIN CERTIFICATE-----\n" || c.Host != "https://127.0.0.1:1" {
		t.Fatalf("%+v, %s", c, said)
	}
	if _, said := runKubeconfig(t, state, "--config", file, "--renew"); !strings.Contains(said, "api.tokenFile") {
		t.Errorf("said %q", said)
	}
}
