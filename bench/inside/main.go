// Inside is the part of the benchmarks that runs in the guest of the VM tier.
//
//	inside serve ADDRESS     answers connections
//	inside connect           reads addresses, one on a line, and writes a line
//	                         for each once a connection to it was accepted
package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/nodeagent/nodeagent/bench/connect"
)

// every spares the emulated processors, which the proxy needs.
const every = 5 * time.Millisecond

func main() {
	err := fmt.Errorf("usage: inside serve ADDRESS | inside connect")
	switch {
	case len(os.Args) == 3 && os.Args[1] == "serve":
		err = serve(os.Args[2])
	case len(os.Args) == 2 && os.Args[1] == "connect":
		err = first()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "inside:", err)
		os.Exit(1)
	}
}

func serve(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	return connect.Serve(l)
}

func first() error {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		to, err := netip.ParseAddrPort(lines.Text())
		if err != nil {
			return err
		}
		if _, err := connect.First(context.Background(), to, every); err != nil {
			return err
		}
		fmt.Println(to)
	}
	return lines.Err()
}
