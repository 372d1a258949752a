package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/pkg/iptables"
)

// lookEvery is how often a legacyWatch looks.
const lookEvery = 500 * time.Millisecond

// legacyWatch watches the older variant, of which the kernel does not tell.
// What costs nothing is looked at twice a second: the number of entries of each
// table and their size, and whether anybody opened the lock of iptables, which
// every change does. When there is something, the tables are read. They also are
// now and then while we change them, for who did so at the same moment: that takes
// one part in readShare of the time.
type legacyWatch struct {
	sockets map[bool]int // by IPv6
	lock    int          // inotify
	locked  bool         // the lock file is watched

	// Guarded by the backend's lock: what our own last transaction left, how many
	// rules each of our chains has, and what was read of those that are the same
	// since.
	sizes map[tableID]tableSize
	count map[tableID]map[string]int
	read  map[tableID]map[string]iptables.Rules
	// unread says that a chain was changed since everything was read, rest until
	// when that is left at that.
	unread bool
	rest   time.Time
}

const readShare = 20

type tableID struct {
	v6   bool
	name string
}

type tableSize struct{ entries, bytes uint32 }

func newLegacyWatch() (*legacyWatch, error) {
	w := &legacyWatch{
		sockets: map[bool]int{}, lock: -1,
		count: map[tableID]map[string]int{}, read: map[tableID]map[string]iptables.Rules{},
	}
	for _, v6 := range []bool{false, true} {
		domain := unix.AF_INET
		if v6 {
			domain = unix.AF_INET6
		}
		s, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			w.close()
			return nil, fmt.Errorf("watch iptables: a raw socket: %w", err)
		}
		w.sockets[v6] = s
	}
	var err error
	if w.lock, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err != nil {
		w.close()
		return nil, fmt.Errorf("watch the lock of iptables: inotify: %w", err)
	}
	return w, nil
}

func (w *legacyWatch) close() {
	for _, s := range w.sockets {
		unix.Close(s)
	}
	if w.lock >= 0 {
		unix.Close(w.lock)
	}
}

// getInfo is IPT_SO_GET_INFO and IP6T_SO_GET_INFO; the structure is the
// kernel's struct ipt_getinfo.
const getInfo = 64

type tableInfo struct {
	name             [32]byte
	hooks            uint32
	entry, underflow [5]uint32
	entries, size    uint32
}

// size asks the kernel; a table that it does not have is of none.
func (w *legacyWatch) size(id tableID) tableSize {
	socket, ok := w.sockets[id.v6]
	if !ok {
		return tableSize{}
	}
	level := unix.SOL_IP
	if id.v6 {
		level = unix.SOL_IPV6
	}
	var info tableInfo
	copy(info.name[:], id.name)
	length := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(socket), uintptr(level), getInfo,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&length)), 0)
	runtime.KeepAlive(&info)
	if errno != 0 {
		return tableSize{}
	}
	return tableSize{info.entries, info.size}
}

func (w *legacyWatch) allSizes() map[tableID]tableSize {
	out := map[tableID]tableSize{}
	for _, v6 := range []bool{false, true} {
		for _, name := range []string{"raw", "filter", "nat"} {
			out[tableID{v6, name}] = w.size(tableID{v6, name})
		}
	}
	return out
}

// ours notes a transaction of our own; the backend's lock is held.
func (w *legacyWatch) ours() {
	w.used()
	w.sizes = w.allSizes()
}

// made notes what that was; whole is that the table holds nothing else of ours.
func (w *legacyWatch) made(id tableID, s script, whole bool) {
	if w == nil {
		return
	}
	if whole || w.count[id] == nil {
		w.count[id], w.read[id] = map[string]int{}, nil
	}
	for _, c := range s.set {
		w.count[id][c.name] = len(c.rules)
		delete(w.read[id], c.name)
	}
	for _, name := range s.gone {
		delete(w.count[id], name)
		delete(w.read[id], name)
	}
	w.unread = true
}

// same says that a table's chains are as they were left, as far as that is known.
func (w *legacyWatch) same(id tableID, have iptables.Table) bool {
	if len(have.Rules) != len(w.count[id]) {
		return false
	}
	for name, now := range have.Rules {
		count, there := w.count[id][name]
		before, known := w.read[id][name]
		if !there || count != now.Count || known && before != now {
			return false
		}
	}
	return true
}

// used says that somebody opened the lock since the last time.
func (w *legacyWatch) used() bool {
	if !w.locked {
		// Who opens it first makes it; before that nobody could change anything.
		_, err := unix.InotifyAddWatch(w.lock, iptables.LockFile(), unix.IN_OPEN|unix.IN_DELETE_SELF)
		w.locked = err == nil
		return w.locked
	}
	used := false
	for buf := make([]byte, 4096); ; {
		n, err := unix.Read(w.lock, buf)
		if n <= 0 || err != nil {
			return used
		}
		used = true
		for rest := buf[:n]; len(rest) >= unix.SizeofInotifyEvent; {
			event := (*unix.InotifyEvent)(unsafe.Pointer(&rest[0]))
			if event.Mask&(unix.IN_IGNORED|unix.IN_DELETE_SELF) != 0 {
				w.locked = false
			}
			rest = rest[min(len(rest), unix.SizeofInotifyEvent+int(event.Len)):]
		}
	}
}

func (w *Watch) runLegacy(ctx context.Context, changed func()) error {
	defer func() {
		w.b.mu.Lock()
		defer w.b.mu.Unlock()
		w.b.legacy = nil
		w.legacy.close()
	}()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		bad, err := w.look(ctx)
		if err != nil && ctx.Err() == nil {
			w.b.opts.Log.Warn("iptables cannot be read: our chains are programmed anew", "error", err)
			bad = true
		} else if bad {
			w.b.opts.Log.Warn("somebody else changed our iptables chains: they are programmed anew")
		}
		if bad {
			changed()
		}
	}
}

// look says that our chains are not as we left them.
func (w *Watch) look(ctx context.Context) (bool, error) {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	l := w.legacy
	if !w.b.loaded || l.sizes == nil {
		return false, nil // everything is replaced anyway
	}
	used, sizes := l.used(), l.allSizes()
	began := time.Now()
	touched := used || !maps.Equal(sizes, l.sizes)
	switch {
	case touched && l.unread:
		return true, nil // it may be what was not read yet
	case !touched && (!l.unread || began.Before(l.rest)):
		return false, nil
	}
	for _, f := range w.b.families {
		for _, t := range baseTables(f, w.b.node) {
			have, err := w.b.tool(f).Read(ctx, t.name, own)
			if err != nil {
				return false, err
			}
			id := tableID{f.v6, t.name}
			if len(t.jumpChanges(have)) > 0 || !l.same(id, have) {
				return true, nil
			}
			l.read[id] = have.Rules
		}
	}
	l.sizes, l.unread = sizes, false
	l.rest = time.Now().Add(readShare * time.Since(began))
	return false, nil
}
