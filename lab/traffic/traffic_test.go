package traffic

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead/internal/core/model"
	"bulkhead/lab/scenario"
)

var loopback = netip.MustParseAddr("127.0.0.1")

// freePort returns a port that nobody uses now.
func freePort(t *testing.T, network string) uint16 {
	t.Helper()
	if network == "udp" {
		c, err := net.ListenUDP("udp", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return uint16(c.LocalAddr().(*net.UDPAddr).Port)
	}
	l, err := net.ListenTCP("tcp", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// run plays a process until the test ends and returns its spec.
func run(t *testing.T, s Spec) *Spec {
	t.Helper()
	dir := t.TempDir()
	s.Ledger = filepath.Join(dir, "ledger.jsonl")
	s.Control = filepath.Join(dir, "control")
	s.Worm.Markers = dir
	if s.UDPPorts == [2]uint16{} {
		s.UDPPorts = [2]uint16{28000, 28999}
	}
	if s.Addrs == nil {
		s.Addrs = []netip.Addr{loopback}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, &s) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("%s ended with %v", s.ID, err)
		}
	})
	waitFor(t, "the control socket", func() bool {
		_, err := Ask(t.Context(), s.Control, &Order{Verb: Stats})
		return err == nil
	})
	return &s
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s did not come", what)
}

func order(t *testing.T, s *Spec, o *Order) *Answer {
	t.Helper()
	a, err := Ask(t.Context(), s.Control, o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func entries(t *testing.T, s *Spec, keep func(*Entry) bool) []Entry {
	t.Helper()
	b := NewBook(filepath.Dir(s.Ledger))
	if err := b.Update(); err != nil {
		t.Fatal(err)
	}
	return b.Entries(keep)
}

func calls(e *Entry) bool { return e.Role == RoleCall }

// TestLedgersOfBothEndsAgree runs a server and a client with every kind of call and compares what they wrote.
func TestLedgersOfBothEndsAgree(t *testing.T) {
	tcp, udp, modbus := freePort(t, "tcp"), freePort(t, "udp"), freePort(t, "tcp")
	ports := [3]scenario.Port{{Proto: model.ProtoTCP, Port: tcp}, {Proto: model.ProtoUDP, Port: udp}, {Proto: model.ProtoTCP, Port: modbus}}
	server := run(t, Spec{ID: "b/server.service", Process: "server", Listen: []Listen{
		{Port: ports[0]}, {Port: ports[1]}, {Port: ports[2], Speak: scenario.SpeakModbus},
	}})
	call := func(p scenario.Port, kind scenario.Kind, speak scenario.Speak) Call {
		return Call{To: "b/server.service", Port: p, Target: netip.AddrPortFrom(loopback, p.Port), Every: 5 * time.Millisecond, Kind: kind, Speak: speak, Bytes: 100}
	}
	client := run(t, Spec{ID: "a/client.service", Process: "client", Calls: []Call{
		call(ports[0], scenario.Short, ""), call(ports[0], scenario.Long, ""), call(ports[1], scenario.Short, ""),
		call(ports[2], scenario.Short, scenario.SpeakModbus), call(ports[2], scenario.Long, scenario.SpeakModbus),
	}})
	waitFor(t, "the long-lived connections", func() bool {
		a := order(t, client, &Order{Verb: Stats})
		return a.Calls == 5 && a.Long == 2 && a.Alive == 2
	})
	if n := len(entries(t, client, func(e *Entry) bool { return calls(e) && e.Proto == "udp" })); n != 0 {
		t.Errorf("%d short calls were made before Resume", n)
	}
	order(t, client, &Order{Verb: Resume})
	waitFor(t, "traffic", func() bool { return len(entries(t, client, calls)) > 60 })
	order(t, client, &Order{Verb: Pause})
	made := entries(t, client, calls)
	time.Sleep(50 * time.Millisecond)
	if more := entries(t, client, calls); len(more) != len(made) {
		t.Errorf("%d requests were made while paused", len(more)-len(made))
	}
	served := map[string]Entry{}
	for _, e := range entries(t, server, func(e *Entry) bool { return e.Role == RoleServed }) {
		served[fmt.Sprint(e.ID, e.Src, e.Dst, e.Proto)] = e
	}
	opened, sources := map[string]int{}, map[string]bool{}
	for _, e := range made {
		if e.Outcome != OK || e.Rcvd == 0 || e.Latency() <= 0 || e.Process != "client" {
			t.Errorf("request %+v did not end well", e)
		}
		id := e.ID
		if e.Dst.Port() == modbus {
			id = "" // Modbus has no room for it
		}
		if _, ok := served[fmt.Sprint(id, e.Src, e.Dst, e.Proto)]; !ok {
			t.Errorf("the server knows nothing of %+v", e)
		}
		if e.Opened {
			opened[fmt.Sprint(e.Dst.Port())]++
		}
		if e.Proto == "udp" {
			if sources[e.Src.String()] {
				t.Errorf("UDP source %s was used twice", e.Src)
			}
			sources[e.Src.String()] = true
		}
	}
	for port, n := range opened {
		requests := 0
		for _, e := range made {
			if fmt.Sprint(e.Dst.Port()) == port {
				requests++
			}
		}
		if port != fmt.Sprint(udp) && n >= requests {
			t.Errorf("port %s: %d connections for %d requests; one of the calls is long-lived", port, n, requests)
		}
	}
	if len(opened) != 3 {
		t.Errorf("connections to %v, want three ports", opened)
	}
}

func TestCutConnectionsAreToldAndReopened(t *testing.T) {
	port := scenario.Port{Proto: model.ProtoTCP, Port: freePort(t, "tcp")}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port.Port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // answers once per connection and cuts it
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f, err := readFrame(c)
			if err == nil {
				_, err = writeFrame(c, &frame{kind: frameReply, id: f.id})
			}
			if err != nil {
				t.Error(err)
			}
			if err := c.(*net.TCPConn).SetLinger(0); err != nil {
				t.Error(err)
			}
			c.Close()
		}
	}()
	client := run(t, Spec{ID: "a", Process: "client", Calls: []Call{{To: "b", Port: port, Target: netip.AddrPortFrom(loopback, port.Port), Every: 20 * time.Millisecond, Kind: scenario.Long, Bytes: 10}}})
	waitFor(t, "a second connection", func() bool {
		return len(entries(t, client, func(e *Entry) bool { return calls(e) && e.Opened && e.Outcome == OK })) >= 2
	})
	if n := len(entries(t, client, func(e *Entry) bool { return calls(e) && !e.Opened && e.Outcome == Reset })); n == 0 {
		t.Error("the request that was cut is not in the ledger")
	}
	closed := entries(t, client, func(e *Entry) bool { return e.Role == RoleClosed })
	if len(closed) == 0 || closed[0].Last == 0 || closed[0].To != "b" || closed[0].Dst.Port() != port.Port {
		t.Errorf("the end of the connection is told as %+v", closed)
	}
}

func TestProbe(t *testing.T) {
	open, shut := freePort(t, "tcp"), freePort(t, "tcp")
	server := run(t, Spec{ID: "b", Process: "server", Listen: []Listen{{Port: scenario.Port{Proto: model.ProtoTCP, Port: open}}}})
	for port, want := range map[uint16]Outcome{open: OK, shut: Refused} {
		a := order(t, server, &Order{Verb: Try, To: "b", Port: scenario.Port{Proto: model.ProtoTCP, Port: port}, Target: netip.AddrPortFrom(loopback, port), Timeout: time.Second})
		if a.Entry == nil || a.Entry.Outcome != want || a.Entry.Role != RoleProbe {
			t.Errorf("probe of port %d: %+v, want %s", port, a.Entry, want)
		}
	}
	if _, err := Ask(t.Context(), server.Control, &Order{Verb: "dance"}); err == nil || !strings.Contains(err.Error(), "dance") {
		t.Errorf("an unknown order got %v", err)
	}
}

func TestWayIn(t *testing.T) {
	ports := [3]uint16{freePort(t, "tcp"), freePort(t, "tcp"), freePort(t, "udp")}
	listen := []Listen{
		{Port: scenario.Port{Proto: model.ProtoTCP, Port: ports[0]}},
		{Port: scenario.Port{Proto: model.ProtoTCP, Port: ports[1]}, WayIn: true, Speak: scenario.SpeakModbus},
		{Port: scenario.Port{Proto: model.ProtoUDP, Port: ports[2]}, WayIn: true},
	}
	lab := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	inLab := run(t, Spec{ID: "b", Process: "server", Lab: lab, Listen: listen, Worm: Worm{Token: "secret", Program: "/bin/true"}})
	try := func(l Listen, token string) *TakeoverReply {
		t.Helper()
		c, err := net.Dial(l.Port.Network(), fmt.Sprintf("127.0.0.1:%d", l.Port.Port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		r, err := TakeOver(c, l.Port.Proto, l.Speak, "x", &Takeover{Token: token, By: "a", Via: l.Port.String()})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := try(listen[0], "secret"); r.Taken || !strings.Contains(r.Why, "hardened") {
		t.Errorf("a port without a way in: %+v", r)
	}
	for _, l := range listen[1:] {
		if r := try(l, "guess"); r.Taken || !strings.Contains(r.Why, "token") {
			t.Errorf("%s with a wrong token: %+v", l.Port, r)
		}
	}
	if r := try(listen[1], "secret"); !r.Taken {
		t.Errorf("the way in: %+v", r)
	}
	if r := try(listen[2], "secret"); r.Taken || !strings.Contains(r.Why, "already") {
		t.Errorf("the way in, again: %+v", r)
	}
	took := entries(t, inLab, func(e *Entry) bool { return e.Role == RoleTaken })
	if len(took) != 1 || took[0].From != "b" || took[0].By != "a" || took[0].Via != listen[1].Port.String() {
		t.Errorf("the ledger says %+v", took)
	}
	if n, done, err := Marked(filepath.Dir(inLab.Ledger)); err != nil || done != 0 || n == 0 {
		t.Errorf("marked %d, done %d, %v", n, done, err)
	}
}

func TestWayInWorksOnLabAddressesOnly(t *testing.T) {
	l := Listen{Port: scenario.Port{Proto: model.ProtoTCP, Port: 9}, WayIn: true}
	w := &workload{spec: &Spec{ID: "b", Lab: []netip.Prefix{netip.MustParsePrefix("10.20.0.0/27")}, Worm: Worm{Token: "secret", Program: "/bin/false"}}}
	w.worm.workload = w
	inside, outside := netip.MustParseAddr("10.20.0.1"), netip.MustParseAddr("192.0.2.1")
	for _, c := range [][2]netip.Addr{{outside, inside}, {inside, outside}, {netip.MustParseAddr("::1"), inside}} {
		if r := w.wayIn([]byte(`{"token":"secret"}`), l, c[0], c[1]); r.Taken || !strings.Contains(r.Why, "not an address of the lab") {
			t.Errorf("from %s at %s: %+v", c[0], c[1], r)
		}
	}
	w.spec.Worm.Token = ""
	if r := w.wayIn([]byte(`{"token":""}`), l, inside, inside); r.Taken {
		t.Error("a lab without a token can be taken over")
	}
	if r := w.wayIn([]byte(`{"tok`), l, inside, inside); r.Taken || !strings.Contains(r.Why, "not a takeover message") {
		t.Errorf("a broken message: %+v", r)
	}
}

func TestFrames(t *testing.T) {
	f := &frame{kind: frameRequest, id: "a#1", body: []byte("hello")}
	b := f.append(nil)
	got, err := parseDatagram(b)
	if err != nil || got.id != f.id || got.kind != f.kind || !bytes.Equal(got.body, f.body) {
		t.Fatalf("read back %+v, %v", got, err)
	}
	for n := range b {
		if _, err := parseDatagram(b[:n]); !errors.Is(err, errFrame) {
			t.Errorf("%d of %d bytes: %v", n, len(b), err)
		}
	}
	if _, err := parseDatagram(append(slices.Clone(b), 0)); !errors.Is(err, errFrame) {
		t.Errorf("a byte too many: %v", err)
	}
	huge := slices.Clone(b)
	binary.BigEndian.PutUint32(huge[6:], 1<<31)
	if _, err := readFrame(bytes.NewReader(huge)); !errors.Is(err, errFrame) {
		t.Errorf("a length of 2 GiB: %v", err)
	}
	if _, err := writeFrame(io.Discard, &frame{id: strings.Repeat("x", 300)}); !errors.Is(err, errFrame) {
		t.Errorf("an id of 300 bytes: %v", err)
	}
}

type pair struct {
	io.Reader
	io.Writer
}

func TestModbus(t *testing.T) {
	var request, reply bytes.Buffer
	if err := answerModbus(&reply, &modbusPDU{transaction: 7, unit: 1, function: modbusReadHolding, data: []byte{0, 0, 0, 20}}); err != nil {
		t.Fatal(err)
	}
	if sent, rcvd, err := modbusRoundTrip(pair{&reply, &request}, 7, 20); err != nil || sent != 12 || rcvd != 7+1+1+40 {
		t.Errorf("round trip: %d sent, %d received, %v", sent, rcvd, err)
	}
	// The example of the specification: transaction, protocol 0, length 6, unit, function 3, address 0, 20 registers.
	if want := []byte{0, 7, 0, 0, 0, 6, 1, 3, 0, 0, 0, 20}; !bytes.Equal(request.Bytes(), want) {
		t.Errorf("request % x, want % x", request.Bytes(), want)
	}
	for _, c := range []struct {
		pdu  modbusPDU
		want byte
	}{
		{modbusPDU{function: 6, data: []byte{0, 1, 0, 2}}, modbusBadFunction},
		{modbusPDU{function: 3, data: []byte{0, 0, 0, 200}}, modbusBadAddress},
		{modbusPDU{function: 3, data: []byte{0}}, modbusBadAddress},
	} {
		var b bytes.Buffer
		if err := answerModbus(&b, &c.pdu); err != nil {
			t.Fatal(err)
		}
		got, err := readModbus(&b)
		if err != nil || got.function != c.pdu.function|modbusException || !bytes.Equal(got.data, []byte{c.want}) {
			t.Errorf("answer to %+v: %+v, %v; want exception %d", c.pdu, got, err, c.want)
		}
	}
	for _, b := range [][]byte{{0, 1, 0, 9, 0, 2, 1, 3}, {0, 1, 0, 0, 0, 1, 1}, {0, 1, 0, 0, 255, 255, 1}} {
		if _, err := readModbus(bytes.NewReader(b)); !errors.Is(err, errModbus) {
			t.Errorf("% x: %v", b, err)
		}
	}
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte("BHL1"))
	f.Add((&frame{kind: frameRequest, id: "x", body: []byte("y")}).append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseDatagram(b)
		if err == nil && !bytes.Equal(got.append(nil), b) {
			t.Errorf("%x reads as %+v, which writes as %x", b, got, got.append(nil))
		}
		if p, err := readModbus(bytes.NewReader(b)); err == nil {
			var out bytes.Buffer
			if _, err := writeModbus(&out, p); err != nil || !bytes.HasPrefix(b, out.Bytes()) {
				t.Errorf("%x reads as %+v, which writes as %x (%v)", b, p, out.Bytes(), err)
			}
		}
	})
}

func TestClassify(t *testing.T) {
	wrap := func(e syscall.Errno) error {
		return &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", e)}
	}
	for _, c := range []struct {
		err  error
		want Outcome
	}{
		{nil, OK}, {wrap(unix.EPERM), Denied}, {wrap(unix.ECONNREFUSED), Refused}, {wrap(unix.ECONNRESET), Reset},
		{wrap(unix.ECONNABORTED), Reset}, {io.EOF, Reset}, {wrap(unix.EHOSTUNREACH), Unreachable}, {wrap(unix.ETIMEDOUT), Timeout},
		{os.ErrDeadlineExceeded, Timeout}, {errors.New("odd"), Failed},
		{newPsqlError(`connection to server at "10.20.0.5", port 5432 failed: Operation not permitted`, nil), Denied},
		{newPsqlError("timeout expired\n", nil), Timeout},
		{newPsqlError("server closed the connection unexpectedly", nil), Reset},
		{newPsqlError(`FATAL: role "x" does not exist`, errors.New("exit status 2")), Failed},
	} {
		if got := Classify(c.err); got != c.want {
			t.Errorf("%v is %s, want %s", c.err, got, c.want)
		}
	}
}

func TestLedgerIsReadInPieces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.jsonl")
	l, err := OpenLedger(path)
	if err != nil {
		t.Fatal(err)
	}
	b := NewBook(filepath.Dir(path))
	for i := range 3 {
		if err := l.Write(&Entry{ID: fmt.Sprint(i), Role: RoleCall, Start: int64(10 - i), Src: netip.MustParseAddrPort("10.0.0.1:5")}); err != nil {
			t.Fatal(err)
		}
		if err := b.Update(); err != nil {
			t.Fatal(err)
		}
		if got := b.Entries(calls); len(got) != i+1 || got[0].ID != fmt.Sprint(i) {
			t.Errorf("after %d entries, by time: %+v", i+1, got)
		}
	}
	if _, err := l.file.WriteString(`{"id":"half`); err != nil {
		t.Fatal(err)
	}
	if err := b.Update(); err != nil || len(b.Entries(calls)) != 3 {
		t.Errorf("half a line: %v, %d entries", err, len(b.Entries(calls)))
	}
	// Its writer is killed; the next one goes on.
	if err := l.Write(&Entry{ID: "after", Role: RoleCall, Start: 20}); err != nil {
		t.Fatal(err)
	}
	if err := b.Update(); err != nil || len(b.Entries(calls)) != 4 {
		t.Errorf("after half a line: %v, %d entries", err, len(b.Entries(calls)))
	}
	if _, err := l.file.WriteString("rubbish\n"); err != nil {
		t.Fatal(err)
	}
	if err := b.Update(); err == nil || !strings.Contains(err.Error(), "x.jsonl") {
		t.Errorf("a broken line: %v", err)
	}
	if _, _, err := ReadLedger(filepath.Join(t.TempDir(), "none"), 0); err != nil {
		t.Errorf("a ledger that is not there yet: %v", err)
	}
}
