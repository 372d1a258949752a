package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"time"

	"github.com/nodeagent/nodeagent/pkg/cli/table"
	"github.com/nodeagent/nodeagent/pkg/server/api"
)

// versionPatience bounds how long `version` waits for the running agent.
const versionPatience = 2 * time.Second

// versions is what `version -o json` prints.
type versions struct {
	Client clientVersion `json:"clientVersion"`
	// Agent is the running one; absent when none answers.
	Agent *api.Info `json:"agent,omitempty"`
}

type clientVersion struct {
	Version   string `json:"version"`
	Commit    string `json:"commit"`
	GoVersion string `json:"goVersion"`
	Platform  string `json:"platform"`
}

// Version prints this program's version and, when one runs, the agent's and
// its runtime's.
func (c *CLI) Version(ctx context.Context, version, commit string, asJSON bool) error {
	ctx, cancel := context.WithTimeout(ctx, versionPatience)
	defer cancel()
	v := versions{Client: clientVersion{version, commit, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}}
	var l api.InfoList
	// No agent is not an error here: the question was asked of this program.
	if err := c.client.get(ctx, api.Prefix+api.PathInfo, nil, &l); err == nil && len(l.Items) == 1 {
		v.Agent = &l.Items[0]
	}
	if asJSON {
		b, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return err
		}
		_, err = c.Out.Write(append(b, '\n'))
		return err
	}
	fmt.Fprintf(c.Out, "nodeagent %s (commit %s, %s, %s)\n", version, commit, v.Client.GoVersion, v.Client.Platform)
	switch a := v.Agent; {
	case a == nil:
		fmt.Fprintln(c.Out, "running agent: none answers")
	case a.Runtime.Name == "":
		fmt.Fprintf(c.Out, "running agent: %s on %s, no runtime has answered yet\n", table.Safe(a.Version), table.Safe(a.NodeName))
	default:
		fmt.Fprintf(c.Out, "running agent: %s on %s, runtime %s %s\n", table.Safe(a.Version), table.Safe(a.NodeName), table.Safe(a.Runtime.Name), table.Safe(a.Runtime.Version))
	}
	if v.Agent != nil && v.Agent.Proxy.Mode != "" {
		fmt.Fprintln(c.Out, "Services: "+services(v.Agent.Proxy))
	}
	return nil
}

func services(p api.Proxy) string {
	text := fmt.Sprintf("%d served, mode %s", p.Services, table.Safe(p.Mode))
	switch {
	case !p.Ready:
		text += ", not up to date: " + table.Safe(p.Reason)
	case !p.LastSync.IsZero():
		text += ", last change " + p.LastSync.Local().Format(time.DateTime)
	}
	return text
}
