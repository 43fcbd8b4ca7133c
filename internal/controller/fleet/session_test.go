package fleet

import (
	"log/slog"
	"strings"
	"testing"

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

// wild is a stream that makes the code which reads it panic.
type wild struct{}

func (wild) Receive() (*pb.AgentMessage, error) { panic("a message that nobody thought of") }
func (wild) Send(m *pb.ControllerMessage) error { return nil }

// TestPanicOverAMessageEndsOneStreamOnly is about a mistake of ours that one agent can reach: the others, and the policy,
// must not suffer.
func TestPanicOverAMessageEndsOneStreamOnly(t *testing.T) {
	var said strings.Builder
	log := slog.New(slog.NewTextHandler(&said, nil))
	w := world.New(world.Config{}, log)
	f := New(Config{}, &fake.Store{}, w, flows.New(flows.Config{}, &flowsfake.Store{}, w.Snapshot, log), metrics.New(), log)
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
