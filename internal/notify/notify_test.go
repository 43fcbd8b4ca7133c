package notify

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// manager is a service manager that listens; it returns the next message.
func manager(t *testing.T) (next func() string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return func() string {
		t.Helper()
		if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1024)
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
}

func TestSend(t *testing.T) {
	next := manager(t)
	if err := Send(Ready, Status("two\nlines")); err != nil {
		t.Fatal(err)
	}
	if got, want := next(), "READY=1\nSTATUS=two lines"; got != want {
		t.Errorf("sent %q, want %q", got, want)
	}
}

func TestSendWithoutManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Send(Ready); err != nil {
		t.Errorf("nobody listens: %v", err)
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "gone"))
	if err := Send(Ready); err == nil {
		t.Error("a socket that is not there is no error")
	}
}

func TestWatchdog(t *testing.T) {
	next := manager(t)
	t.Setenv("WATCHDOG_USEC", strconv.Itoa(20_000))
	ctx, cancel := context.WithCancel(t.Context())
	done, failures := make(chan struct{}), make(chan error, 100)
	go func() {
		defer close(done)
		Watchdog(ctx, func() bool { return true }, func(err error) { failures <- err })
	}()
	for range 3 {
		if got := next(); got != "WATCHDOG=1" {
			t.Errorf("sent %q", got)
		}
	}
	if len(failures) > 0 {
		t.Error(<-failures)
	}
	// A service manager that does not listen is tried again.
	if err := os.Remove(os.Getenv("NOTIFY_SOCKET")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		select {
		case <-failures:
		case <-time.After(time.Minute):
			t.Fatal("nobody hears of a sign of life that was not sent")
		}
	}
	cancel()
	<-done
}

func TestWatchdogOfTheDead(t *testing.T) {
	manager(t)
	t.Setenv("WATCHDOG_USEC", "2000")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	asked := 0
	// Its socket is gone, so that a sign of life would be an error.
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "gone"))
	Watchdog(ctx, func() bool {
		if asked++; asked == 5 {
			cancel()
		}
		return false
	}, func(err error) { t.Errorf("a sign of life of what is not alive: %v", err) })
	if asked != 5 {
		t.Errorf("asked %d times whether it is alive", asked)
	}
}

func TestWatchdogOfAnotherProcess(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", "1")
	Watchdog(t.Context(), func() bool { t.Error("it is watched"); return true }, func(err error) { t.Error(err) })
}
