package main

import (
	"context"
	"io"
	"os"

	"github.com/nodeagent/nodeagent/pkg/agent"
	"github.com/nodeagent/nodeagent/pkg/config"
)

// realDaemon is the agent; tests of the command line take another one.
func realDaemon() daemon {
	return daemon{
		run: func(ctx context.Context, cfg *config.NodeAgentConfiguration, load func() (*config.NodeAgentConfiguration, error), reload <-chan os.Signal) error {
			return agent.Run(ctx, cfg, agent.Options{
				Build: agent.Build{Version: version, Commit: commit}, Load: load, Reload: reload, LogTo: os.Stderr,
			})
		},
		cleanup: func(ctx context.Context, cfg *config.NodeAgentConfiguration, out io.Writer) error {
			return agent.Cleanup(ctx, cfg, out)
		},
		cleanupKubeProxy: agent.CleanupKubeProxy,
	}
}
