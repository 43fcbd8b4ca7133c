package status

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/plan"
	"bulkhead/internal/core/policy"
	"bulkhead/internal/core/verdict"
)

// Documents answers for the policy of an agent that stands alone. The text of an error is for whoever asked.
type Documents interface {
	// Explain says what becomes of a flow and why, by what is in force.
	Explain(from, to, on string) (*verdict.Explanation, error)
	// Plan says what the files would change of what is in force. It changes nothing.
	Plan(ctx context.Context, files []policy.File) (*plan.Plan, error)
	// Confirm keeps what is on trial. It is an error if nothing is.
	Confirm(ctx context.Context) error
	// Reload reads the directory now, and tries again also what was refused or rolled back. The error is why not.
	Reload(ctx context.Context) error
}

// Alone is how an agent is doing whose policy is a directory of documents.
type Alone struct {
	Dir       string    `json:"dir"`
	Version   uint64    `json:"version"`         // of the documents in force, counted on this host; 0 is none yet
	Since     time.Time `json:"since,omitzero"`  // when they were taken
	Documents int       `json:"documents"`       // how many they are
	Trial     *Trial    `json:"trial,omitempty"` // they are rolled back unless they are confirmed
	Refused   *Refused  `json:"refused,omitempty"`
	Notes     []string  `json:"notes,omitempty"` // what is right by the rules and may still surprise
}

// Trial is that what is in force must be confirmed.
type Trial struct {
	Until  time.Time `json:"until"`
	Closes []string  `json:"closes"` // what passed before and is denied now
}

// Refused is that what is in the directory is not in force, and why.
type Refused struct {
	At     time.Time `json:"at"`
	Errors []string  `json:"errors"` // file:line:column: message, where there is a place
}

// Flow is an edge that was seen lately, as Seen of package flows.
type Flow struct {
	Direction     string     `json:"direction"` // egress: this host opened it
	From          string     `json:"from"`      // name of a workload, or an address
	To            string     `json:"to"`
	FromAddr      netip.Addr `json:"from_addr"`
	ToAddr        netip.Addr `json:"to_addr"`
	Proto         uint8      `json:"proto"`
	Port          uint16     `json:"port"` // of ICMP type<<8|code
	Verdict       string     `json:"verdict"`
	Rule          string     `json:"rule"`
	Process       string     `json:"process,omitempty"` // at this end, like Path and UID
	Path          string     `json:"path,omitempty"`
	UID           uint32     `json:"uid"`
	Connections   uint64     `json:"connections"`
	BytesSent     uint64     `json:"bytes_sent"`
	BytesReceived uint64     `json:"bytes_received"`
	First         time.Time  `json:"first"`
	Last          time.Time  `json:"last"`
}

// On returns protocol and port as rules write them.
func (f *Flow) On() string {
	return model.PortRange{Proto: model.Proto(f.Proto), Lo: f.Port, Hi: f.Port}.String()
}

// Flows is what GET /flows answers: the edges that have changed after a sequence, and the one to ask with next.
type Flows struct {
	Sequence uint64 `json:"sequence"`
	Flows    []Flow `json:"flows"`
}

// Question is what POST /explain takes.
type Question struct {
	From string `json:"from"`
	To   string `json:"to"`
	On   string `json:"on"`
}

// File is a file of documents, as POST /plan takes them.
type File struct {
	Name string `json:"name"`
	Data []byte `json:"data"`
}

type files struct {
	Files []File `json:"files"`
}

// done is the answer to what has no other.
type done struct {
	Done bool `json:"done"`
}

const maxFiles = 96 << 20 // of a request, in base64

// policyHandlers serve what is about policy.
func policyHandlers(mux *http.ServeMux, agent Agent) {
	mux.HandleFunc("GET /flows", func(w http.ResponseWriter, r *http.Request) {
		after, err := strconv.ParseUint(r.FormValue("after"), 10, 64)
		if err != nil && r.FormValue("after") != "" {
			answer(w, http.StatusBadRequest, failure{"after: use the sequence of the answer before"})
			return
		}
		answer(w, http.StatusOK, agent.Flows(after, r.FormValue("denied") == "true"))
	})
	ask := func(path string, limit int64, do func(ctx context.Context, d Documents, body *json.Decoder) (any, error)) {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			d, err := agent.Documents()
			var out any
			if err == nil {
				in := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit))
				in.DisallowUnknownFields()
				out, err = do(r.Context(), d, in)
			}
			if err != nil {
				answer(w, http.StatusConflict, failure{err.Error()})
				return
			}
			answer(w, http.StatusOK, out)
		})
	}
	ask("/explain", 4<<10, func(_ context.Context, d Documents, body *json.Decoder) (any, error) {
		var q Question
		if err := body.Decode(&q); err != nil {
			return nil, fmt.Errorf(`send {"from": "<workload or address>", "to": "<the same>", "on": "tcp/443"}: %w`, err)
		}
		return d.Explain(q.From, q.To, q.On)
	})
	ask("/plan", maxFiles, func(ctx context.Context, d Documents, body *json.Decoder) (any, error) {
		var f files
		if err := body.Decode(&f); err != nil {
			return nil, fmt.Errorf(`send {"files": [{"name": "<name>", "data": "<base64>"}]}: %w`, err)
		}
		list := make([]policy.File, len(f.Files))
		for i, x := range f.Files {
			list[i] = policy.File{Name: x.Name, Data: x.Data}
		}
		return d.Plan(ctx, list)
	})
	ask("/confirm", 0, func(ctx context.Context, d Documents, _ *json.Decoder) (any, error) {
		return done{true}, d.Confirm(ctx)
	})
	ask("/reload", 0, func(ctx context.Context, d Documents, _ *json.Decoder) (any, error) {
		return done{true}, d.Reload(ctx)
	})
}

// Flows returns the edges that have changed after the sequence, with denied only those that were, or would have been, denied.
func (c *Client) Flows(ctx context.Context, after uint64, denied bool) (*Flows, error) {
	var out Flows
	q := url.Values{"after": {strconv.FormatUint(after, 10)}, "denied": {strconv.FormatBool(denied)}}
	if err := c.do(ctx, http.MethodGet, "/flows?"+q.Encode(), nil, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Explain asks what becomes of a flow, and why.
func (c *Client) Explain(ctx context.Context, q Question) (*verdict.Explanation, error) {
	var out verdict.Explanation
	if err := c.do(ctx, http.MethodPost, "/explain", q, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Plan asks what the files would change.
func (c *Client) Plan(ctx context.Context, list []policy.File) (*plan.Plan, error) {
	f := files{Files: make([]File, len(list))}
	for i, x := range list {
		f.Files[i] = File{x.Name, x.Data}
	}
	var out plan.Plan
	if err := c.do(ctx, http.MethodPost, "/plan", f, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Confirm keeps what is on trial.
func (c *Client) Confirm(ctx context.Context) error {
	return c.do(ctx, http.MethodPost, "/confirm", nil, &done{})
}

// Reload has the directory read now.
func (c *Client) Reload(ctx context.Context) error {
	return c.do(ctx, http.MethodPost, "/reload", nil, &done{})
}
