package main

import (
	"github.com/spf13/cobra"

	"github.com/nodeagent/nodeagent/pkg/cli"
)

func (a *app) topCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "top",
		Short: "Show the CPU and memory that pods or the node use now",
		Example: `  nodeagent top pods -A --sort-by memory
  nodeagent top pod web --containers
  nodeagent top node`,
	}
	c.AddCommand(a.topPodsCmd(), a.topNodeCmd())
	return c
}

func (a *app) topPodsCmd() *cobra.Command {
	cl, o := &client{app: a}, cli.TopOptions{}
	c := &cobra.Command{
		Use:     "pods [NAME]",
		Aliases: []string{"pod", "po"},
		Short:   "Show what pods use",
		Example: `  nodeagent top pods
  nodeagent top pods -l app=web --containers
  nodeagent top pods -A --sort-by cpu`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return cl.cli().TopPods(c.Context(), first(args), o)
		},
		ValidArgsFunction: cl.podArg,
	}
	cl.bind(c)
	f := c.Flags()
	f.BoolVarP(&o.AllNamespaces, "all-namespaces", "A", false, "all namespaces")
	f.BoolVar(&o.Containers, "containers", false, "a line for each container")
	f.StringVarP(&o.Selector, "selector", "l", "", "labels to select by, such as app=web,tier!=cache")
	f.StringVar(&o.FieldSelector, "field-selector", "", "fields to select by, such as metadata.name=web")
	topFlags(c, &o)
	return c
}

func (a *app) topNodeCmd() *cobra.Command {
	cl, o := &client{app: a}, cli.TopOptions{}
	c := &cobra.Command{
		Use:     "node [NAME]",
		Aliases: []string{"nodes", "no"},
		Short:   "Show what the node uses",
		Example: `  nodeagent top node`,
		Args:    cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return cl.cli().TopNode(c.Context(), first(args), o)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cl.bindRunDir(c)
	topFlags(c, &o)
	return c
}

func topFlags(c *cobra.Command, o *cli.TopOptions) {
	f := c.Flags()
	f.StringVar(&o.SortBy, "sort-by", "", "cpu or memory, the most first; by name without it")
	f.BoolVar(&o.NoHeaders, "no-headers", false, "print no column names")
	complete(c, "sort-by", func(*cobra.Command, []string) []string { return cli.SortKeys() })
}

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}
