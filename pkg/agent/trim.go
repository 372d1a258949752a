package agent

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// trimEvery is how often an agent gives back what it touched since.
const trimEvery = 4 * time.Minute

// trim keeps the resident set to what an idle agent uses. Starting up, an API
// request or a burst of pods touches code and tables that are not needed
// again; they stay mapped because nobody wants the page cache's memory. The
// pages are clean copies of the binary: dropping them costs a minor fault when
// one is needed after all.
func trim(ctx context.Context, log *slog.Logger) error {
	next := time.NewTimer(10 * time.Second)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-next.C:
		}
		debug.FreeOSMemory()
		if err := dropText(); err != nil {
			log.Debug("cannot drop unused pages of the binary", "err", err)
			return nil
		}
		next.Reset(trimEvery)
	}
}

// dropText unmaps the pages of the binary's read-only segments; the kernel maps
// them again on access.
func dropText() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	defer f.Close()
	segments, err := droppable(f, strings.TrimSuffix(exe, " (deleted)"))
	if err != nil {
		return err
	}
	for _, s := range segments {
		if err := madvise(s.from, s.to-s.from, unix.MADV_DONTNEED); err != nil {
			return fmt.Errorf("madvise %x-%x: %w", s.from, s.to, err)
		}
	}
	return nil
}

type segment struct{ from, to uintptr }

// droppable finds, in what /proc/PID/smaps says, the read-only segments of the
// binary whose pages are all copies of the file. What the loader relocated in a
// position-independent binary is read-only as well by now, and exists in
// memory only.
func droppable(smaps io.Reader, exe string) (out []segment, err error) {
	var s segment
	candidate := false
	for lines := bufio.NewScanner(smaps); ; {
		if !lines.Scan() {
			return out, lines.Err()
		}
		// 00400000-01a2b000 r-xp 00000000 fe:00 1234   /usr/bin/nodeagent
		// Anonymous:             0 kB
		switch f := strings.Fields(lines.Text()); {
		case len(f) == 3 && f[0] == "Anonymous:":
			if candidate && f[1] == "0" {
				out = append(out, s)
			}
		case len(f) >= 5 && strings.Contains(f[0], "-"):
			if _, err := fmt.Sscanf(f[0], "%x-%x", &s.from, &s.to); err != nil {
				return nil, fmt.Errorf("smaps: %q: %w", f[0], err)
			}
			candidate = len(f) >= 6 && f[5] == exe && (f[1] == "r-xp" || f[1] == "r--p")
		}
	}
}

func madvise(addr, length uintptr, advice int) error {
	if _, _, errno := unix.Syscall(unix.SYS_MADVISE, addr, length, uintptr(advice)); errno != 0 {
		return errno
	}
	return nil
}
