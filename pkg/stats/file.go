package stats

import (
	"bytes"
	"errors"
	"strconv"

	"golang.org/x/sys/unix"
)

// file reads files of the kernel into one buffer: thousands of them make one
// scrape, and os.ReadFile would ask for memory and the poller for each.
type file struct{ buf []byte }

// read returns what the file says, until the next read; false when there is none.
// The kernel makes these files as they are read: a short read is not the end.
func (f *file) read(dir, name string) ([]byte, bool) {
	var fd int
	for {
		var err error
		if fd, err = unix.Open(dir+"/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, false
		}
	}
	defer unix.Close(fd)
	if f.buf == nil {
		f.buf = make([]byte, 8<<10)
	}
	n := 0
	for {
		if n == len(f.buf) {
			f.buf = append(f.buf, make([]byte, len(f.buf))...)
		}
		more, err := unix.Read(fd, f.buf[n:])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, false
		case more <= 0:
			return f.buf[:n], true
		default:
			n += more
		}
	}
}

// number is a file of one number; 0 and false without one, and for "max".
func (f *file) number(dir, name string) (uint64, bool) {
	b, ok := f.read(dir, name)
	if !ok {
		return 0, false
	}
	return number(bytes.TrimSpace(b))
}

func number(b []byte) (n uint64, ok bool) {
	if len(b) == 0 {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return n, true
}

// pairs calls each with the key and the number of every line that has both.
func pairs(text []byte, each func(key []byte, value uint64)) {
	for len(text) > 0 {
		line := text
		if i := bytes.IndexByte(text, '\n'); i >= 0 {
			line, text = text[:i], text[i+1:]
		} else {
			text = nil
		}
		key, rest, found := bytes.Cut(line, []byte(" "))
		if !found {
			continue
		}
		if value, ok := number(rest); ok {
			each(key, value)
		}
	}
}

// pressure reads a PSI file.
func (f *file) pressure(dir, name string) *Pressure {
	b, ok := f.read(dir, name)
	if !ok || len(b) == 0 {
		return nil
	}
	p := &Pressure{}
	for line := range bytes.Lines(b) {
		fields := bytes.Fields(line)
		if len(fields) < 5 {
			continue
		}
		l := &p.Some
		if string(fields[0]) == "full" {
			l = &p.Full
		}
		for _, field := range fields[1:] {
			key, value, _ := bytes.Cut(field, []byte("="))
			switch string(key) {
			case "avg10":
				l.Avg10, _ = strconv.ParseFloat(string(value), 64)
			case "avg60":
				l.Avg60, _ = strconv.ParseFloat(string(value), 64)
			case "avg300":
				l.Avg300, _ = strconv.ParseFloat(string(value), 64)
			case "total":
				n, _ := number(value)
				l.Total = micros(n)
			}
		}
	}
	return p
}

// interfaces reads a net/dev file.
func (f *file) interfaces(dir string, skip func(name string) bool) []Interface {
	b, ok := f.read(dir, "net/dev")
	if !ok {
		return nil
	}
	var out []Interface
	for line := range bytes.Lines(b) {
		name, counters, found := bytes.Cut(line, []byte(":"))
		fields := bytes.Fields(counters)
		if !found || len(fields) < 16 {
			continue // the two lines of the heading
		}
		i := Interface{Name: string(bytes.TrimSpace(name))}
		if skip(i.Name) {
			continue
		}
		for at, to := range map[int]*uint64{
			0: &i.RxBytes, 1: &i.RxPackets, 2: &i.RxErrors, 3: &i.RxDropped,
			8: &i.TxBytes, 9: &i.TxPackets, 10: &i.TxErrors, 11: &i.TxDropped,
		} {
			*to, _ = number(fields[at])
		}
		out = append(out, i)
	}
	return out
}
