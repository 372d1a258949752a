package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/nodeagent/nodeagent/pkg/cli"
	"github.com/nodeagent/nodeagent/pkg/config"
)

// program is one nodeagent without a process. Its agent runs nothing and keeps
// the configuration that it was given.
type program struct {
	app      *app
	out, err bytes.Buffer
	ran      []*config.NodeAgentConfiguration
	reload   func() (*config.NodeAgentConfiguration, error)
	fails    error
}

func newProgram(t *testing.T) *program {
	t.Helper()
	p := &program{}
	env := map[string]string{runDirEnv: t.TempDir()}
	p.app = newApp(cli.Streams{In: strings.NewReader(""), Out: &p.out, Err: &p.err}, func(k string) string { return env[k] })
	p.app.defaultConfig = filepath.Join(t.TempDir(), "nodeagent.yaml")
	p.app.agent = daemon{
		run: func(_ context.Context, cfg *config.NodeAgentConfiguration, load func() (*config.NodeAgentConfiguration, error), _ <-chan os.Signal) error {
			p.ran, p.reload = append(p.ran, cfg), load
			return p.fails
		},
		cleanup: func(_ context.Context, cfg *config.NodeAgentConfiguration, out io.Writer) error {
			p.ran = append(p.ran, cfg)
			return p.fails
		},
		cleanupKubeProxy: func(_ context.Context, out io.Writer) error {
			_, err := io.WriteString(out, "removed a rule\n")
			return err
		},
	}
	return p
}

func (p *program) main(t *testing.T, args ...string) int {
	t.Helper()
	p.out.Reset()
	p.err.Reset()
	return p.app.main(t.Context(), args)
}

// TestRefused: what is not understood ends with 1, one line that says why, and
// nothing on standard output, where a script would read it.
func TestRefused(t *testing.T) {
	bad := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(bad, []byte("apiVersion: nodeagent/v1alpha1\nkind: NodeAgentConfiguration\nnodename: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ line, want string }{
		{"bogus", `unknown command "bogus"`},
		{"images bogus", `unknown command "bogus" for "nodeagent images"`},
		{"completion tcsh", `unknown command "tcsh" for "nodeagent completion"`},
		{"get pods --bogus", `unknown flag: --bogus; see "nodeagent get --help"`},
		{"get", "name the type"},
		{"run extra", `write: nodeagent run [flags]`},
		{"logs", "write: nodeagent logs POD"},
		{"logs a b -c c", "named twice"},
		{"cp a", "write: nodeagent cp SOURCE DESTINATION"},
		{"port-forward web", "write: nodeagent port-forward POD [LOCAL:]REMOTE"},
		{"exec web ls", "write: exec POD -- COMMAND"},
		{"exec web --", "write: exec POD -- COMMAND"},
		{"exec -- ls", "write: exec POD -- COMMAND"},
		{"validate", "write: nodeagent validate FILE"},
		{"apply", `"filename" not set`},
		{"apply x -f y", `unknown command "x"`},
		{"delete", "name the type"},
		{"delete pod", "-l or --all"},
		{"delete pod a --all", "exclude each other"},
		{"delete pod a -f x", "-f goes with no names"},
		{"delete image a", "this command is for: pod, service"},
		{"describe images", "this command is for: pod, service"},
		{"version -o yaml", "json only"},
		{"check -o yaml", "there is: json"},
		{"run --proxy-mode ebpf", "must be one of: auto, iptables, ipvs, nftables, userspace, none"},
		{"run --node-labels gpu", "key=value"},
		{"run --manifest-url-header x", "NAME=VALUE"},
		{"run --listen 10248", "must be ADDRESS:PORT"},
		{"run --config " + bad, bad + ":3: nodename: unknown field"},
		{"config --config " + bad, bad + ":3: nodename: unknown field"},
		{"cleanup --config " + bad, bad + ":3: nodename: unknown field"},
		{"config --config /nonexistent.yaml", "/nonexistent.yaml"},
	} {
		t.Run(tc.line, func(t *testing.T) {
			p := newProgram(t)
			code := p.main(t, strings.Fields(tc.line)...)
			if code != 1 || p.out.Len() > 0 || !strings.HasPrefix(p.err.String(), "error: ") || !strings.Contains(p.err.String(), tc.want) {
				t.Errorf("code %d, out %q, err %q; want %q", code, &p.out, &p.err, tc.want)
			}
			if len(p.ran) > 0 {
				t.Error("the agent was started all the same")
			}
		})
	}
}

// TestNoAgentAnswers: every command that needs an agent says that there is none
// and how to get one.
func TestNoAgentAnswers(t *testing.T) {
	manifest := filepath.Join(t.TempDir(), "web.yaml")
	if err := os.WriteFile(manifest, []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: i}]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"get pods", "get pods -w", "get events -A", "get images", "get sources -w", "describe pod web", "logs web", "exec web -- ls", "attach web",
		"cp web:/a b", "cp " + manifest + " web:/a", "port-forward web :80", "apply -f " + manifest, "delete pod web", "delete -f " + manifest,
		"delete pods --all", "images pull busybox",
	} {
		p := newProgram(t)
		code := p.main(t, strings.Fields(line)...)
		if code != 1 || p.out.Len() > 0 || !strings.Contains(p.err.String(), "no agent answers on ") || !strings.Contains(p.err.String(), "nodeagent run") {
			t.Errorf("%s: code %d, out %q, err %q", line, code, &p.out, &p.err)
		}
	}
	p := newProgram(t)
	if code := p.main(t, "version"); code != 0 || !strings.Contains(p.out.String(), "none answers") {
		t.Errorf("version needs no agent: code %d, %q %q", code, &p.out, &p.err)
	}
}

// TestConfiguration: a flag goes over the file, a default under it, and what
// `config` prints says the same again.
func TestConfiguration(t *testing.T) {
	p := newProgram(t)
	file := filepath.Join(t.TempDir(), "c.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte("apiVersion: nodeagent/v1alpha1\nkind: NodeAgentConfiguration\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("nodeName: from-file\nlog: {level: debug}\n")
	if code := p.main(t, "run", "--config", file, "--node-name", "from-flag", "--pod-cidr", "10.1.0.0/16,fd01::/64"); code != 0 {
		t.Fatalf("code %d: %s", code, &p.err)
	}
	cfg := p.ran[0]
	if cfg.NodeName != "from-flag" || cfg.Log.Level != "debug" || !slices.Equal(cfg.Network.PodCIDRs, []string{"10.1.0.0/16", "fd01::/64"}) || cfg.StateDir != "/var/lib/nodeagent" {
		t.Errorf("got %+v", cfg)
	}

	write("log: {level: warn}\n")
	if cfg, err := p.reload(); err != nil || cfg.Log.Level != "warn" || cfg.NodeName != "from-flag" {
		t.Errorf("a reload reads %+v, %v", cfg, err)
	}
	write("bogus: 1\n")
	if _, err := p.reload(); err == nil {
		t.Error("a reload takes a file that a start would not")
	}

	if code := p.main(t, "config", "--quiet", "--config", file); code != 1 || !strings.Contains(p.err.String(), "bogus") {
		t.Errorf("--quiet: code %d, %s", code, &p.err)
	}
	write("")
	if code := p.main(t, "config", "--quiet", "--config", file); code != 0 || p.out.Len()+p.err.Len() > 0 {
		t.Errorf("--quiet: code %d, %s%s", code, &p.out, &p.err)
	}
	if code := p.main(t, "config", "--listen", "none", "--manifest-url", "http://h/p", "--manifest-url-header", "A=b"); code != 0 {
		t.Fatalf("code %d: %s", code, &p.err)
	}
	first := p.out.String()
	if err := os.WriteFile(file, []byte(first), 0o600); err != nil {
		t.Fatal(err)
	}
	if code := p.main(t, "config", "--config", file); code != 0 || p.out.String() != first {
		t.Errorf("read again, code %d, %s:\n%s\nwas\n%s", code, &p.err, &p.out, first)
	}
}

func TestDefaultConfigurationFile(t *testing.T) {
	p := newProgram(t)
	if code := p.main(t, "run"); code != 0 {
		t.Fatalf("with no file: code %d: %s", code, &p.err)
	}
	text := "apiVersion: nodeagent/v1alpha1\nkind: NodeAgentConfiguration\nnodeName: from-default\n"
	if err := os.WriteFile(p.app.defaultConfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if code := p.main(t, "run"); code != 0 || p.ran[1].NodeName != "from-default" {
		t.Errorf("code %d, %s, %+v", code, &p.err, p.ran)
	}
	p.fails = errors.New("the agent's own")
	if code := p.main(t, "run"); code != 1 || p.err.String() != "error: the agent's own\n" {
		t.Errorf("code %d, %s", code, &p.err)
	}
	if code := p.main(t, "cleanup"); code != 1 || p.err.String() != "error: the agent's own\n" {
		t.Errorf("cleanup: code %d, %s", code, &p.err)
	}
}

// TestCleanupKubeProxy: nothing of the agent's is removed with kube-proxy's.
func TestCleanupKubeProxy(t *testing.T) {
	p := newProgram(t)
	if code := p.main(t, "cleanup", "--kube-proxy"); code != 0 || p.out.String() != "removed a rule\n" || len(p.ran) > 0 {
		t.Errorf("code %d, out %q, err %q, the agent's cleanup %v", code, &p.out, &p.err, p.ran)
	}
}

// TestPackagedConfiguration: the file that `make install` and the Debian
// package bring is one that the agent takes.
func TestPackagedConfiguration(t *testing.T) {
	p := newProgram(t)
	if code := p.main(t, "run", "--config", "../../systemd/nodeagent.yaml"); code != 0 {
		t.Fatalf("code %d: %s", code, &p.err)
	}
	if p.ran[0].Manifests != "/etc/nodeagent/manifests" {
		t.Errorf("manifests: %q", p.ran[0].Manifests)
	}
}

// TestEveryCommandExplainsItself: help with an example, and text for each flag.
func TestEveryCommandExplainsItself(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Name() == "completion" || c.Name() == "help" {
			return
		}
		if c.Short == "" || c.Example == "" {
			t.Errorf("%s has no description or example", c.CommandPath())
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s --%s is not described", c.CommandPath(), f.Name)
			}
		})
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newProgram(t).app.root())
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		p := newProgram(t)
		if code := p.main(t, "completion", shell); code != 0 || !strings.Contains(p.out.String(), "nodeagent") || p.err.Len() > 0 {
			t.Errorf("%s: code %d, %d bytes, %s", shell, code, p.out.Len(), &p.err)
		}
	}
	for line, want := range map[string][]string{
		"get ":               cli.ResourceNames(),
		"get pods -o ":       cli.Outputs(),
		"run --log-level ":   {"debug", "info", "warn", "error"},
		"run --log-level w":  {"warn"},
		"run --proxy-mode ":  config.ProxyModes(),
		"describe ":          cli.ObjectKinds(),
		"validate ":          {"yaml", "yml", "json"},
		"get pods ":          nil, // no agent, no names, no error in the prompt
		"exec web -c ":       nil,
		"get pods -n ":       nil,
		"version -o ":        {"json"},
		"logs web another ":  nil,
		"images pull a-name": nil,
	} {
		p := newProgram(t)
		code := p.main(t, append([]string{cobra.ShellCompRequestCmd}, strings.Split(line, " ")...)...)
		lines := strings.Split(strings.TrimSuffix(p.out.String(), "\n"), "\n")
		got := lines[:len(lines)-1] // the last is the directive
		if code != 0 || !slices.Equal(got, want) {
			t.Errorf("%q: code %d, %q, want %q", line, code, got, want)
		}
	}
}
