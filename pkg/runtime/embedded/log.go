package embedded

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
)

const (
	maxLog  = 16 << 20 // bytes; the log before that is kept beside it as .1
	tailLog = 4 << 10  // bytes that are searched for the last line
)

// rotateLog copies and cuts the log, which containerd has open, once it is
// large. Lines written in between are lost.
func (s *Supervisor) rotateLog() {
	st, err := os.Stat(s.o.logFile())
	if err != nil || st.Size() < maxLog {
		return
	}
	err = copyFile(s.o.logFile()+".1", s.o.logFile())
	// Cut in any case: a full disk is the likeliest reason for the error.
	if err = errors.Join(err, os.Truncate(s.o.logFile(), 0)); err != nil {
		s.o.Log.Warn("cannot keep the embedded runtime's old log", "err", err)
	}
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// lastWords is the last line of the runtime's log without its time, so that the
// same failure reads the same each time.
func (s *Supervisor) lastWords() string {
	f, err := os.Open(s.o.logFile())
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > tailLog {
		if _, err := f.Seek(-tailLog, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, tailLog))
	if err != nil {
		return err.Error()
	}
	b = bytes.TrimSpace(b)
	line := string(b[bytes.LastIndexByte(b, '\n')+1:])
	if strings.HasPrefix(line, "time=") {
		if _, rest, ok := strings.Cut(line, " "); ok {
			line = rest
		}
	}
	return line
}
