package main

import (
	"context"
	"errors"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/nodeagent/nodeagent/pkg/cli"
)

// interruptible ends the context with the first SIGINT or SIGTERM, so that a
// command can say goodbye to the agent and restore the terminal.
func interruptible(c *cobra.Command) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(c.Context(), syscall.SIGINT, syscall.SIGTERM)
}

func execFlags(c *cobra.Command, o *cli.ExecOptions) {
	c.Flags().BoolVarP(&o.Stdin, "stdin", "i", false, "hand standard input to the container")
	c.Flags().BoolVarP(&o.TTY, "tty", "t", false, "standard input is a terminal")
	c.Flags().BoolVarP(&o.Quiet, "quiet", "q", false, "print only what the container prints")
}

func (a *app) execCmd() *cobra.Command {
	cl, o := &client{app: a}, cli.ExecOptions{}
	c := &cobra.Command{
		Use:   "exec POD -- COMMAND [ARG…]",
		Short: "Run a command in a container",
		Long:  `Run a command in a container. The exit code is the command's.`,
		Example: `  nodeagent exec web -- ls -l /usr/share/nginx/html
  nodeagent exec -it web -c sidecar -- sh
  echo hello | nodeagent exec -i web -- tee /tmp/hello`,
		RunE: func(c *cobra.Command, args []string) error {
			if c.ArgsLenAtDash() != 1 || len(args) < 2 {
				return errors.New("write: exec POD -- COMMAND [ARG…]")
			}
			ctx, stop := interruptible(c)
			defer stop()
			return cl.cli().Exec(ctx, args[0], args[1:], o)
		},
		ValidArgsFunction: cl.podArg,
	}
	cl.bind(c)
	cl.containerFlag(c, &o.Container)
	execFlags(c, &o)
	return c
}

func (a *app) attachCmd() *cobra.Command {
	cl, o := &client{app: a}, cli.ExecOptions{}
	c := &cobra.Command{
		Use:   "attach POD",
		Short: "Connect to the main process of a container",
		Example: `  nodeagent attach web
  nodeagent attach -it shell -c main`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			ctx, stop := interruptible(c)
			defer stop()
			return cl.cli().Attach(ctx, args[0], o)
		},
		ValidArgsFunction: cl.podArg,
	}
	cl.bind(c)
	cl.containerFlag(c, &o.Container)
	execFlags(c, &o)
	return c
}

func (a *app) cpCmd() *cobra.Command {
	cl, o := &client{app: a}, cli.CopyOptions{}
	c := &cobra.Command{
		Use:   "cp SOURCE DESTINATION",
		Short: "Copy files into and out of a container",
		Long: `Copy a file or a folder between this host and a container, whose image must
have tar. Nothing is ever written outside the destination, and links are not
copied out of a container.`,
		Example: `  nodeagent cp web:/var/log/nginx ./nginx-logs
  nodeagent cp ./index.html kube-system/web:/usr/share/nginx/html/ -c nginx`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			ctx, stop := interruptible(c)
			defer stop()
			return cl.cli().Copy(ctx, args[0], args[1], o)
		},
		ValidArgsFunction: func(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			var out []string
			for _, n := range withPrefix(cl.cli().CompleteNames(c.Context(), "pods"), prefix) {
				out = append(out, n+":")
			}
			if len(args) > 1 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return out, cobra.ShellCompDirectiveNoSpace
		},
	}
	cl.bind(c)
	c.Flags().StringVarP(&o.Container, "container", "c", "", "container of the pod (default: the first)")
	complete(c, "container", func(c *cobra.Command, args []string) []string {
		for _, arg := range args {
			if pod, _, ok := strings.Cut(arg, ":"); ok {
				return cl.cli().CompleteContainers(c.Context(), pod)
			}
		}
		return nil
	})
	c.Flags().BoolVar(&o.NoPreserve, "no-preserve", false, "leave owner and permissions to the container")
	return c
}

func (a *app) portForwardCmd() *cobra.Command {
	cl := &client{app: a}
	var addresses []string
	c := &cobra.Command{
		Use:   "port-forward POD [LOCAL:]REMOTE…",
		Short: "Reach a pod's ports from this host",
		Example: `  # localhost:8080 here is port 80 there
  nodeagent port-forward web 8080:80

  # any free local port, on all addresses
  nodeagent port-forward web :80 --address 0.0.0.0`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			ctx, stop := interruptible(c)
			defer stop()
			return cl.cli().PortForward(ctx, args[0], args[1:], addresses)
		},
		ValidArgsFunction: cl.podArg,
	}
	cl.bind(c)
	c.Flags().StringSliceVar(&addresses, "address", []string{"localhost"}, "local addresses to listen on")
	return c
}
