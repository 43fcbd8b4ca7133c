package traffic

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"bulkhead/internal/core/model"
	"bulkhead/lab/scenario"
)

// serve listens on the port. TCP is served on the wildcard of both families with one socket; UDP on each address of
// the host, so that a reply leaves from the address that was asked.
func (w *workload) serve(ctx context.Context, group *errgroup.Group, l Listen) error {
	if l.Port.Proto == model.ProtoUDP {
		for _, a := range w.spec.Addrs {
			conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, l.Port.Port)))
			if err != nil {
				return err
			}
			context.AfterFunc(ctx, func() { conn.Close() })
			group.Go(func() error { return w.serveUDP(ctx, conn, l) })
		}
		return nil
	}
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{Port: int(l.Port.Port)})
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { listener.Close() })
	group.Go(func() error {
		for {
			conn, err := listener.AcceptTCP()
			switch {
			case ctx.Err() != nil:
				return nil
			case err != nil && Classify(err) == Reset: // the client was gone before it was accepted
				continue
			case err != nil:
				return fmt.Errorf("accept on %s: %w", l.Port, err)
			}
			group.Go(func() error { return w.serveTCP(conn, l) })
		}
	})
	return nil
}

// arrivals wraps a connection and notes when its last byte came.
type arrivals struct {
	*net.TCPConn
	last atomic.Int64
	rcvd atomic.Int64
}

func (a *arrivals) Read(b []byte) (int, error) {
	n, err := a.TCPConn.Read(b)
	if n > 0 {
		a.last.Store(time.Now().UnixNano())
		a.rcvd.Add(int64(n))
	}
	return n, err
}

// closed is the entry about the end of a connection.
func (a *arrivals) closed(id, process string, port scenario.Port, start int64, why error) *Entry {
	e := &Entry{Role: RoleClosed, Start: start, End: time.Now().UnixNano(), From: id, Process: process, Proto: port.Network(),
		Src: unmapPort(a.RemoteAddr()), Dst: unmapPort(a.LocalAddr()), Rcvd: int(a.rcvd.Load()), Last: a.last.Load()}
	e.settle(why)
	return e
}

// unmapPort is the address and port of a socket, IPv4 as IPv4.
func unmapPort(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		ap = a.AddrPort()
	case *net.UDPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// serveTCP answers on one connection until it ends. Its error is one of the ledger.
func (w *workload) serveTCP(tcp *net.TCPConn, l Listen) error {
	defer tcp.Close()
	conn := &arrivals{TCPConn: tcp}
	start := time.Now().UnixNano()
	for {
		var err error
		if l.Speak == scenario.SpeakModbus {
			err = w.serveModbus(conn, l)
		} else {
			err = w.serveFrame(conn, l)
		}
		var broken ledgerError
		if errors.As(err, &broken) {
			return err
		}
		if err != nil {
			return w.ledger.Write(conn.closed(w.spec.ID, w.spec.Process, l.Port, start, err))
		}
	}
}

// ledgerError says that an entry could not be written: the process must not go on as if it had been.
type ledgerError struct{ error }

func (e ledgerError) Unwrap() error { return e.error }

func (w *workload) served(id string, src, dst netip.AddrPort, port scenario.Port, start int64, rcvd int) error {
	err := w.ledger.Write(&Entry{ID: id, Role: RoleServed, Start: start, End: time.Now().UnixNano(), From: w.spec.ID,
		Process: w.spec.Process, Proto: port.Network(), Src: src, Dst: dst, Outcome: OK, Rcvd: rcvd})
	if err != nil {
		return ledgerError{err}
	}
	return nil
}

func (w *workload) serveFrame(conn *arrivals, l Listen) error {
	f, err := readFrame(conn)
	if err != nil {
		return err
	}
	src, dst := unmapPort(conn.RemoteAddr()), unmapPort(conn.LocalAddr())
	reply := w.answer(f, l, src, dst)
	if reply == nil {
		return errFrame
	}
	// The entry comes first: what was answered is in the ledger even if the answer is cut off.
	if err := w.served(f.id, src, dst, l.Port, time.Now().UnixNano(), frameHeader+len(f.id)+len(f.body)); err != nil {
		return err
	}
	_, err = writeFrame(conn, reply)
	return err
}

// answer returns the reply to a frame, or nil if there is none.
func (w *workload) answer(f *frame, l Listen, src, dst netip.AddrPort) *frame {
	switch f.kind {
	case frameRequest:
		return &frame{kind: frameReply, id: f.id, body: f.body}
	case frameTakeover:
		body, err := json.Marshal(w.wayIn(f.body, l, src.Addr(), dst.Addr()))
		if err != nil {
			return nil
		}
		return &frame{kind: frameTaken, id: f.id, body: body}
	}
	return nil
}

func (w *workload) serveModbus(conn *arrivals, l Listen) error {
	p, err := readModbus(conn)
	if err != nil {
		return err
	}
	src, dst := unmapPort(conn.RemoteAddr()), unmapPort(conn.LocalAddr())
	if err := w.served("", src, dst, l.Port, time.Now().UnixNano(), modbusHeader+1+len(p.data)); err != nil {
		return err
	}
	if p.function != modbusTakeover {
		return answerModbus(conn, p)
	}
	body, err := json.Marshal(w.wayIn(p.data, l, src.Addr(), dst.Addr()))
	if err != nil {
		return err
	}
	_, err = writeModbus(conn, &modbusPDU{transaction: p.transaction, unit: p.unit, function: modbusTakeover, data: body})
	return err
}

// serveUDP answers datagrams until ctx ends.
func (w *workload) serveUDP(ctx context.Context, conn *net.UDPConn, l Listen) error {
	buf := make([]byte, frameHeader+255+frameLimit)
	dst := unmapPort(conn.LocalAddr())
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read from %s: %w", l.Port, err)
		}
		from = netip.AddrPortFrom(from.Addr().Unmap().WithZone(""), from.Port())
		f, err := parseDatagram(buf[:n])
		if err != nil {
			continue // not ours: nobody waits for an answer
		}
		reply := w.answer(f, l, from, dst)
		if reply == nil {
			continue
		}
		if err := w.served(f.id, from, dst, l.Port, time.Now().UnixNano(), n); err != nil {
			return err
		}
		// That a reply cannot leave is for the client's ledger to say.
		_, _ = conn.WriteToUDPAddrPort(reply.append(nil), from)
	}
}
