package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodeagent/nodeagent/pkg/config"
	"github.com/nodeagent/nodeagent/pkg/server/credentials"
	"github.com/nodeagent/nodeagent/pkg/store"
)

type kubeconfigOptions struct {
	output, server, name string
	renew                bool
}

func (a *app) kubeconfigCmd() *cobra.Command {
	s, o := &settings{app: a}, kubeconfigOptions{}
	c := &cobra.Command{
		Use:   "kubeconfig",
		Short: "Write a kubeconfig for kubectl",
		Long: `Write a kubeconfig with which kubectl and other clients of Kubernetes reach this
agent. Who has it runs anything as root on this node.

The token in it is made once, and kept below the state folder, until --renew
asks for another one.`,
		Example: `  nodeagent kubeconfig --output ~/.kube/config
  kubectl get pods -A

  # a file for another machine; api.listen must be reachable from there
  nodeagent kubeconfig --server https://192.0.2.7:10247 >node-7.yaml

  # whoever has an older file is out
  nodeagent kubeconfig --renew --output ~/.kube/config`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			cfg, err := s.load()
			if err != nil {
				return err
			}
			text, err := kubeconfig(cfg, o)
			if err != nil {
				return err
			}
			if o.output == "" {
				_, err = a.streams.Out.Write(text)
				return err
			}
			if err := os.MkdirAll(filepath.Dir(o.output), 0o700); err != nil {
				return err
			}
			return store.WriteFile(o.output, text)
		},
	}
	s.bind(c)
	f := c.Flags()
	f.StringVarP(&o.output, "output", "o", "", "file to write, mode 0600, in place of standard output")
	f.StringVar(&o.server, "server", "", "URL of the agent's API (default: where api.listen says, on this host)")
	f.StringVar(&o.name, "name", "nodeagent", "name of the context, the cluster and the user in the file")
	f.BoolVar(&o.renew, "renew", false, "make a new token first; older files are no longer good")
	return c
}

func kubeconfig(cfg *config.NodeAgentConfiguration, o kubeconfigOptions) ([]byte, error) {
	if cfg.API.Listen == config.ListenNone {
		return nil, errors.New("the API over TCP is off: set api.listen in the configuration, such as " + config.DefaultAPIListen)
	}
	k := credentials.Kubeconfig{Name: o.name, Server: o.server}
	if k.Server == "" {
		k.Server = credentials.ServerURL(cfg.API.Listen)
	}
	own, err := credentials.Open(filepath.Join(cfg.StateDir, config.CredentialsDir), time.Now)
	if err != nil {
		return nil, err
	}
	k.Authority = own.Authority()
	if f := cfg.API.TLSCertFile; f != "" {
		// A certificate that is trusted itself needs nobody to vouch for it.
		if k.Authority, err = os.ReadFile(f); err != nil {
			return nil, fmt.Errorf("api.tlsCertFile: %w", err)
		}
	}
	if f := cfg.API.TokenFile; f != "" {
		if o.renew {
			return nil, fmt.Errorf("the token is that of api.tokenFile: write another one to %s", f)
		}
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("api.tokenFile: %w", err)
		}
		k.Token = strings.TrimSpace(string(text))
		return k.YAML()
	}
	if o.renew {
		if err := own.Renew(); err != nil {
			return nil, err
		}
	}
	if k.Token, err = own.Token(); err != nil {
		return nil, err
	}
	return k.YAML()
}
