package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nodeagent/nodeagent/pkg/cli"
	"github.com/nodeagent/nodeagent/pkg/config"
)

// runDirEnv names the run folder when --run-dir does not.
const runDirEnv = "NODEAGENT_RUN_DIR"

// app is the program without its process: tests run it with streams and an
// agent of their own.
type app struct {
	streams cli.Streams
	getenv  func(string) string
	agent   daemon
	// defaultConfig is read when --config names no other file and it exists.
	defaultConfig string
}

func newApp(s cli.Streams, getenv func(string) string) *app {
	return &app{streams: s, getenv: getenv, agent: realDaemon(), defaultConfig: config.DefaultConfigFile}
}

// main runs one command line and returns the exit code.
func (a *app) main(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	return cli.Report(a.streams.Err, root.ExecuteContext(ctx))
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "nodeagent",
		Short: "Run pods on this node, from a folder, a URL or an API",
		Long: `nodeagent runs Kubernetes Pods on one node with a container runtime: from a
folder of manifests, a URL or a local API, with no control plane needed.

"nodeagent run" is the daemon; most other commands talk to it over the socket
nodeagent.sock in its run folder, which --run-dir or ` + runDirEnv + ` names.`,
		Example: `  nodeagent check
  nodeagent run --manifests /etc/nodeagent/manifests
  nodeagent get pods -A -o wide`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetIn(a.streams.In)
	root.SetOut(a.streams.Out)
	root.SetErr(a.streams.Err)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w; see \"%s --help\"", err, c.CommandPath())
	})
	groups := []struct {
		id, title string
		commands  []*cobra.Command
	}{
		{"node", "The node:", []*cobra.Command{a.runCmd(), a.configCmd(), a.checkCmd(), a.cleanupCmd(), a.imagesCmd(), a.kubeconfigCmd()}},
		{"look", "Look at pods:", []*cobra.Command{a.getCmd(), a.describeCmd(), a.logsCmd(), a.topCmd()}},
		{"work", "Work with pods:", []*cobra.Command{a.execCmd(), a.attachCmd(), a.cpCmd(), a.portForwardCmd()}},
		{"change", "Change pods:", []*cobra.Command{a.applyCmd(), a.deleteCmd(), a.validateCmd()}},
	}
	for _, g := range groups {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, c := range g.commands {
			c.GroupID = g.id
			root.AddCommand(c)
		}
	}
	root.AddCommand(a.versionCmd())
	root.InitDefaultCompletionCmd()
	strict(root)
	return root
}

// strict has every command refuse what it does not understand, and say what it
// does: cobra prints the help of a group for any word after it, and calls
// that a success.
func strict(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return fmt.Errorf("%w; write: %s", err, c.UseLine())
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		if sub.HasSubCommands() {
			sub.Args = nil
			sub.RunE = func(c *cobra.Command, args []string) error {
				if len(args) == 0 {
					return c.Help()
				}
				return fmt.Errorf("unknown command %q for \"%s\"; see \"%[2]s --help\"", args[0], c.CommandPath())
			}
		}
		strict(sub)
	}
}

// client is what commands that talk to the agent share.
type client struct {
	app       *app
	runDir    string
	namespace string
}

// bind adds the flags of a client command.
func (cl *client) bind(c *cobra.Command) {
	cl.bindRunDir(c)
	c.Flags().StringVarP(&cl.namespace, "namespace", "n", "default", "namespace of the pods")
	complete(c, "namespace", func(c *cobra.Command, _ []string) []string {
		return cl.cli().CompleteNamespaces(c.Context())
	})
}

func (cl *client) bindRunDir(c *cobra.Command) {
	c.Flags().StringVar(&cl.runDir, "run-dir", "", "run folder of the agent (default $"+runDirEnv+" or "+config.DefaultRunDir+")")
}

func (cl *client) cli() *cli.CLI {
	dir := cl.runDir
	if dir == "" {
		dir = cl.app.getenv(runDirEnv)
	}
	if dir == "" {
		dir = config.DefaultRunDir
	}
	c := cli.New(dir, cl.app.streams)
	c.Namespace = cl.namespace
	return c
}

// complete registers what the shell offers for a flag.
func complete(c *cobra.Command, flag string, f func(c *cobra.Command, args []string) []string) {
	// It fails for a flag that does not exist only, which the tests would show.
	_ = c.RegisterFlagCompletionFunc(flag, func(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return withPrefix(f(c, args), prefix), cobra.ShellCompDirectiveNoFileComp
	})
}

func withPrefix(names []string, prefix string) []string {
	var out []string
	for _, n := range names {
		if strings.HasPrefix(n, prefix) {
			out = append(out, n)
		}
	}
	return out
}

// podArg completes one pod as the first argument.
func (cl *client) podArg(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return withPrefix(cl.cli().CompleteNames(c.Context(), "pods"), prefix), cobra.ShellCompDirectiveNoFileComp
}

// containerFlag adds -c with the containers of the pod that the first argument
// names.
func (cl *client) containerFlag(c *cobra.Command, p *string) {
	c.Flags().StringVarP(p, "container", "c", "", "container of the pod (default: its annotation kubectl.kubernetes.io/default-container, else the first)")
	complete(c, "container", func(c *cobra.Command, args []string) []string {
		if len(args) == 0 {
			return nil
		}
		return cl.cli().CompleteContainers(c.Context(), args[0])
	})
}
