package uplink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/api/bulkhead/v1/bulkheadv1connect"
	"bulkhead/internal/agent/enroll"
	"bulkhead/internal/agent/flows"
	"bulkhead/internal/wire"
)

// session is one stream.
type session struct {
	*Link
	stream bulkheadv1connect.AgentServiceConnectClientStream

	changes chan *pb.ControllerMessage // policy to apply, in order
	acks    chan *pb.AgentMessage
	acked   atomic.Uint64 // the last batch of flows that the controller has acknowledged
}

const (
	welcomeWithin = 20 * time.Second
	// queue bounds what waits between receiving and applying; then the stream itself holds the controller back.
	queue = 16
)

var errSilent = errors.New("the controller took the connection and said nothing")

// session opens a stream and serves it until it ends.
func (l *Link) session(ctx context.Context) error {
	transport := l.deps.Keeper.Transport()
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &session{
		Link:    l,
		changes: make(chan *pb.ControllerMessage, queue),
		acks:    make(chan *pb.AgentMessage, queue),
	}
	var err error
	if s.stream, err = bulkheadv1connect.NewAgentServiceClient(l.deps.Keeper.Client(transport)).Connect(ctx); err != nil {
		return err
	}
	defer s.stream.Close()
	if err := s.stream.Send(&pb.AgentMessage{Message: &pb.AgentMessage_Hello{Hello: l.hello()}}); err != nil {
		// The reason is in what the controller sent back.
		if _, received := s.stream.Receive(); received != nil && !errors.Is(received, io.EOF) {
			return received
		}
		return err
	}
	silence := time.AfterFunc(welcomeWithin, func() { cancel(errSilent) })
	defer silence.Stop()
	if err := s.welcome(); err != nil {
		return first(context.Cause(ctx), err)
	}
	silence.Stop()

	group, ctx := errgroup.WithContext(ctx)
	// What is blocked in the stream comes back when the stream is closed.
	stop := context.AfterFunc(ctx, func() { s.stream.Close() })
	defer stop()
	group.Go(func() error { return s.receive(ctx) })
	group.Go(func() error { return s.applyChanges(ctx) })
	group.Go(func() error { return s.send(ctx) })
	group.Go(func() error { return s.renew(ctx) })
	return group.Wait()
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *Link) hello() *pb.Hello {
	h := l.deps.Hello()
	h.Capability = wire.Capability
	h.Instance = l.deps.Spool.Instance()
	if now := l.deps.Policy.Current(); now != nil {
		h.Revision, h.Hash = now.Policy.Revision, now.Hash[:]
	}
	return h
}

const maxSkew = 2 * time.Minute

// welcome waits for the controller's first message.
func (s *session) welcome() error {
	m, err := s.stream.Receive()
	if err != nil {
		return err
	}
	w := m.GetWelcome()
	if w == nil {
		return errors.New("the controller's first message is not a welcome")
	}
	if w.GetCapability()+1 < wire.Capability {
		return fmt.Errorf("the controller speaks protocol %d and this agent %d: upgrade the controller first", w.GetCapability(), wire.Capability)
	}
	skew := ""
	if d := time.Since(time.UnixMilli(w.GetServerTimeMs())); w.GetServerTimeMs() != 0 && d.Abs() > maxSkew {
		skew = fmt.Sprintf("the clocks of this host and of the controller differ by %v; certificates depend on them", d.Abs().Round(time.Second))
	}
	s.deps.Report("clock", skew)
	s.deps.Report(problem, "")
	s.deps.Report(ProblemIdentity, "")
	s.connected.Store(true)
	s.sessions.Add(1)
	s.deps.Log.Info("connected to the controller", "version", w.GetControllerVersion())
	return nil
}

func (s *session) receive(ctx context.Context) error {
	for {
		m, err := s.stream.Receive()
		if errors.Is(err, io.EOF) {
			return errors.New("the controller ended the stream")
		}
		if err != nil {
			return err
		}
		switch body := m.GetMessage().(type) {
		case *pb.ControllerMessage_FlowAck:
			if err := s.deps.Spool.Ack(body.FlowAck.GetSequence()); err != nil {
				s.deps.Log.Error("the flow spool cannot be tidied up", "error", err)
			}
			s.acked.Store(max(s.acked.Load(), body.FlowAck.GetSequence()))
			s.rouse()
		case *pb.ControllerMessage_Isolate:
			if s.isolate(ctx, body.Isolate) == nil {
				continue
			}
			// The workload may be in a policy that has arrived and waits to be applied: try again behind it.
			if err := s.enqueue(ctx, m); err != nil {
				return err
			}
		case *pb.ControllerMessage_Snapshot, *pb.ControllerMessage_Delta:
			if err := s.enqueue(ctx, m); err != nil {
				return err
			}
		}
		// Anything else comes from a newer controller, which knows from our hello that we do not.
	}
}

func (s *session) enqueue(ctx context.Context, m *pb.ControllerMessage) error {
	select {
	case s.changes <- m:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// send is the only one that writes to the stream. Answers and status go before flows.
func (s *session) send(ctx context.Context) error {
	s.inventory.Store(true) // the controller knows nothing of a new session's host
	s.status.Store(true)
	ticker := time.NewTicker(s.cfg.StatusEvery)
	defer ticker.Stop()
	reader := s.deps.Spool.Reader()
	var inFlight []uint64
	for {
		m := s.urgent()
		if m == nil {
			acked := s.acked.Load()
			inFlight = slices.DeleteFunc(inFlight, func(n uint64) bool { return n <= acked })
			if len(inFlight) < s.cfg.InFlight {
				if m = s.nextFlows(reader); m != nil {
					inFlight = append(inFlight, m.GetFlows().GetSequence())
				}
			}
		}
		if m != nil {
			if err := s.stream.Send(m); errors.Is(err, io.EOF) {
				return nil // the controller has ended the stream: receive learns why
			} else if err != nil {
				return err
			}
			continue
		}
		select {
		case <-s.wake:
		case <-s.deps.Spool.More():
		case <-ticker.C:
			s.status.Store(true)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// urgent returns what is to be sent before any flows, or nil.
func (s *session) urgent() *pb.AgentMessage {
	select {
	case m := <-s.acks:
		return m
	default:
	}
	if s.status.Swap(false) {
		return &pb.AgentMessage{Message: &pb.AgentMessage_Status{Status: s.deps.Status()}}
	}
	if s.inventory.Swap(false) {
		if inv := s.deps.Inventory(); inv != nil {
			return &pb.AgentMessage{Message: &pb.AgentMessage_Inventory{Inventory: inv}}
		}
	}
	return nil
}

// nextFlows returns the oldest batch that was not sent yet, or nil.
func (s *session) nextFlows(r *flows.Reader) *pb.AgentMessage {
	for {
		batch, err := r.Next()
		if err != nil {
			s.deps.Log.Error("flow records are lost", "error", err)
			continue // behind what cannot be read
		}
		if batch == nil {
			return nil
		}
		return &pb.AgentMessage{Message: &pb.AgentMessage_Flows{Flows: batch}}
	}
}

const (
	minRenewRetry = time.Second
	maxRenewRetry = time.Minute
	keepRetry     = 5 * time.Second
)

// renew keeps the certificate young. The stream goes on with the old one; the next uses the new.
func (s *session) renew(ctx context.Context) error {
	retry := time.Duration(0)
	for {
		id := s.deps.Keeper.Current()
		wait, unkept := max(time.Until(id.RenewAt()), retry), ""
		if err := s.deps.Keeper.Keep(); err != nil {
			wait, unkept = min(wait, keepRetry), err.Error()
		}
		s.deps.Report("identity file", unkept)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		if time.Now().Before(id.RenewAt()) {
			continue
		}
		call, cancel := context.WithTimeout(ctx, welcomeWithin)
		err := s.deps.Keeper.Renew(call)
		cancel()
		if err == nil || errors.Is(err, enroll.ErrNotKept) {
			s.deps.Report("certificate", "")
			retry = 0
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.deps.Log.Warn("the certificate was not renewed", "error", err, "valid_until", id.NotAfter())
		s.deps.Report("certificate", fmt.Sprintf("%v; the present one is good until %s", err, id.NotAfter().Format(time.RFC3339)))
		retry = min(max(2*retry, minRenewRetry), maxRenewRetry)
	}
}
