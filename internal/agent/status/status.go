// Package status tells, on this host and without a controller, how its agent is doing, what it has seen and why it judges as
// it does: over a unix socket that only root may open, as JSON and as Prometheus metrics. Over it workloads are contained at
// once, too, and the policy of an agent that stands alone is asked about and confirmed.
package status

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// Report is how the agent is doing.
type Report struct {
	Host        string    `json:"host"`
	Version     string    `json:"version"`
	Started     time.Time `json:"started"`
	Alone       *Alone    `json:"standalone,omitempty"` // set if there is no controller
	Controller  string    `json:"controller"`
	Connected   bool      `json:"connected"`
	Sessions    uint64    `json:"sessions"` // how often it has connected
	Certificate time.Time `json:"certificate_until,omitzero"`

	Revision uint64    `json:"revision"`
	Hash     string    `json:"hash,omitempty"`
	Subjects []Subject `json:"subjects"`
	Isolated []string  `json:"isolated"`
	Glass    *Glass    `json:"break_glass,omitempty"`

	Dataplane Dataplane `json:"dataplane"`
	Counters  Counters  `json:"counters"`

	RecordsLost   uint64   `json:"records_lost"`
	SpoolBytes    int64    `json:"spool_bytes"`
	ResidentBytes uint64   `json:"resident_bytes"`
	Problems      []string `json:"problems"`
}

// Glass is that everything passes whatever policy says.
type Glass struct {
	Until  time.Time `json:"until"` // past: not any more
	Reason string    `json:"reason"`
}

// Subject is one workload of this host.
type Subject struct {
	Workload   string   `json:"workload"`
	Labels     string   `json:"labels,omitempty"`   // where the agent knows them: if it stands alone
	Segments   []string `json:"segments,omitempty"` // "web (enforce)"; likewise
	Unit       string   `json:"unit,omitempty"`
	Cgroups    []string `json:"cgroups,omitempty"`
	Quarantine string   `json:"quarantine,omitempty"`
	Isolated   bool     `json:"isolated,omitempty"`
}

// Dataplane is what judges.
type Dataplane struct {
	Kind      string   `json:"kind"`
	Kernel    string   `json:"kernel"`
	Limits    []string `json:"limits,omitempty"`
	Rows      int      `json:"rows"`
	Addresses int      `json:"addresses"`
}

// Counters are the totals of the dataplane, field by field.
type Counters struct {
	Judged      uint64 `json:"judged"`
	Allowed     uint64 `json:"allowed"`
	WouldDenied uint64 `json:"would_denied"`
	Denied      uint64 `json:"denied"`
	DroppedPkts uint64 `json:"dropped_packets"`
	EventsLost  uint64 `json:"events_lost"`
	Errors      uint64 `json:"errors"`
	Transit     uint64 `json:"transit_packets"`
	NamesLost   uint64 `json:"names_lost"`

	Names          uint64 `json:"names"` // how many there are now
	NamedAddresses uint64 `json:"named_addresses"`
}

// Agent is what the socket speaks for.
type Agent interface {
	Status() *Report
	Isolate(ctx context.Context, workload string, on bool) error
	BreakGlass(ctx context.Context, g Glass) error
	// Flows returns the edges that have changed after the sequence; denied is as of Client.Flows.
	Flows(after uint64, denied bool) *Flows
	// Documents is whom to ask about policy. The error says who has it instead.
	Documents() (Documents, error)
}

// Isolation is what POST /isolate takes.
type Isolation struct {
	Workload string `json:"workload"`
	On       bool   `json:"on"`
}

// ErrTaken says that another agent answers at the socket.
var ErrTaken = errors.New("another agent answers there")

// Listen makes the socket, for its owner only. What a dead agent left in its place is removed.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		return nil, fmt.Errorf("status socket %s: %w", path, errors.Join(ErrTaken, conn.Close()))
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("status socket %s: something else is there; remove it or choose another path", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// Serve answers on the listener until ctx ends.
func Serve(ctx context.Context, listener net.Listener, agent Agent) error {
	server := &http.Server{
		Handler:           handler(agent),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      30 * time.Second,
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("status socket: %w", err)
	}
	return nil
}

func handler(agent Agent) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, agent.Status())
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		_, _ = w.Write(appendMetrics(nil, agent.Status())) // nobody is left to tell
	})
	mux.HandleFunc("POST /isolate", func(w http.ResponseWriter, r *http.Request) {
		var req Isolation
		in := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10))
		in.DisallowUnknownFields()
		if err := in.Decode(&req); err != nil || req.Workload == "" {
			answer(w, http.StatusBadRequest, failure{`send {"workload": "<name>", "on": true|false}`})
			return
		}
		if err := agent.Isolate(r.Context(), req.Workload, req.On); err != nil {
			answer(w, http.StatusConflict, failure{err.Error()})
			return
		}
		answer(w, http.StatusOK, req)
	})
	mux.HandleFunc("POST /break-glass", func(w http.ResponseWriter, r *http.Request) {
		var req Glass
		in := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10))
		in.DisallowUnknownFields()
		if err := in.Decode(&req); err != nil || req.Until.IsZero() {
			answer(w, http.StatusBadRequest, failure{`send {"until": "<RFC 3339>", "reason": "<text>"}`})
			return
		}
		if err := agent.BreakGlass(r.Context(), req); err != nil {
			answer(w, http.StatusConflict, failure{err.Error()})
			return
		}
		answer(w, http.StatusOK, req)
	})
	policyHandlers(mux, agent)
	return mux
}

type failure struct {
	Error string `json:"error"`
}

func answer(w http.ResponseWriter, code int, body any) {
	data, err := json.MarshalIndent(body, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(data, '\n')) // nobody is left to tell
}

// Client asks the agent behind a socket.
type Client struct {
	path string
	http http.Client
}

// NewClient returns a client for the socket at the path.
func NewClient(path string) *Client {
	return &Client{path: path, http: http.Client{
		Timeout: 30 * time.Second, // a plan takes a while
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}},
	}}
}

// Status returns how the agent is doing.
func (c *Client) Status(ctx context.Context) (*Report, error) {
	var r Report
	if err := c.do(ctx, http.MethodGet, "/status", nil, &r); err != nil {
		return nil, err
	}
	return &r, nil
}

// Isolate has the agent contain the workload, or end that.
func (c *Client) Isolate(ctx context.Context, workload string, on bool) error {
	return c.do(ctx, http.MethodPost, "/isolate", Isolation{Workload: workload, On: on}, &Isolation{})
}

// BreakGlass has the agent let everything pass until then, or, if that is past, end it.
func (c *Client) BreakGlass(ctx context.Context, g Glass) error {
	return c.do(ctx, http.MethodPost, "/break-glass", g, &Glass{})
}

// ErrNoAgent says that nobody answers at the socket.
var ErrNoAgent = errors.New("no agent answers")

// AnswerError is that the agent says no. Its text is the agent's and may have several lines.
type AnswerError struct{ Text string }

// Error returns what the agent says.
func (e *AnswerError) Error() string { return e.Text }

// do sends in, if there is any, and reads the answer into out.
func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("%w at %s (is it running, and are you root?): %w", ErrNoAgent, c.path, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return err
	}
	var failed failure
	if resp.StatusCode != http.StatusOK {
		if json.Unmarshal(data, &failed) != nil || failed.Error == "" {
			failed.Error = "it answers " + resp.Status
		}
		return &AnswerError{failed.Error}
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("the agent at %s: %w", c.path, err)
	}
	return nil
}

const maxAnswer = 64 << 20
