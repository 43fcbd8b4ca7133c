package traffic

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"bulkhead/internal/core/model"
	"bulkhead/lab/scenario"
)

// callTimeout is how long a request may take. It is generous: on a busy machine a slow answer is not a lost one.
const callTimeout = 12 * time.Second

// retryAfter is the least time between two tries to open a long-lived connection.
const retryAfter = 150 * time.Millisecond

// caller makes one call of the spec again and again.
type caller struct {
	*workload
	call  *Call
	every atomic.Int64 // nanoseconds between requests; the control socket may change it
	alive atomic.Bool  // a long-lived connection is open and has been answered
}

func newCaller(w *workload, c *Call) *caller {
	out := &caller{workload: w, call: c}
	out.every.Store(int64(c.Every))
	return out
}

// run makes the call until ctx ends. Its error is one of the ledger.
func (c *caller) run(ctx context.Context) error {
	if c.call.Kind == scenario.Long {
		return c.runLong(ctx)
	}
	for {
		done := c.opening.pass()
		if ctx.Err() != nil {
			done()
			return nil
		}
		err := c.ledger.Write(c.once(ctx, RoleCall, callTimeout))
		done()
		if err != nil {
			return err
		}
		if !c.rest(ctx, 0) {
			return nil
		}
	}
}

// rest waits until the next request is due, at least for atLeast, and reports whether ctx is still alive.
func (c *caller) rest(ctx context.Context, atLeast time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(max(time.Duration(c.every.Load()), atLeast)):
		return true
	}
}

func (c *caller) entry(role Role) *Entry {
	return &Entry{ID: c.id(), Role: role, Start: time.Now().UnixNano(), From: c.spec.ID, Process: c.spec.Process,
		To: c.call.To, Proto: c.call.Port.Network(), Dst: c.call.Target}
}

// once makes one request on a connection of its own.
func (c *caller) once(ctx context.Context, role Role, timeout time.Duration) *Entry {
	e := c.entry(role)
	e.Opened = true
	var err error
	switch {
	case c.call.Speak == scenario.SpeakPostgres:
		err = c.psqlOnce(ctx, e, timeout)
	case c.call.Port.Proto == model.ProtoUDP:
		err = c.udpOnce(e, timeout)
	default:
		err = c.tcpOnce(ctx, e, timeout)
	}
	e.End = time.Now().UnixNano()
	e.settle(err)
	return e
}

func (c *caller) dial(ctx context.Context, e *Entry, timeout time.Duration) (*net.TCPConn, error) {
	dialer := net.Dialer{Timeout: timeout, KeepAlive: -1}
	conn, err := dialer.DialContext(ctx, "tcp", c.call.Target.String())
	if err != nil {
		return nil, err
	}
	e.Src = unmapPort(conn.LocalAddr())
	return conn.(*net.TCPConn), nil
}

func (c *caller) tcpOnce(ctx context.Context, e *Entry, timeout time.Duration) error {
	conn, err := c.dial(ctx, e, timeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	return c.roundTrip(conn, e)
}

// roundTrip makes one request on an open connection.
func (c *caller) roundTrip(conn net.Conn, e *Entry) (err error) {
	if c.call.Speak == scenario.SpeakModbus {
		e.Sent, e.Rcvd, err = modbusRoundTrip(conn, uint16(c.serial.Load()), c.call.Bytes/2)
	} else {
		e.Sent, e.Rcvd, err = echoRoundTrip(conn, e.ID, c.call.Bytes)
	}
	return err
}

func (c *caller) udpOnce(e *Entry, timeout time.Duration) error {
	local := &net.UDPAddr{IP: c.local(c.call.Target.Addr()).AsSlice(), Port: int(c.nextUDPPort())}
	conn, err := net.DialUDP("udp", local, net.UDPAddrFromAddrPort(c.call.Target))
	if err != nil {
		return err
	}
	defer conn.Close()
	e.Src = unmapPort(conn.LocalAddr())
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if e.Sent, err = writeFrame(conn, &frame{kind: frameRequest, id: e.ID, body: make([]byte, c.call.Bytes)}); err != nil {
		return err
	}
	buf := make([]byte, 2048)
	if e.Rcvd, err = conn.Read(buf); err != nil {
		return err
	}
	f, err := parseDatagram(buf[:e.Rcvd])
	if err == nil && (f.kind != frameReply || f.id != e.ID) {
		err = fmt.Errorf("asked %s and got the reply to %q", e.ID, f.id)
	}
	return err
}

// line is an open connection on which one request follows the other.
type line interface {
	// request makes one request and fills in the entry.
	request(c *caller, e *Entry) error
	// close ends the connection and returns the entry about its end, or nil.
	close(c *caller, why error) *Entry
}

func (c *caller) open(ctx context.Context, e *Entry) (line, error) {
	if c.call.Speak == scenario.SpeakPostgres {
		return c.openPsql(ctx, e)
	}
	conn, err := c.dial(ctx, e, callTimeout)
	if err != nil {
		return nil, err
	}
	return &tcpLine{arrivals: &arrivals{TCPConn: conn}, start: e.Start}, nil
}

type tcpLine struct {
	*arrivals
	start int64
}

func (l *tcpLine) request(c *caller, e *Entry) error {
	e.Src = unmapPort(l.LocalAddr())
	if err := l.SetDeadline(time.Now().Add(callTimeout)); err != nil {
		return err
	}
	return c.roundTrip(l, e)
}

func (l *tcpLine) close(c *caller, why error) *Entry {
	e := l.arrivals.closed(c.spec.ID, c.spec.Process, c.call.Port, l.start, why)
	e.Src, e.Dst, e.To = e.Dst, e.Src, c.call.To
	l.TCPConn.Close()
	return e
}

// runLong keeps one connection open and makes a request on it every so often. A connection that is cut is opened
// again; the entry of the request that was cut says so.
func (c *caller) runLong(ctx context.Context) error {
	var conn line
	defer func() {
		if conn != nil {
			conn.close(c, nil)
		}
	}()
	for {
		done := c.requests.pass()
		if ctx.Err() != nil {
			done()
			return nil
		}
		e := c.entry(RoleCall)
		var err error
		if conn == nil {
			e.Opened = true
			conn, err = c.open(ctx, e)
		}
		if err == nil {
			err = conn.request(c, e)
		}
		e.End = time.Now().UnixNano()
		e.settle(err)
		werr := c.ledger.Write(e)
		c.alive.Store(err == nil)
		pause := time.Duration(0)
		if err != nil {
			pause = retryAfter
			if conn != nil {
				if end := conn.close(c, err); end != nil && werr == nil {
					werr = c.ledger.Write(end)
				}
				conn = nil
			}
		}
		done()
		if werr != nil {
			return werr
		}
		if !c.rest(ctx, pause) {
			return nil
		}
	}
}
