package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// trimFirst is when an agent has its Services, trimSecond how much later its
	// pods, trimEvery how often it gives back what it touched since.
	trimFirst, trimSecond, trimEvery = 4 * time.Second, 6 * time.Second, 4 * time.Minute
	// mostText is how much of the binary may stay in memory in between: looking
	// costs some ten microseconds, and is done textEarly while the agent comes up.
	mostText             = 16 << 20
	textEarly, textEvery = 50 * time.Millisecond, time.Second
)

// trim keeps the resident set to what an agent uses. Starting up, an API
// request or a burst of pods touches code and tables that are not needed
// again; they stay mapped because nobody wants the page cache's memory. The
// pages are clean copies of the binary: dropping them costs a minor fault when
// one is needed after all, and of these the kernel maps sixteen at once.
func trim(ctx context.Context, log *slog.Logger) error {
	own, err := ownText()
	if err == nil {
		err = own.drop() // what the initialisation of packages touched
	}
	next, look := time.NewTimer(trimFirst), time.NewTicker(textEarly)
	pause := trimSecond
	defer next.Stop()
	defer look.Stop()
	for err == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-next.C:
			debug.FreeOSMemory()
			next.Reset(pause)
			pause = trimEvery
			look.Reset(textEvery)
		case <-look.C:
			var resident int
			if resident, err = residentFiles(); resident <= mostText {
				continue
			}
		}
		err = errors.Join(err, own.drop())
	}
	log.Debug("cannot drop unused pages of the binary", "err", err)
	return nil
}

// residentFiles is how many bytes of mapped files are in memory.
func residentFiles() (int, error) {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	var size, resident, shared int
	if _, err := fmt.Sscan(string(b), &size, &resident, &shared); err != nil {
		return 0, fmt.Errorf("/proc/self/statm: %q: %w", b, err)
	}
	return shared * os.Getpagesize(), nil
}

// text is the binary's read-only segments.
type text []segment

func ownText() (text, error) {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return droppable(f, strings.TrimSuffix(exe, " (deleted)"))
}

// drop unmaps the pages; the kernel maps them again on access.
func (t text) drop() error {
	for _, s := range t {
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
