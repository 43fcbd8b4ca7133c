package controllertest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/api/bulkhead/v1/bulkheadv1connect"
	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/wire"
)

// Get returns the body of a page of the metrics listener.
func (c *Controller) Get(path string) string {
	c.t.Helper()
	resp, err := http.Get("http://" + c.Addrs.Metrics + path)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return string(body)
}

// Request returns a key and a certificate request for it.
func Request(t testing.TB) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "ignored"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return key, csr
}

// Agent is an agent whose dataplane is a memory. What it does wrong can be set before Connect.
type Agent struct {
	Host string
	Cert *tls.Certificate

	Refuse    func(*hostpolicy.Policy) string // a reason not to apply the policy
	Mute      bool                            // does not acknowledge policies
	Wrong     bool                            // acknowledges another hash than it was sent
	Unhearing bool                            // does not isolate
	Instance  string                          // of its flow batches
	Dataplane string                          // what it says it has; "memory" if nothing else is set before Connect

	t testing.TB
	c *Controller

	mu       sync.Mutex
	policy   *hostpolicy.Policy
	isolated map[string]bool
	acked    []uint64 // batches
	received []string // kinds of message, in order
	session  *Session
	reported *pb.HostInventory // what it says about its host, at the beginning of each stream; nil: nothing
}

// Session is one stream of an agent.
type Session struct {
	stream bulkheadv1connect.AgentServiceConnectClientStream
	cancel context.CancelFunc
	send   sync.Mutex
	ended  chan struct{}
	err    error // valid once ended is closed
}

// NewAgent returns an agent that has not enrolled.
func (c *Controller) NewAgent(host string) *Agent {
	a := &Agent{Host: host, Instance: "first", Dataplane: "memory", t: c.t, c: c, isolated: map[string]bool{}}
	c.t.Cleanup(func() {
		if c.t.Failed() {
			c.t.Logf("agent of %s received %v", host, a.Received())
		}
	})
	return a
}

// Enroll trades a join token for a certificate.
func (a *Agent) Enroll(token string) error {
	a.t.Helper()
	key, csr := Request(a.t)
	client := bulkheadv1connect.NewEnrollmentServiceClient(a.c.Client(nil, ""))
	resp, err := client.Enroll(context.Background(), &pb.EnrollRequest{Token: token, Host: a.Host, Csr: csr, AgentVersion: "test"})
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(resp.Chain[0])
	if err != nil {
		return err
	}
	a.Cert = &tls.Certificate{Certificate: resp.Chain, PrivateKey: key, Leaf: leaf}
	return nil
}

// Join enrols an agent with labels, connects it and reports its addresses.
func (c *Controller) Join(host string, labels map[string]string, addrs ...string) *Agent {
	c.t.Helper()
	a := c.NewAgent(host)
	if err := a.Enroll(c.Token(&pb.CreateTokenRequest{Host: host, Labels: labels})); err != nil {
		c.t.Fatalf("enrol %s: %v", host, err)
	}
	a.Connect()
	a.Report(&pb.HostInventory{Addresses: Addresses(addrs...)})
	return a
}

// Addresses returns addresses as agents report them.
func Addresses(addrs ...string) [][]byte {
	var out [][]byte
	for _, s := range addrs {
		out = append(out, wire.AddrToProto(netip.MustParseAddr(s)))
	}
	return out
}

// Connect opens the stream, says hello and, as agents do, what is on the host as far as Report has said so. The stream
// ends with the test.
func (a *Agent) Connect() *Session {
	a.t.Helper()
	transport := a.c.transport(a.Cert) // a connection of its own, as of another machine
	s, err := a.open(transport)
	if err != nil {
		a.t.Fatalf("connect %s: %v", a.Host, err)
	}
	a.t.Cleanup(func() {
		s.Close()
		transport.CloseIdleConnections()
	})
	a.mu.Lock()
	a.session = s
	hello := &pb.Hello{
		Capability: wire.Capability, AgentVersion: "test", Kernel: "6.1", Dataplane: a.Dataplane, Limits: []string{"enforces nothing"},
		BootId: "boot", Instance: a.Instance,
	}
	if a.policy != nil {
		sum := a.policy.Hash()
		hello.Revision, hello.Hash = a.policy.Revision, sum[:]
	}
	inventory := a.reported
	a.mu.Unlock()
	s.Send(&pb.AgentMessage{Message: &pb.AgentMessage_Hello{Hello: hello}})
	if inventory != nil {
		s.Send(&pb.AgentMessage{Message: &pb.AgentMessage_Inventory{Inventory: inventory}})
	}
	go a.listen(s)
	return s
}

func (a *Agent) open(transport *http.Transport) (*Session, error) {
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := a.Service(transport).Connect(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	return &Session{stream: stream, cancel: cancel, ended: make(chan struct{})}, nil
}

// Post sends the bytes in place of the messages of a stream, ends it, and returns the gRPC status that it gets, "0" if
// that was well, and what it says.
func (a *Agent) Post(body []byte) (status, message string) {
	a.t.Helper()
	transport := a.c.transport(a.Cert)
	defer transport.CloseIdleConnections()
	url := "https://" + a.c.Addrs.Network.String() + bulkheadv1connect.AgentServiceConnectProcedure
	req, err := http.NewRequestWithContext(a.t.Context(), http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/grpc+proto")
	req.Header.Set("TE", "trailers")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		a.t.Fatal(err)
	}
	for _, h := range []http.Header{resp.Header, resp.Trailer} {
		if status == "" {
			status, message = h.Get("Grpc-Status"), h.Get("Grpc-Message")
		}
	}
	return status, message
}

// Service returns a client of the agents' service with the agent's certificate; transport nil makes a new one.
func (a *Agent) Service(transport *http.Transport) bulkheadv1connect.AgentServiceClient {
	a.t.Helper()
	if transport == nil {
		return bulkheadv1connect.NewAgentServiceClient(a.c.Client(a.Cert, ""))
	}
	return bulkheadv1connect.NewAgentServiceClient(a.c.over(transport))
}

// listen does what the controller says until the stream ends.
func (a *Agent) listen(s *Session) {
	defer close(s.ended)
	for {
		m, err := s.stream.Receive()
		if err != nil {
			s.err = err
			return
		}
		if answer := a.take(m); answer != nil {
			s.Send(answer)
		}
	}
}

func (a *Agent) take(m *pb.ControllerMessage) *pb.AgentMessage {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch m := m.GetMessage().(type) {
	case *pb.ControllerMessage_Welcome:
		a.received = append(a.received, "welcome")
	case *pb.ControllerMessage_Snapshot:
		a.received = append(a.received, "snapshot")
		return a.apply(wire.PolicyFromProto(m.Snapshot))
	case *pb.ControllerMessage_Delta:
		a.received = append(a.received, "delta")
		if a.policy == nil {
			return a.apply(nil, fmt.Errorf("a delta and nothing to apply it to"))
		}
		return a.apply(wire.ApplyDelta(a.policy, m.Delta))
	case *pb.ControllerMessage_Isolate:
		a.received = append(a.received, fmt.Sprintf("isolate %s %v", m.Isolate.Workload, m.Isolate.On))
		if a.Unhearing {
			return nil
		}
		if a.isolated[m.Isolate.Workload] = m.Isolate.On; !m.Isolate.On {
			delete(a.isolated, m.Isolate.Workload)
		}
		return a.status()
	case *pb.ControllerMessage_FlowAck:
		a.acked = append(a.acked, m.FlowAck.Sequence)
	}
	return nil
}

func (a *Agent) apply(p *hostpolicy.Policy, err error) *pb.AgentMessage {
	refused := ""
	if err != nil {
		refused = err.Error()
	} else if a.Refuse != nil {
		refused = a.Refuse(p)
	}
	if refused == "" {
		a.policy = p
		for i := range p.Subjects { // policy takes the isolation over
			if s := &p.Subjects[i]; s.Quarantine == model.QuarantineIsolate {
				delete(a.isolated, s.Workload)
			}
		}
	}
	if a.Mute {
		return nil
	}
	ack := &pb.Ack{Refused: refused, TookUs: 10}
	if a.policy != nil {
		sum := a.policy.Hash()
		if a.Wrong {
			sum[0]++
		}
		ack.Revision, ack.Hash = a.policy.Revision, sum[:]
	}
	return &pb.AgentMessage{Message: &pb.AgentMessage_Ack{Ack: ack}}
}

func (a *Agent) status() *pb.AgentMessage {
	return &pb.AgentMessage{Message: &pb.AgentMessage_Status{Status: &pb.AgentStatus{Isolated: a.contained()}}}
}

// Send sends a message; an error shows when the stream is read.
func (s *Session) Send(m *pb.AgentMessage) {
	s.send.Lock()
	defer s.send.Unlock()
	_ = s.stream.Send(m) // Receive returns why
}

// Close breaks the stream, as a crash would.
func (s *Session) Close() {
	s.cancel()
	_ = s.stream.Close() // the end of the context alone does not end a stream that is sending
	<-s.ended
}

// Err waits for the stream to end, and returns why it did.
func (s *Session) Err(t testing.TB) error {
	t.Helper()
	select {
	case <-s.ended:
		return s.err
	case <-time.After(time.Minute):
		t.Fatal("the stream does not end")
		return nil
	}
}

// Report sends an inventory on the present stream, and on those to come.
func (a *Agent) Report(inv *pb.HostInventory) {
	a.Change(func(a *Agent) { a.reported = inv })
	a.Session().Send(&pb.AgentMessage{Message: &pb.AgentMessage_Inventory{Inventory: inv}})
}

// Flows sends a batch on the present stream.
func (a *Agent) Flows(b *pb.FlowBatch) {
	a.Session().Send(&pb.AgentMessage{Message: &pb.AgentMessage_Flows{Flows: b}})
}

// Session returns the present stream.
func (a *Agent) Session() *Session {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.session
}

// Policy returns what the agent enforces; nil if that is nothing.
func (a *Agent) Policy() *hostpolicy.Policy {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.policy
}

// Received returns the kinds of the messages received, in order.
func (a *Agent) Received() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.received)
}

// Acked returns the numbers of the batches that the controller has acknowledged.
func (a *Agent) Acked() []uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.acked)
}

// Isolated reports whether the agent isolates the workload: because it was told to, or by policy.
func (a *Agent) Isolated(workload string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Contains(a.contained(), workload)
}

// contained returns what the agent isolates. The caller holds mu.
func (a *Agent) contained() []string {
	list := slices.Collect(maps.Keys(a.isolated))
	if a.policy != nil {
		for i := range a.policy.Subjects {
			if s := &a.policy.Subjects[i]; s.Quarantine == model.QuarantineIsolate {
				list = append(list, s.Workload)
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// Change changes how the agent behaves, while it is connected.
func (a *Agent) Change(fn func(*Agent)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	fn(a)
}
