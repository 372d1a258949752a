package agent

import (
	"bufio"
	"context"
	"fmt"
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
// them again on access. Writable segments are never touched: their pages have
// no copy anywhere else.
func dropText() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		// 00400000-01a2b000 r-xp 00000000 fe:00 1234   /usr/bin/nodeagent
		fields := strings.Fields(s.Text())
		if len(fields) < 6 || fields[5] != strings.TrimSuffix(exe, " (deleted)") || (fields[1] != "r-xp" && fields[1] != "r--p") {
			continue
		}
		var from, to uintptr
		if _, err := fmt.Sscanf(fields[0], "%x-%x", &from, &to); err != nil {
			return err
		}
		if err := madvise(from, to-from, unix.MADV_DONTNEED); err != nil {
			return fmt.Errorf("madvise %s: %w", fields[0], err)
		}
	}
	return s.Err()
}

func madvise(addr, length uintptr, advice int) error {
	if _, _, errno := unix.Syscall(unix.SYS_MADVISE, addr, length, uintptr(advice)); errno != 0 {
		return errno
	}
	return nil
}
