package agenttest

import (
	"context"
	"slices"
	"time"

	"connectrpc.com/connect/v2"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/api/bulkhead/v1/bulkheadv1connect"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/wire"
)

// SetPolicy makes p the policy of the host and pushes it to an agent that is connected.
func (c *Controller) SetPolicy(p *hostpolicy.Policy) {
	c.mu.Lock()
	old := c.policy
	c.policy = p
	c.history[p.Hash()] = p
	var to *Session
	if n := len(c.sessions); n > 0 && c.sessions[n-1].Open {
		to = c.sessions[n-1]
	}
	c.mu.Unlock()
	if to == nil {
		return
	}
	if old == nil {
		to.send <- snapshot(p)
		return
	}
	to.send <- delta(old, p)
}

// Forget makes the controller believe that the agent has p, which it never sent.
func (c *Controller) Forget(p *hostpolicy.Policy) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.policy = p
}

// Policy returns the policy that the agent should have.
func (c *Controller) Policy() *hostpolicy.Policy {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.policy
}

// HoldAcks keeps acknowledgements of flows back.
func (c *Controller) HoldAcks(hold bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.holdAcks = hold
}

// StopReading lets everything that agents send pile up on their side until the returned function is called.
func (c *Controller) StopReading() (resume func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	wall := make(chan struct{})
	c.deaf = wall
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.deaf = nil
		close(wall)
	}
}

// Records returns the flow records that were taken in, each once, and the numbers of their batches.
func (c *Controller) Records() (records []*pb.FlowRecord, batches []uint64, lost uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.records), slices.Clone(c.batches), c.lost
}

func snapshot(p *hostpolicy.Policy) *pb.ControllerMessage {
	return &pb.ControllerMessage{Message: &pb.ControllerMessage_Snapshot{Snapshot: wire.PolicyToProto(p)}}
}

func delta(old, new *hostpolicy.Policy) *pb.ControllerMessage {
	return &pb.ControllerMessage{Message: &pb.ControllerMessage_Delta{Delta: wire.Diff(old, new)}}
}

// Connect implements the service.
func (c *Controller) Connect(ctx context.Context, stream bulkheadv1connect.AgentServiceConnectServerStream) error {
	host, serial, err := c.peer(ctx, 0)
	if err != nil {
		return err
	}
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	if first.GetHello() == nil {
		return connect.NewError(connect.CodeInvalidArgument, "the first message must be hello")
	}
	s := &Session{Hello: first.GetHello(), Serial: serial, Open: true, send: make(chan *pb.ControllerMessage, 64)}
	s.send <- &pb.ControllerMessage{Message: &pb.ControllerMessage_Welcome{Welcome: &pb.Welcome{
		Capability: wire.Capability, ControllerVersion: "test", ServerTimeMs: time.Now().UnixMilli(),
	}}}
	c.mu.Lock()
	c.greet(s)
	c.sessions = append(c.sessions, s)
	c.mu.Unlock()
	c.notify()
	defer func() {
		c.mu.Lock()
		s.Open = false
		c.mu.Unlock()
		c.notify()
	}()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	received := make(chan error, 1)
	go func() { received <- c.receive(ctx, host, s, stream) }()
	for {
		c.mu.Lock()
		changed, revoked := c.changed, c.revoked[host]
		c.mu.Unlock()
		if revoked {
			return connect.NewError(connect.CodePermissionDenied, "the agent of host "+host+" has been revoked")
		}
		select {
		case m := <-s.send:
			if err := stream.Send(m); err != nil {
				return err
			}
		case err := <-received:
			return err
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// greet queues what brings the agent from what it has to what it should have. The caller holds mu.
func (c *Controller) greet(s *Session) {
	if c.policy == nil {
		return
	}
	has, err := wire.HashFromProto(s.Hello.GetHash())
	if err == nil && has == c.policy.Hash() {
		return
	}
	if old := c.history[has]; err == nil && old != nil {
		s.send <- delta(old, c.policy)
		return
	}
	s.send <- snapshot(c.policy)
}

func (c *Controller) receive(ctx context.Context, host string, s *Session, stream bulkheadv1connect.AgentServiceConnectServerStream) error {
	for {
		c.mu.Lock()
		deaf := c.deaf
		c.mu.Unlock()
		if deaf != nil {
			select {
			case <-deaf:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		m, err := stream.Receive()
		if err != nil {
			return err
		}
		if reply := c.take(host, s, m); reply != nil {
			select {
			case s.send <- reply:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		c.notify()
	}
}

// take records a message and returns the answer to it, if there is one.
func (c *Controller) take(host string, s *Session, m *pb.AgentMessage) *pb.ControllerMessage {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch m := m.GetMessage().(type) {
	case *pb.AgentMessage_Inventory:
		s.Inventories = append(s.Inventories, m.Inventory)
	case *pb.AgentMessage_Status:
		s.Statuses = append(s.Statuses, m.Status)
	case *pb.AgentMessage_Ack:
		s.Acks = append(s.Acks, m.Ack)
		has, err := wire.HashFromProto(m.Ack.GetHash())
		if m.Ack.GetRefused() == "" && c.policy != nil && (err != nil || has != c.policy.Hash()) {
			return snapshot(c.policy)
		}
	case *pb.AgentMessage_Flows:
		key := host + "/" + s.Hello.GetInstance()
		if m.Flows.GetSequence() > c.flows[key] {
			c.flows[key] = m.Flows.GetSequence()
			c.records = append(c.records, m.Flows.GetRecords()...)
			c.batches = append(c.batches, m.Flows.GetSequence())
			c.lost += m.Flows.GetLost()
		}
		if !c.holdAcks {
			return &pb.ControllerMessage{Message: &pb.ControllerMessage_FlowAck{
				FlowAck: &pb.FlowAck{Sequence: m.Flows.GetSequence()},
			}}
		}
	}
	return nil
}
