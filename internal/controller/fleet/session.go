package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/controller/trust"
	"bulkhead/internal/controller/world"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/wire"
)

// Stream is the stream of one agent.
type Stream interface {
	Receive() (*pb.AgentMessage, error)
	Send(*pb.ControllerMessage) error
}

// Why streams end.
var (
	errReplaced = connect.NewError(connect.CodeAborted, "the agent of this host has connected again, or enrolled again")
	errShutdown = connect.NewError(connect.CodeUnavailable, "the controller is shutting down")
	errSilent   = connect.NewError(connect.CodeDeadlineExceeded, "no hello")
)

// maxUnacked is how many batches of flows of one agent may be on their way into the store.
const maxUnacked = 64

// session is one stream of an agent. One goroutine sends, another receives.
type session struct {
	fleet  *Fleet
	host   string
	stream Stream
	cancel func()        // breaks the stream if it does not end by itself
	wake   chan struct{} // holds one token when there may be something to send
	ended  chan struct{} // closed by end
	slots  chan struct{} // one for each batch that has not been acknowledged

	mu      sync.Mutex
	why     error    // the stream ends
	over    bool     // Serve has returned, or is about to
	stored  []uint64 // batches to acknowledge
	pushing *push    // the policy that has been sent and not been answered
	whole   bool     // the next policy must be a snapshot
	found   bool     // it has said what is on its host,
	since   uint64   // and worlds from this generation on have that
}

// push is a policy on its way.
type push struct {
	policy   *world.Outline
	snapshot bool
	sent     time.Time
}

// breakAfter is how long a stream that should end may go on before it is broken.
const breakAfter = 2 * time.Second

// end makes the stream end with the error. It may be called with the agent's mu held.
func (s *session) end(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why != nil {
		return
	}
	s.why = why
	close(s.ended)
	time.AfterFunc(breakAfter, func() { // in case it hangs in a Send that nobody reads
		s.mu.Lock()
		defer s.mu.Unlock()
		if !s.over {
			s.cancel()
		}
	})
}

// close says that the stream must not be touched any more.
func (s *session) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
}

// poke lets the sender look whether there is something to send.
func (s *session) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Serve serves the stream of the agent that the certificate names, until it ends. breakStream makes Receive and Send
// return; it is called from another goroutine, and not after Serve has returned.
func (f *Fleet) Serve(ctx context.Context, peer *trust.Peer, stream Stream, breakStream func()) error {
	s := &session{
		fleet: f, host: peer.Host, stream: stream, cancel: breakStream,
		wake: make(chan struct{}, 1), ended: make(chan struct{}), slots: make(chan struct{}, maxUnacked),
	}
	defer s.close()
	hello, joined := make(chan *pb.Hello, 1), make(chan struct{})
	received := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { received <- s.guard(func() error { return s.receive(ctx, hello, joined) }) }()
	select {
	case h := <-hello:
		if err := f.join(s, peer, h); err != nil {
			return err
		}
		close(joined)
		defer f.leave(s)
		defer f.world.Watch(s.host, s.poke)()
		return s.send(ctx, received)
	case err := <-received:
		return err
	case <-time.After(f.cfg.Hello):
		return errSilent
	case <-ctx.Done():
		return errShutdown
	}
}

// guard keeps what one agent says from ending the controller.
func (s *session) guard(fn func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			s.fleet.log.Error("panic while serving an agent", "host", s.host, "panic", r, "stack", string(debug.Stack()))
			err = connect.NewError(connect.CodeInternal, "the controller failed over a message; its log says more")
		}
	}()
	return fn()
}

// join makes the session the one of its host.
func (f *Fleet) join(s *session, peer *trust.Peer, h *pb.Hello) error {
	has, err := wire.HashFromProto(h.GetHash())
	if err != nil {
		return connect.Errorf(connect.CodeInvalidArgument, "hello: %v", err)
	}
	a := f.agent(s.host)
	if a == nil {
		return refusal(trust.CheckEnrollment(peer, nil))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := trust.CheckEnrollment(peer, &a.stored); err != nil { // it may have been revoked since the stream began
		return refusal(err)
	}
	if a.session != nil {
		a.session.end(errReplaced)
	}
	a.session, a.status = s, nil
	if a.has != has {
		a.has, a.policy = has, nil
	}
	a.refused, a.refusedSum = "", hostpolicy.Hash{}
	a.stored.Version, a.stored.Kernel, a.stored.Dataplane = clip(h.GetAgentVersion()), clip(h.GetKernel()), clip(h.GetDataplane())
	a.stored.Limits, a.stored.LastSeen, a.unsaved = clipAll(h.GetLimits()), f.cfg.Now(), true
	a.tell()
	f.world.SetConnected(s.host, true)
	f.log.Info("agent connected", "host", s.host, "version", h.GetAgentVersion(), "has", has.Short())
	return nil
}

func refusal(err error) error {
	if r := trust.AsRefusal(err); r != nil && r.Kind == trust.Forbidden {
		return connect.NewError(connect.CodePermissionDenied, r.Text)
	}
	return connect.NewError(connect.CodeUnauthenticated, err.Error())
}

func (f *Fleet) leave(s *session) {
	a := f.agent(s.host)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.session != s {
		return // another stream has taken over
	}
	a.session = nil
	a.stored.LastSeen, a.unsaved = f.cfg.Now(), true
	a.tell()
	f.world.SetConnected(s.host, false)
	f.log.Info("agent disconnected", "host", s.host)
}

// send sends what there is to send until the stream ends.
func (s *session) send(ctx context.Context, received <-chan error) error {
	f := s.fleet
	if err := s.stream.Send(&pb.ControllerMessage{Message: &pb.ControllerMessage_Welcome{Welcome: &pb.Welcome{
		Capability: wire.Capability, ControllerVersion: f.cfg.Version, ServerTimeMs: f.cfg.Now().UnixMilli(),
	}}}); err != nil {
		return err
	}
	changed := true // there may be another policy
	for {
		if m := s.urgent(); m != nil {
			if err := s.stream.Send(m); err != nil {
				return s.reason(err)
			}
			if m.GetFlowAck() != nil {
				<-s.slots
			}
			continue
		}
		computing := f.computing
		if !changed {
			computing = nil
		}
		select {
		case computing <- struct{}{}:
			changed = false
			m := s.policy()
			if m == nil {
				continue
			}
			if err := s.stream.Send(m); err != nil {
				return s.reason(err)
			}
		case <-s.wake:
			changed = true
		case <-s.ended:
			return s.reason(nil)
		case err := <-received:
			return s.reason(err)
		case <-ctx.Done():
			return s.reason(errShutdown)
		}
	}
}

// reason returns why the stream ends, if somebody has ended it, or else the error.
func (s *session) reason(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why != nil {
		return s.why
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// urgent returns the next message that must not wait for a policy, nil if there is none: isolations go before
// everything else.
func (s *session) urgent() *pb.ControllerMessage {
	a := s.fleet.agent(s.host)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.session != s {
		return nil
	}
	for workload, on := range a.isolates {
		delete(a.isolates, workload)
		return &pb.ControllerMessage{Message: &pb.ControllerMessage_Isolate{Isolate: &pb.Isolate{Workload: workload, On: on}}}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.stored) > 0 {
		sequence := s.stored[0]
		s.stored = s.stored[1:]
		return &pb.ControllerMessage{Message: &pb.ControllerMessage_FlowAck{FlowAck: &pb.FlowAck{Sequence: sequence}}}
	}
	return nil
}

// policy returns the message that brings the agent to what it should have, nil if there is nothing to do or the last
// one has not been answered. It gives the slot for computing back.
func (s *session) policy() *pb.ControllerMessage {
	f := s.fleet
	defer func() { <-f.computing }()
	snapshot := f.world.Snapshot() // first: what is wanted is of this snapshot or of a later one
	want := f.world.Wanted(s.host)
	has, whole, due := s.due(snapshot, want)
	if !due {
		return nil
	}
	if whole {
		has = nil
	}
	// Without a lock: it may take a while, and an isolation must not wait for it.
	draft := f.world.Draw(s.host, has)
	if draft == nil {
		return nil
	}
	var m *pb.ControllerMessage
	kind := "snapshot"
	if draft.Step != nil {
		kind = "delta"
		m = &pb.ControllerMessage{Message: &pb.ControllerMessage_Delta{Delta: wire.StepToProto(draft.Step)}}
	} else {
		m = &pb.ControllerMessage{Message: &pb.ControllerMessage_Snapshot{Snapshot: wire.PolicyToProto(draft.Whole)}}
	}
	if !s.push(snapshot, draft, has) {
		return nil
	}
	f.metrics.PoliciesSent.WithLabelValues(kind).Inc()
	return m
}

// due reports whether the agent should be sent a policy at all: what it has, as far as it is known, and whether it must be sent
// the whole policy.
func (s *session) due(snapshot *world.Snapshot, want *world.Outline) (has *world.Outline, whole, due bool) {
	a := s.fleet.agent(s.host)
	a.mu.Lock()
	defer a.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	return a.policy, s.whole, s.lacks(a, snapshot, want)
}

// push notes that the policy is on its way. It reports false if it is not needed any more, or starts from another one than the
// agent has by now.
func (s *session) push(snapshot *world.Snapshot, draft *world.Draft, has *world.Outline) bool {
	a := s.fleet.agent(s.host)
	a.mu.Lock()
	defer a.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.lacks(a, snapshot, draft.Want) {
		return false
	}
	if draft.Step != nil && (a.policy != has || s.whole) {
		s.poke() // it has said something else meanwhile
		return false
	}
	s.pushing = &push{policy: draft.Want, snapshot: draft.Whole != nil, sent: time.Now()}
	return true
}

// lacks reports whether the agent should be sent what is wanted. The caller holds mu of both.
func (s *session) lacks(a *agent, snapshot *world.Snapshot, want *world.Outline) bool {
	if a.session != s || s.pushing != nil {
		return false
	}
	switch {
	case want == nil:
		return false
	case a.has == hostpolicy.Hash{} && (!s.found || !snapshot.Has(s.since)):
		// Its first policy waits for its inventory, which follows at once: with the units in it, all that it tells
		// of is told of the right workload from the beginning.
		return false
	case want.Sum == a.has:
		a.policy = want // the same as before, and what comes next starts from there
		a.refused = ""
		return false
	}
	return want.Sum != a.refusedSum // it will not have changed its mind
}

// receive takes messages until the stream ends.
func (s *session) receive(ctx context.Context, hello chan<- *pb.Hello, joined <-chan struct{}) error {
	m, err := s.stream.Receive()
	if err != nil {
		return s.broken(ctx, err)
	}
	h := m.GetHello()
	if h == nil {
		s.fleet.metrics.BadMessages.Inc()
		return connect.NewError(connect.CodeInvalidArgument, "the first message must be hello")
	}
	instance := h.GetInstance()
	if instance == "" {
		instance = h.GetBootId()
	}
	hello <- h
	select {
	case <-joined:
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		m, err := s.stream.Receive()
		if err != nil {
			return s.broken(ctx, err)
		}
		if err := s.take(ctx, clip(instance), m); err != nil {
			return err
		}
	}
}

// broken tells a message that cannot be read from a stream that has ended.
func (s *session) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err // Serve has returned, and what looks like half a message is the end of the body on this side
	}
	code := connect.CodeOf(err)
	if code == connect.CodeInternal { // the stream ended within a message
		code = connect.CodeInvalidArgument
	}
	if code == connect.CodeInvalidArgument || code == connect.CodeResourceExhausted {
		s.fleet.metrics.BadMessages.Inc()
		s.fleet.log.Warn("message of an agent cannot be read", "host", s.host, "error", err)
		return connect.NewError(code, "a message is cut short, too long or not of this protocol; nothing of it was taken").WithCause(err)
	}
	return err
}

func (s *session) take(ctx context.Context, instance string, m *pb.AgentMessage) error {
	var err error
	switch m := m.GetMessage().(type) {
	case *pb.AgentMessage_Inventory:
		err = s.inventory(m.Inventory)
	case *pb.AgentMessage_Ack:
		err = s.ack(m.Ack)
	case *pb.AgentMessage_Status:
		s.status(m.Status)
	case *pb.AgentMessage_Flows:
		return s.flows(ctx, instance, m.Flows)
	case *pb.AgentMessage_Hello:
		err = errors.New("a second hello")
	default:
		// A message of a newer protocol: the capability says that it may be left out.
	}
	if err != nil {
		s.fleet.metrics.BadMessages.Inc()
		s.fleet.log.Warn("message of an agent makes no sense", "host", s.host, "error", err)
		return connect.NewError(connect.CodeInvalidArgument, err.Error())
	}
	return nil
}

func (s *session) flows(ctx context.Context, instance string, b *pb.FlowBatch) error {
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return errShutdown
	}
	sequence := b.GetSequence()
	return s.fleet.flows.Submit(ctx, s.host, instance, b, func() {
		s.mu.Lock()
		s.stored = append(s.stored, sequence)
		s.mu.Unlock()
		s.poke()
	})
}

// inventory takes what the agent found in place of what it said before.
func (s *session) inventory(said *pb.HostInventory) error {
	f := s.fleet
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(said)
	if err != nil {
		return fmt.Errorf("inventory: %w", err)
	}
	a := f.agent(s.host)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.session != s || !a.stored.Enrolled() {
		return nil
	}
	r, err := report(&a.stored, said)
	if err != nil {
		return fmt.Errorf("inventory: %w", err)
	}
	if string(a.stored.Inventory) != string(data) {
		a.stored.Inventory, a.unsaved = data, true
	}
	since := f.world.SetReport(r) // with the lock held, so that a revocation in between is not undone
	s.mu.Lock()
	if !s.found {
		s.found, s.since = true, since
	}
	s.mu.Unlock()
	s.poke()
	return nil
}

// ack takes the agent's answer to a policy.
func (s *session) ack(m *pb.Ack) error {
	has, err := wire.HashFromProto(m.GetHash())
	if err != nil {
		return fmt.Errorf("acknowledgement: %w", err)
	}
	f := s.fleet
	a := f.agent(s.host)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.session != s {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pushing
	s.pushing, s.whole = nil, false
	if a.has != has {
		a.has, a.policy = has, nil
	}
	switch {
	case p == nil: // it says what it has without having been asked
	case m.GetRefused() == "" && has == p.policy.Sum:
		a.policy, a.refused, a.refusedSum = p.policy, "", hostpolicy.Hash{}
		f.metrics.PushSeconds.Observe(time.Since(p.sent).Seconds())
	case !p.snapshot: // perhaps the delta does not fit what it has; the whole policy does
		s.whole = true
		f.log.Warn("agent did not take a delta", "host", s.host, "refused", m.GetRefused(), "has", has.Short())
	default:
		a.refused, a.refusedSum = clip(m.GetRefused()), p.policy.Sum
		if a.refused == "" {
			a.refused = "the agent acknowledged another policy than it was sent"
		}
		f.metrics.PolicyRefusals.Inc()
		f.log.Error("agent refuses the policy", "host", s.host, "revision", p.policy.Revision, "reason", a.refused)
	}
	a.stored.LastSeen = f.cfg.Now()
	a.tell()
	s.poke()
	return nil
}
