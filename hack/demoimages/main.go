// Demoimages makes the images that the examples name, from programs of the
// host, and serves them as a registry: demo nodes have no network to pull from.
//
//	demoimages archive DIR    writes one docker archive into DIR
//	demoimages serve ADDR     is a registry on ADDR until it is killed
package main

import (
	"fmt"
	"net/http"
	"os"

	"github.com/nodeagent/nodeagent/internal/testbed"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "demoimages:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: demoimages archive DIR | serve ADDR")
	}
	switch args[0] {
	case "archive":
		path, err := testbed.WriteDemoArchive(args[1])
		if err != nil {
			return err
		}
		fmt.Println(path)
		return nil
	case "serve":
		h, err := testbed.DemoRegistry()
		if err != nil {
			return err
		}
		return http.ListenAndServe(args[1], h)
	}
	return fmt.Errorf("unknown command %q: archive or serve", args[0])
}
