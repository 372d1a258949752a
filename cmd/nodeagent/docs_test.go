package main

import (
	"io"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/nodeagent/nodeagent/pkg/cli"
	"github.com/nodeagent/nodeagent/pkg/config"
)

// TestDocumentation: docs/cli.md has a section for every command, and in it
// every flag that is not shared; configuration.md has those of the daemon.
func TestDocumentation(t *testing.T) {
	b, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	intro, sections := "", map[string]string{}
	for i, part := range strings.Split("\n"+string(b), "\n## ") {
		if i == 0 {
			continue
		}
		title, text, _ := strings.Cut(part, "\n")
		if i == 1 {
			intro = text
			continue
		}
		sections[title] = text
	}
	shared := pflag.NewFlagSet("", pflag.ContinueOnError)
	config.BindFlags(shared, &config.NodeAgentConfiguration{})
	shared.String("config", "", "")
	root := newApp(cli.Streams{Out: io.Discard, Err: io.Discard}, os.Getenv).root()
	root.InitDefaultCompletionCmd("run")
	var visit func(c *cobra.Command)
	visit = func(c *cobra.Command) {
		name := strings.TrimPrefix(c.CommandPath(), root.Name()+" ")
		text, ok := sections[name]
		switch {
		case c.Name() == "help" || strings.HasPrefix(name, "completion "):
			return
		case c.HasSubCommands() && name != "completion":
			for _, sub := range c.Commands() {
				visit(sub)
			}
			return
		case !ok:
			t.Errorf("no section %q", name)
		}
		delete(sections, name)
		c.Flags().VisitAll(func(f *pflag.Flag) {
			flag := "--" + f.Name
			if f.Name == "help" || shared.Lookup(f.Name) != nil || strings.Contains(intro, "`"+flag) {
				return
			}
			if !strings.Contains(text, "`"+flag) {
				t.Errorf("%s: %s is not there", name, flag)
			}
		})
	}
	visit(root)
	for name := range sections {
		t.Errorf("section %q is of no command", name)
	}
	for _, kind := range cli.ResourceNames() {
		if !strings.Contains(string(b), "`"+kind+"`") {
			t.Errorf("get: %s is not there", kind)
		}
	}
}
