package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodeagent/nodeagent/pkg/cli"
)

func (a *app) applyCmd() *cobra.Command {
	cl := &client{app: a}
	var files []string
	c := &cobra.Command{
		Use:   "apply -f FILE|FOLDER|-",
		Short: "Create objects, or change them to what manifests say",
		Example: `  nodeagent apply -f web.yaml
  nodeagent apply -f ./pods -f more.yaml
  generate-pods | nodeagent apply -f -`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return cl.cli().Apply(c.Context(), files, c.Flags().Changed("namespace"))
		},
	}
	cl.bind(c)
	filesFlag(c, &files)
	// It fails for a flag that does not exist only.
	_ = c.MarkFlagRequired("filename")
	return c
}

func filesFlag(c *cobra.Command, files *[]string) {
	c.Flags().StringArrayVarP(files, "filename", "f", nil, "manifest file, folder of them, or - for standard input; may be given again")
	_ = c.MarkFlagFilename("filename", "yaml", "yml", "json")
}

func (a *app) deleteCmd() *cobra.Command {
	cl := &client{app: a}
	var (
		files    []string
		all      bool
		selector string
		o        cli.DeleteOptions
		timeout  time.Duration
	)
	c := &cobra.Command{
		Use:   "delete (TYPE NAME… | TYPE -l LABELS | TYPE --all | -f FILE)",
		Short: "Delete pods, services and other objects",
		Long: `Delete objects that came through the API. One from a folder or a URL goes when
its manifest goes.`,
		Example: `  nodeagent delete pod web
  nodeagent delete -f web.yaml --wait=false
  nodeagent delete pod web --grace-period 5
  nodeagent delete pods -l app=web
  nodeagent delete pods --all -n test
  nodeagent delete service web
  nodeagent delete pod stuck --force`,
		RunE: func(c *cobra.Command, args []string) error {
			ctx, stop := interruptible(c)
			defer stop()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			if len(files) > 0 {
				if len(args) > 0 || all || selector != "" {
					return errors.New("-f goes with no names, --all or -l")
				}
				return cl.cli().DeleteFiles(ctx, files, o)
			}
			kind, names, err := cli.ObjectNames(args)
			o.Kind = kind
			switch {
			case err != nil:
				return err
			case len(names) > 0 && (all || selector != "") || all && selector != "":
				return errors.New("names, --all and -l exclude each other")
			case all || selector != "":
				return cl.cli().DeleteAll(ctx, selector, o)
			case len(names) == 0:
				return errors.New("name the objects to delete, or select them with -l or --all")
			}
			return cl.cli().Delete(ctx, names, o)
		},
		ValidArgsFunction: cl.objectArgs,
	}
	cl.bind(c)
	filesFlag(c, &files)
	f := c.Flags()
	f.Int64Var(&o.GracePeriod, "grace-period", -1, "seconds that containers have to finish; -1: what the pod says")
	f.BoolVar(&all, "all", false, "all objects of the type in the namespace that came through the API")
	f.StringVarP(&selector, "selector", "l", "", "objects with these labels, such as app=web,tier!=cache")
	f.BoolVar(&o.Force, "force", false, "kill the containers at once")
	f.BoolVar(&o.Wait, "wait", true, "wait until pods are gone")
	f.BoolVar(&o.IgnoreNotFound, "ignore-not-found", false, "a pod that is not there is no error")
	f.DurationVar(&timeout, "timeout", 0, "how long to wait; 0: as long as it takes")
	return c
}

func (a *app) validateCmd() *cobra.Command {
	var node string
	c := &cobra.Command{
		Use:   "validate FILE…",
		Short: "Check manifests as the agent would, without one",
		Long: `Check manifests: the same decoding, defaults and validation as in the agent, with
no agent needed. Of a folder it reads what the agent reads, and says when two
files name one pod. Every error names file and line; the exit code is 1 when
there is one.`,
		Example: `  nodeagent validate web.yaml
  nodeagent validate ./pods
  generate-pods | nodeagent validate -`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			ctx, stop := interruptible(c)
			defer stop()
			return cli.New("", a.streams).Validate(ctx, args, node)
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"yaml", "yml", "json"}, cobra.ShellCompDirectiveFilterFileExt
		},
	}
	c.Flags().StringVar(&node, "node-name", "", "refuse pods whose nodeName is another one")
	return c
}

func (a *app) imagesCmd() *cobra.Command {
	images := &cobra.Command{
		Use:   "images",
		Short: "Work with images on the node",
		Example: `  nodeagent images pull docker.io/library/nginx:stable-alpine
  nodeagent get images`,
	}
	cl := &client{app: a}
	pull := &cobra.Command{
		Use:     "pull IMAGE",
		Short:   "Pull an image and show how far it is",
		Example: `  nodeagent images pull docker.io/library/busybox:latest`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			ctx, stop := interruptible(c)
			defer stop()
			return cl.cli().Pull(ctx, args[0])
		},
		ValidArgsFunction: func(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return withPrefix(cl.cli().CompleteNames(c.Context(), "images"), prefix), cobra.ShellCompDirectiveNoFileComp
		},
	}
	cl.bindRunDir(pull)
	images.AddCommand(pull)
	return images
}

func (a *app) versionCmd() *cobra.Command {
	cl := &client{app: a}
	var output string
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program and of the running agent",
		Example: `  nodeagent version
  nodeagent version -o json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "" && output != "json" {
				return errors.New("-o knows json only")
			}
			return cl.cli().Version(c.Context(), version, commit, output == "json")
		},
	}
	cl.bindRunDir(c)
	c.Flags().StringVarP(&output, "output", "o", "", "json, or nothing for text")
	complete(c, "output", func(*cobra.Command, []string) []string { return []string{"json"} })
	return c
}
