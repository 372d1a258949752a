// Command nodeagent runs pods on one node and is the command line of the agent
// that does.
package main

import (
	"context"
	"os"

	"github.com/nodeagent/nodeagent/pkg/cli"
)

// Stamped by the linker: -X main.version=… -X main.commit=….
var (
	version = "dev"
	commit  = "unknown"
)

func main() {
	a := newApp(cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}, os.Getenv)
	os.Exit(a.main(context.Background(), os.Args[1:]))
}
