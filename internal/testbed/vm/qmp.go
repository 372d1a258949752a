package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// monitor speaks QMP, one JSON object on a line, to qemu.
type monitor struct {
	mu   sync.Mutex
	conn net.Conn
	in   *bufio.Reader
}

// socketpair is a connection and the file that qemu inherits of it.
func socketpair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "qmp"), os.NewFile(uintptr(fds[1]), "qmp")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
	}
	return conn, theirs, err
}

// QMP executes one command of qemu's monitor, "device_add" for one, and decodes
// what it returns into result, unless that is nil. See qemu's QMP reference.
func (v *VM) QMP(ctx context.Context, command string, arguments, result any) error {
	m := v.qmp
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.in == nil {
		m.in = bufio.NewReader(m.conn) // the greeting is no answer: execute skips it
		if err := m.execute(ctx, "qmp_capabilities", nil, nil); err != nil {
			return err
		}
	}
	return m.execute(ctx, command, arguments, result)
}

func (m *monitor) execute(ctx context.Context, command string, arguments, result any) error {
	deadline, _ := ctx.Deadline() // zero, which is none, without one
	if err := m.conn.SetDeadline(deadline); err != nil {
		return err
	}
	defer m.conn.SetDeadline(time.Time{})
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	if err := json.NewEncoder(m.conn).Encode(request); err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	for {
		line, err := m.in.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("qmp %s: %w", command, err)
		}
		var answer struct {
			Return json.RawMessage
			Error  *struct{ Class, Desc string }
		}
		if err := json.Unmarshal(line, &answer); err != nil {
			return fmt.Errorf("qmp %s: %w", command, err)
		}
		switch {
		case answer.Error != nil:
			return fmt.Errorf("qmp %s: %s: %s", command, answer.Error.Class, answer.Error.Desc)
		case answer.Return == nil: // an event, or the greeting
		case result == nil:
			return nil
		default:
			return json.Unmarshal(answer.Return, result)
		}
	}
}
