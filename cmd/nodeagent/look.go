package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/nodeagent/nodeagent/pkg/cli"
)

func (a *app) getCmd() *cobra.Command {
	cl, o := &client{app: a}, cli.GetOptions{}
	c := &cobra.Command{
		Use:   "get TYPE[,TYPE…] [NAME…]",
		Short: "List pods, services, configuration, volumes, containers, images, events or sources",
		Example: `  # pods of all namespaces with their addresses
  nodeagent get pods -A -o wide

  # pods and services
  nodeagent get all
  nodeagent get pods,services,endpoints -A

  # one pod as YAML
  nodeagent get pod web -o yaml

  # pods with a label, and what happens to them
  nodeagent get pods -l app=web -w

  # where pods come from, and what is wrong there
  nodeagent get sources -o wide`,
		RunE: func(c *cobra.Command, args []string) error {
			ctx, stop := interruptible(c)
			defer stop()
			return cl.cli().Get(ctx, args, o)
		},
		ValidArgsFunction: func(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return withPrefix(cli.ResourceNames(), prefix), cobra.ShellCompDirectiveNoFileComp
			}
			return withPrefix(cl.cli().CompleteNames(c.Context(), args[0]), prefix), cobra.ShellCompDirectiveNoFileComp
		},
	}
	cl.bind(c)
	f := c.Flags()
	f.StringVarP(&o.Output, "output", "o", "", "wide, json, yaml or name")
	f.BoolVarP(&o.Watch, "watch", "w", false, "go on and print what changes")
	f.BoolVarP(&o.AllNamespaces, "all-namespaces", "A", false, "all namespaces")
	f.StringVarP(&o.Selector, "selector", "l", "", "labels to select by, such as app=web,tier!=cache")
	f.StringVar(&o.FieldSelector, "field-selector", "", "fields to select by, such as status.phase=Running")
	f.BoolVar(&o.NoHeaders, "no-headers", false, "print no column names")
	complete(c, "output", func(*cobra.Command, []string) []string { return cli.Outputs() })
	return c
}

func (a *app) describeCmd() *cobra.Command {
	cl := &client{app: a}
	c := &cobra.Command{
		Use:   "describe TYPE [NAME…]",
		Short: "Show everything about pods, services and other objects, with their events",
		Example: `  nodeagent describe pod web
  nodeagent describe pods -n kube-system
  nodeagent describe service web
  nodeagent describe node`,
		RunE: func(c *cobra.Command, args []string) error {
			return cl.cli().DescribeArgs(c.Context(), args)
		},
		ValidArgsFunction: cl.objectArgs,
	}
	cl.bind(c)
	return c
}

// objectArgs completes "TYPE NAME…".
func (cl *client) objectArgs(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return withPrefix(cli.ObjectKinds(), prefix), cobra.ShellCompDirectiveNoFileComp
	}
	return withPrefix(cl.cli().CompleteNames(c.Context(), args[0]), prefix), cobra.ShellCompDirectiveNoFileComp
}

func (a *app) logsCmd() *cobra.Command {
	cl, o := &client{app: a}, cli.LogsOptions{}
	c := &cobra.Command{
		Use:   "logs POD",
		Short: "Print a container's log",
		Example: `  nodeagent logs web
  nodeagent logs web -c sidecar -f --tail 20
  nodeagent logs web --previous --since 10m --timestamps
  nodeagent logs web --all-containers --prefix`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 2 {
				if o.Container != "" {
					return fmt.Errorf("the container is named twice: %q and -c %q", args[1], o.Container)
				}
				o.Container = args[1]
			}
			ctx, stop := interruptible(c)
			defer stop()
			return cl.cli().Logs(ctx, args[0], o)
		},
		ValidArgsFunction: cl.podArg,
	}
	cl.bind(c)
	cl.containerFlag(c, &o.Container)
	f := c.Flags()
	f.BoolVarP(&o.Follow, "follow", "f", false, "go on and print what is added")
	f.BoolVarP(&o.Previous, "previous", "p", false, "the log of the container before its last restart")
	f.Int64Var(&o.Tail, "tail", -1, "print the last lines only; -1 prints all")
	f.DurationVar(&o.Since, "since", 0, "print what is newer than 5s, 2m or 3h")
	f.BoolVar(&o.AllContainers, "all-containers", false, "the logs of all containers of the pod")
	f.BoolVar(&o.Prefix, "prefix", false, "put pod and container before each line")
	f.BoolVar(&o.Timestamps, "timestamps", false, "put the time before each line")
	return c
}
