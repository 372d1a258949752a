//go:build killpoints

package agent

import (
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
)

// killHook ends the process with SIGKILL at the n-th point that it passes, n
// from NODEAGENT_KILL_AT, after writing the point's name to the file in
// NODEAGENT_KILL_LOG; only points of the name NODEAGENT_KILL_POINT count, if it
// is set. Only the crash tests build it in.
func killHook() func(point string) {
	at, err := strconv.ParseInt(os.Getenv("NODEAGENT_KILL_AT"), 10, 64)
	if err != nil || at <= 0 {
		return nil
	}
	var passed atomic.Int64
	name := os.Getenv("NODEAGENT_KILL_POINT")
	return func(point string) {
		if name != "" && name != point || passed.Add(1) != at {
			return
		}
		if path := os.Getenv("NODEAGENT_KILL_LOG"); path != "" {
			if f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600); err == nil {
				fmt.Fprintf(f, "%d %s\n", at, point)
				f.Close()
			}
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}
