package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
)

// TestQuietLog: what client-go logs, errors too, is for who asked for debug
// messages.
func TestQuietLog(t *testing.T) {
	for level, want := range map[slog.Level]int{slog.LevelInfo: 0, slog.LevelDebug: 2} {
		var out bytes.Buffer
		log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: level}))
		ctx := withLog(context.Background(), log)
		l := logr.FromContextOrDiscard(ctx)
		l.Error(errors.New("refused"), "cannot list")
		l.Info("listed")
		l.V(9).Info("a body")
		if got := strings.Count(out.String(), "level=DEBUG"); got != want || strings.Count(out.String(), "\n") != want {
			t.Errorf("level %s: want %d lines:\n%s", level, want, out.String())
		}
	}
}

// TestDial: a host that says nothing is an error before the caller's patience
// ends.
func TestDial(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", sa.(*unix.SockaddrInet4).Port)
	for { // until the queue is full
		conn, err := net.DialTimeout("tcp", addr, 100*time.Millisecond)
		if err != nil {
			break
		}
		defer conn.Close()
	}
	cl, err := newClient(&rest.Config{Host: "https://" + addr}, Options{DialTimeout: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err = cl.groups[corev1.SchemeGroupVersion].Get().Resource(Services).Do(ctx).Error()
	if err == nil || ctx.Err() != nil {
		t.Errorf("asked until the end: %v, %v", err, ctx.Err())
	}
}
