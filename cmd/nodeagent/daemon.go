package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/nodeagent/nodeagent/pkg/cli"
	"github.com/nodeagent/nodeagent/pkg/config"
	"github.com/nodeagent/nodeagent/pkg/preflight"
)

// gcPercent halves what the garbage collector lets the heap grow by: an agent
// is idle most of the time, and its memory is the pods'.
const gcPercent = 50

// settings is a configuration as the command line gives it.
type settings struct {
	app  *app
	file string
	set  config.NodeAgentConfiguration
	fs   *pflag.FlagSet
}

func (s *settings) bind(c *cobra.Command) {
	s.fs = c.Flags()
	s.fs.StringVar(&s.file, "config", "", "configuration file (default "+s.app.defaultConfig+" when it exists)")
	config.BindFlags(s.fs, &s.set)
	complete(c, "log-level", func(*cobra.Command, []string) []string { return []string{"debug", "info", "warn", "error"} })
	complete(c, "log-format", func(*cobra.Command, []string) []string { return []string{"text", "json"} })
	complete(c, "proxy-mode", func(*cobra.Command, []string) []string { return config.ProxyModes() })
	complete(c, "detect-local-mode", func(*cobra.Command, []string) []string {
		return []string{config.DetectClusterCIDR, config.DetectNodeCIDR, config.DetectBridgeInterface, config.DetectInterfacePrefix}
	})
	complete(c, "ipvs-scheduler", func(*cobra.Command, []string) []string { return config.IPVSSchedulers() })
	complete(c, "runtime-endpoint", func(*cobra.Command, []string) []string {
		return []string{config.EndpointAuto, config.EndpointEmbedded, "unix:///run/containerd/containerd.sock"}
	})
}

// load reads the file, lays the flags over it and fills in the defaults. It can
// be called again: that is what a reload is.
func (s *settings) load() (*config.NodeAgentConfiguration, error) {
	c := &config.NodeAgentConfiguration{}
	file := s.file
	if file == "" {
		if _, err := os.Stat(s.app.defaultConfig); err == nil {
			file = s.app.defaultConfig
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("configuration: %w", err)
		}
	}
	if file != "" {
		var err error
		if c, err = config.Load(file); err != nil {
			return nil, err
		}
	}
	config.Override(c, &s.set, s.fs)
	host, err := config.ReadHost()
	if err != nil {
		return nil, err
	}
	config.Default(c, host)
	return c, config.Validate(c)
}

func (a *app) runCmd() *cobra.Command {
	s := &settings{app: a}
	c := &cobra.Command{
		Use:   "run",
		Short: "Run the agent",
		Long: `Run the agent until SIGTERM or SIGINT. Pods keep running when it ends and are
taken up again when it starts; SIGHUP re-reads the configuration.`,
		Example: `  # everything from the configuration file
  nodeagent run --config /etc/nodeagent/nodeagent.yaml

  # pods from a folder, on a private containerd
  nodeagent run --manifests ./pods --runtime-endpoint embedded

  # pods from a web server
  nodeagent run --manifest-url https://config.example.org/pods.yaml \
    --manifest-url-header "Authorization=Bearer $TOKEN"`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := s.load()
			if err != nil {
				return err
			}
			a.tuneMemory()
			ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			// A second signal ends a shutdown that hangs.
			context.AfterFunc(ctx, stop)
			hup := make(chan os.Signal, 1)
			signal.Notify(hup, syscall.SIGHUP)
			defer signal.Stop(hup)
			return a.agent.run(ctx, cfg, s.load, hup)
		},
	}
	s.bind(c)
	return c
}

// tuneMemory keeps to what the environment says, if it says something.
func (a *app) tuneMemory() {
	if a.getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

func (a *app) configCmd() *cobra.Command {
	s := &settings{app: a}
	quiet := false
	c := &cobra.Command{
		Use:   "config",
		Short: "Print the effective configuration, with defaults",
		Long: `Print the configuration that "nodeagent run" would use with the same flags: the
file, the flags over it, and defaults for the rest. The output is a valid
configuration file; it holds the values of manifestURLHeader as they are.`,
		Example: `  nodeagent config
  nodeagent config --config ./nodeagent.yaml --listen none

  # is it good?
  nodeagent config --quiet --config ./nodeagent.yaml`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			cfg, err := s.load()
			if err != nil || quiet {
				return err
			}
			return cfg.Print(a.streams.Out)
		},
	}
	s.bind(c)
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing, only check it")
	return c
}

func (a *app) checkCmd() *cobra.Command {
	s := &settings{app: a}
	var output string
	c := &cobra.Command{
		Use:   "check",
		Short: "Check whether this host can run pods",
		Long: `Check what this host has and lacks, for the agent that "nodeagent run" would
start with the same flags, and say what to do. The exit code is 1 when
something is missing that pods need; warnings do not count.`,
		Example: `  nodeagent check
  nodeagent check -o json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := s.load()
			if err != nil {
				return err
			}
			results := preflight.Run(c.Context(), preflight.ThisHost(), cfg)
			switch output {
			case "json":
				err = preflight.WriteJSON(a.streams.Out, results)
			case "":
				err = preflight.WriteTable(a.streams.Out, results)
			default:
				return fmt.Errorf("-o %q is not known; there is: json", output)
			}
			if err == nil && !preflight.Passed(results) {
				return &cli.ExitError{Code: 1}
			}
			return err
		},
	}
	s.bind(c)
	c.Flags().StringVarP(&output, "output", "o", "", "json, or nothing for a table")
	complete(c, "output", func(*cobra.Command, []string) []string { return []string{"json"} })
	return c
}

func (a *app) cleanupCmd() *cobra.Command {
	s := &settings{app: a}
	kubeProxy := false
	c := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything that the agent made on this host",
		Long: `End the agent's pods and remove what it made: rules, mounts, namespaces, network
configuration, cgroups and its own containerd. Stop the agent first; give the
flags or the configuration it ran with. What the host had before stays.`,
		Example: `  systemctl stop nodeagent && nodeagent cleanup

  # nothing of the agent's: the rules that a kube-proxy left on this host
  nodeagent cleanup --kube-proxy`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := s.load()
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			if kubeProxy {
				return a.agent.cleanupKubeProxy(ctx, a.streams.Out)
			}
			return a.agent.cleanup(ctx, cfg, a.streams.Out)
		},
	}
	s.bind(c)
	c.Flags().BoolVar(&kubeProxy, "kube-proxy", false, "remove what a kube-proxy left in the kernel, and nothing else; the agent may run")
	return c
}

// daemon is the agent as this program needs it.
type daemon struct {
	// run runs the agent until ctx ends. A value on reload asks it to take up
	// what load returns then.
	run func(ctx context.Context, cfg *config.NodeAgentConfiguration,
		load func() (*config.NodeAgentConfiguration, error), reload <-chan os.Signal) error
	cleanup func(ctx context.Context, cfg *config.NodeAgentConfiguration, out io.Writer) error
	// cleanupKubeProxy removes what a kube-proxy left.
	cleanupKubeProxy func(ctx context.Context, out io.Writer) error
}
