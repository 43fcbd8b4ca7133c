package agenttest

import (
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
)

// BrokenController speaks TLS and HTTP as a controller does, and then breaks off in the middle of a message.
type BrokenController struct {
	t      testing.TB
	server *http.Server
	done   chan struct{}
	broke  chan struct{}
	times  int
}

// Broken serves at the address of a controller that has stopped, with its CA. Each stream gets a welcome and half a
// snapshot of a policy that the agent does not have.
func Broken(t testing.TB, c *Controller, times int) *BrokenController {
	t.Helper()
	listener, err := net.Listen("tcp", c.Addr)
	if err != nil {
		t.Fatal(err)
	}
	body, err := proto.Marshal(snapshot(Policy(99)))
	if err != nil {
		t.Fatal(err)
	}
	frame := append([]byte{0, byte(len(body) >> 24), byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}, body...)
	b := &BrokenController{t: t, done: make(chan struct{}), broke: make(chan struct{}, 1024), times: times}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	b.server = &http.Server{
		Protocols: protocols,
		ErrorLog:  slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{c.Authority.Server()}, ClientAuth: tls.RequestClientCert},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/grpc+proto")
			w.WriteHeader(http.StatusOK)
			for _, part := range [][]byte{{0, 0, 0, 0, 4, 0x0a, 2, 8, 1}, frame[:len(frame)/2]} { // a welcome of capability 1
				if _, err := w.Write(part); err != nil {
					return
				}
			}
			if err := http.NewResponseController(w).Flush(); err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
			select {
			case b.broke <- struct{}{}:
			default:
			}
			_, _ = io.CopyN(io.Discard, r.Body, 1) // so that the agent has begun
			panic(http.ErrAbortHandler)
		}),
	}
	go func() {
		defer close(b.done)
		_ = b.server.ServeTLS(listener, "", "") // always an error; that of Close is the good one
	}()
	t.Cleanup(b.Stop)
	return b
}

// Wait returns when some streams have been broken off.
func (b *BrokenController) Wait() {
	b.t.Helper()
	for range b.times {
		select {
		case <-b.broke:
		case <-time.After(time.Minute):
			b.t.Fatal("no agent comes")
		}
	}
}

// Stop frees the address. It may be called again.
func (b *BrokenController) Stop() {
	if err := b.server.Close(); err != nil {
		b.t.Errorf("stop the broken controller: %v", err)
	}
	<-b.done
}
