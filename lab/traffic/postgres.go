package traffic

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The lab's database.
const (
	PostgresDB   = "bank"
	PostgresUser = "app"
)

// psqlProcess is the name under which the real client runs.
const psqlProcess = "psql"

// psqlError is an error of the real client, by what it printed: its exit status says only that something failed.
type psqlError struct {
	text  string
	cause error
}

func (e *psqlError) Error() string { return e.text }
func (e *psqlError) Unwrap() error { return e.cause }

func newPsqlError(stderr string, err error) error {
	text := strings.TrimSpace(stderr)
	for needle, cause := range map[string]error{
		"Operation not permitted":        unix.EPERM,
		"Permission denied":              unix.EACCES,
		"Connection refused":             unix.ECONNREFUSED,
		"No route to host":               unix.EHOSTUNREACH,
		"timeout expired":                os.ErrDeadlineExceeded,
		"Connection timed out":           unix.ETIMEDOUT,
		"Connection reset by peer":       unix.ECONNRESET,
		"closed the connection":          unix.ECONNRESET,
		"connection to server was lost":  unix.ECONNRESET,
		"Software caused connection abo": unix.ECONNABORTED,
	} {
		if strings.Contains(text, needle) {
			return &psqlError{text: text, cause: cause}
		}
	}
	if text == "" {
		return err
	}
	return &psqlError{text: text, cause: err}
}

// Psql prepares the real client against target. It reads no file of the user's and asks for no encryption, so that
// one run is one connection.
func Psql(ctx context.Context, target netip.AddrPort, user, db string, timeout time.Duration, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "psql", append([]string{"-XAtq", "-v", "ON_ERROR_STOP=1", "-h", target.Addr().String(),
		"-p", strconv.Itoa(int(target.Port())), "-U", user, "-d", db}, args...)...)
	seconds := max(int((timeout+time.Second-1)/time.Second), 2) // libpq takes no less
	cmd.Env = append(os.Environ(), "PGSSLMODE=disable", "PGGSSENCMODE=disable", "LC_ALL=C", "PGCONNECT_TIMEOUT="+strconv.Itoa(seconds))
	cmd.WaitDelay = time.Second
	return cmd
}

// psqlQuery is one request: it tells the source port of the connection, and a balance.
func psqlQuery(serial uint64) string {
	return fmt.Sprintf("select inet_client_port(), balance from accounts where id = %d;", 1+serial%PostgresAccounts)
}

// PostgresAccounts is how many rows the lab's table of accounts has.
const PostgresAccounts = 1000

func (c *caller) psqlOnce(ctx context.Context, e *Entry, timeout time.Duration) error {
	e.Process = psqlProcess
	ctx, cancel := context.WithTimeout(ctx, timeout+time.Second)
	defer cancel()
	cmd := Psql(ctx, c.call.Target, PostgresUser, PostgresDB, timeout, "-c", psqlQuery(c.serial.Load()))
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return newPsqlError(errs.String(), errors.Join(err, ctx.Err()))
	}
	e.Rcvd = out.Len()
	return c.psqlReply(e, out.String())
}

// psqlReply reads the answer to psqlQuery.
func (c *caller) psqlReply(e *Entry, text string) error {
	port, balance, ok := strings.Cut(strings.TrimSpace(text), "|")
	n, err := strconv.ParseUint(port, 10, 16)
	if !ok || err != nil || balance == "" {
		return fmt.Errorf("psql answered %q", text)
	}
	e.Src = netip.AddrPortFrom(c.local(c.call.Target.Addr()), uint16(n))
	return nil
}

// psqlLine is a real client that stays connected and gets its queries on standard input.
type psqlLine struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   chan string // lines it printed; closed at the end
	errs  bytes.Buffer
	start int64
	last  int64
	rcvd  int
}

func (c *caller) openPsql(ctx context.Context, e *Entry) (line, error) {
	l := &psqlLine{cmd: Psql(ctx, c.call.Target, PostgresUser, PostgresDB, callTimeout), out: make(chan string, 1), start: e.Start}
	l.cmd.Stderr = &l.errs
	var err error
	if l.in, err = l.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := l.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := l.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(l.out)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			l.out <- lines.Text()
		}
	}()
	return l, nil
}

func (l *psqlLine) request(c *caller, e *Entry) error {
	e.Process = psqlProcess
	n, err := io.WriteString(l.in, psqlQuery(c.serial.Load())+"\n")
	if err != nil {
		return l.failure(err)
	}
	e.Sent = n
	select {
	case text, ok := <-l.out:
		if !ok {
			return l.failure(io.ErrUnexpectedEOF)
		}
		l.last = time.Now().UnixNano()
		l.rcvd += len(text)
		e.Rcvd = len(text)
		return c.psqlReply(e, text)
	case <-time.After(callTimeout):
		return os.ErrDeadlineExceeded
	}
}

// failure waits for the client to end and returns what it said.
func (l *psqlLine) failure(err error) error {
	l.in.Close()
	for range l.out {
	}
	err = errors.Join(err, l.cmd.Wait()) // only now all that it said is there
	return newPsqlError(l.errs.String(), err)
}

func (l *psqlLine) close(c *caller, why error) *Entry {
	l.in.Close()
	if l.cmd.ProcessState == nil { // not waited for by failure
		_ = l.cmd.Process.Kill() // it may be stuck on a dead connection, and is not wanted any more
		for range l.out {
		}
		_ = l.cmd.Wait() // "signal: killed"
	}
	e := &Entry{Role: RoleClosed, Start: l.start, End: time.Now().UnixNano(), From: c.spec.ID, Process: psqlProcess, To: c.call.To,
		Proto: c.call.Port.Network(), Dst: c.call.Target, Rcvd: l.rcvd, Last: l.last}
	e.settle(why)
	return e
}
