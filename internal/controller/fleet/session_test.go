package fleet

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"connectrpc.com/connect/v2"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/controller/flows"
	"bulkhead/internal/controller/metrics"
	"bulkhead/internal/controller/trust"
	"bulkhead/internal/controller/world"
	flowsfake "bulkhead/internal/flowstore/fake"
	"bulkhead/internal/store/fake"
)

// Most of the fleet is tested with a whole controller, by the tests of package controller.

func newFleet(log io.Writer) *Fleet {
	l := slog.New(slog.NewTextHandler(log, nil))
	w := world.New(world.Config{}, l)
	return New(Config{}, &fake.Store{}, w, flows.New(flows.Config{}, &flowsfake.Store{}, w.Snapshot, l), metrics.New(), l)
}

// wild is a stream that makes the code which reads it panic.
type wild struct{}

func (wild) Receive() (*pb.AgentMessage, error) { panic("a message that nobody thought of") }
func (wild) Send(m *pb.ControllerMessage) error { return nil }

// TestPanicOverAMessageEndsOneStreamOnly is about a mistake of ours that one agent can reach: the others, and the policy,
// must not suffer.
func TestPanicOverAMessageEndsOneStreamOnly(t *testing.T) {
	var said strings.Builder
	f := newFleet(&said)
	err := f.Serve(t.Context(), &trust.Peer{Host: "web-1"}, wild{}, func() {})
	if connect.CodeOf(err) != connect.CodeInternal || strings.Contains(err.Error(), "nobody thought of") {
		t.Errorf("the stream ends with %v", err)
	}
	for _, want := range []string{"a message that nobody thought of", "host=web-1", "session_test.go"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("the log does not say %q: %s", want, &said)
		}
	}
}

// silent is a stream on which nothing comes, until the body of its request is closed: as connect does it, with an error
// that looks like half a message.
type silent struct{ closed <-chan struct{} }

func (s silent) Receive() (*pb.AgentMessage, error) {
	<-s.closed
	return nil, connect.NewError(connect.CodeInternal, "protocol error: incomplete envelope: body closed by handler")
}
func (silent) Send(*pb.ControllerMessage) error { return nil }

// TestEndOfAStreamIsNoBadMessage is about streams that the controller ends: net/http closes the body under the Receive
// that still waits for the agent, which has done nothing wrong.
func TestEndOfAStreamIsNoBadMessage(t *testing.T) {
	for name, x := range map[string]struct {
		end  func(cancel func())
		want error
	}{
		"no hello": {func(func()) {}, errSilent},
		"shutdown": {func(cancel func()) { cancel() }, errShutdown},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var said strings.Builder
				f := newFleet(&said)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				x.end(cancel)
				closed := make(chan struct{})
				if err := f.Serve(ctx, &trust.Peer{Host: "web-1"}, silent{closed}, func() {}); !errors.Is(err, x.want) {
					t.Errorf("the stream ends with %v, want %v", err, x.want)
				}
				close(closed)
				synctest.Wait()
				if bad := badMessages(t, f); bad != 0 || said.Len() > 0 {
					t.Errorf("%v bad messages counted; the log says %q", bad, &said)
				}
			})
		})
	}
}

func badMessages(t *testing.T, f *Fleet) float64 {
	families, err := f.metrics.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == "bulkhead_bad_messages_total" {
			return family.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatal("bad messages are not counted")
	return 0
}
