// Package suggest proposes labels, segments and least-privilege policies from recorded flows.
//
// It is pure: the same flows, inventory and options give the same proposal. Nothing here decides about traffic; what
// it proposes is plain documents, which the deterministic core checks and a person accepts. Every label and every
// rule carries its evidence in words and numbers.
//
// What it promises: each flow whose Fate is FateLearned or FateAllowed is allowed once the proposed documents are
// merged over the current ones, also with every proposed segment in mode enforce. A rule never joins workloads of two
// environments unless recorded flows do. What looks like a scan is reported and not learnt. Where the evidence for a
// label is thin, it abstains and says why.
//
// The stages follow one another: resolve (flows to edges between parties), scan (leave out what nobody would want to
// allow), label (what each workload is), group (who is interchangeable), generalise (edges to rules), and write
// (rules to documents and evidence).
package suggest

import (
	"fmt"
	"net/netip"
	"time"

	"bulkhead/internal/core/model"
)

// Options steer a suggestion. The zero value is good, but for Now.
type Options struct {
	// Now is the time against which rules of Documents expire. The zero time expires none.
	Now time.Time
	// Documents are the documents in force; nil for none. Their names are not taken again, flows that one of their
	// rules allows need no new rule, and flows that one of their rules denies are not learnt.
	Documents *model.Documents
	// Controllers are the addresses at which controllers answer: traffic to them is essential.
	Controllers []netip.AddrPort
	// Trusted names workloads and addresses whose flows are learnt even if they look like a scan: monitoring,
	// configuration management, vulnerability scanners.
	Trusted []string
	// MinConfidence is the least confidence at which a label is proposed; 0 means 0.5.
	MinConfidence float64
}

// Fate says what became of one recorded flow. The zero value is not learnt.
type Fate uint8

// The fates.
const (
	FateUnknown    Fate = iota // an end is no known workload, or an address that several workloads share
	FateSuspicious             // looks like a scan; see Proposal.Suspicious
	FateDenied                 // was denied, or a rule of the documents in force denies it
	FateUnmanaged              // nothing of ours is at either end
	FateEssential              // always passes; needs no rule
	FateAllowed                // a rule of the documents in force allows it already
	FateLearned                // a proposed rule allows it
)

var fateNames = [...]string{"unknown", "suspicious", "denied", "unmanaged", "essential", "allowed", "learned"}

// String returns the fate in one word.
func (f Fate) String() string {
	if int(f) < len(fateNames) {
		return fateNames[f]
	}
	return fmt.Sprintf("fate(%d)", uint8(f))
}

// Proposal is what the flows suggest.
type Proposal struct {
	// Documents are to be merged over the current ones: Workload (with labels added), Service, Network, Segment in
	// mode observe, and Policy documents.
	Documents  *model.Documents `json:"-"`
	Labels     []LabelProposal  `json:"labels"`
	Abstained  []Abstention     `json:"abstained,omitempty"`
	Rules      []RuleEvidence   `json:"rules"`
	Suspicious []Suspicion      `json:"suspicious,omitempty"`
	Unknown    []Unknown        `json:"unknown,omitempty"`
	Stats      Stats            `json:"stats"`

	fates []Fate
}

// FateOf returns what became of flow number i of the flows given to Suggest.
func (p *Proposal) FateOf(i int) Fate { return p.fates[i] }

// LabelProposal is one label that a workload lacks.
type LabelProposal struct {
	Workload   string  `json:"workload"`
	Key        string  `json:"key"`
	Value      string  `json:"value"`
	Confidence float64 `json:"confidence"` // 0–1
	Why        string  `json:"why"`
}

// Abstention is a label that a workload lacks and that the evidence does not support.
type Abstention struct {
	Workload string `json:"workload"`
	Key      string `json:"key"`
	Why      string `json:"why"`
}

// OverPermission compares what a rule allows today with what was seen. Triples are (source, destination, port), of
// the workloads and addresses there are now.
type OverPermission struct {
	Allowed  uint64  `json:"allowed"`
	Observed uint64  `json:"observed"`
	Ratio    float64 `json:"ratio"` // Allowed / Observed; 1 is least privilege
}

// RuleEvidence says why a rule is proposed.
type RuleEvidence struct {
	Rule           model.RuleID   `json:"rule"`
	From           string         `json:"from"`
	To             string         `json:"to"`
	On             []string       `json:"on"`
	Flows          int            `json:"flows"` // distinct (source, destination, port)
	Connections    uint64         `json:"connections"`
	Sources        int            `json:"sources"`
	Destinations   int            `json:"destinations"`
	First          time.Time      `json:"first,omitzero"`
	Last           time.Time      `json:"last,omitzero"`
	Processes      []string       `json:"processes,omitempty"` // "client > server" where known
	OverPermission OverPermission `json:"over_permission"`
	Dynamic        bool           `json:"dynamic,omitempty"` // a range stands for many short-lived ports: review it
	WouldBreak     string         `json:"would_break"`
}

// Suspicion is traffic of one source that looks like a scan. It is not learnt.
type Suspicion struct {
	Source       string    `json:"source"`
	Flows        int       `json:"flows"`
	Connections  uint64    `json:"connections"`
	Destinations int       `json:"destinations"`
	Ports        int       `json:"ports"`
	First        time.Time `json:"first,omitzero"`
	Last         time.Time `json:"last,omitzero"`
	Examples     []string  `json:"examples"`
	Why          string    `json:"why"`
}

// Unknown is an end that is named in flows and that could not be told.
type Unknown struct {
	End   string `json:"end"`
	Flows int    `json:"flows"` // recorded flows, not distinct ones
	Why   string `json:"why"`
}

// Stats sums a proposal up. Distinct flows are (source, destination, port).
type Stats struct {
	Recorded    int     `json:"recorded"`    // recorded flows read
	Distinct    int     `json:"distinct"`    // distinct flows among workloads, essentials apart
	Covered     int     `json:"covered"`     // of those, allowed by the proposal or by the documents in force
	Suspicious  int     `json:"suspicious"`  // of those, left out as a scan
	Denied      int     `json:"denied"`      // of those, left out because they were denied
	Rules       int     `json:"rules"`       // proposed
	Compression float64 `json:"compression"` // distinct flows covered by proposed rules, per rule
	// Surface compares the triples that the proposed rules allow with those of a flat network, in which every known
	// source may use every service seen: 0.02 means that 98 % of the reachable surface is gone.
	Surface  float64 `json:"surface"`
	Labels   int     `json:"labels"`
	Segments int     `json:"segments"`
}

// Suggest proposes documents. inv may be nil; then every workload that a flow names is declared by the proposal.
// The error says which flow cannot be read.
func Suggest(flows []model.RecordedFlow, inv *model.Inventory, o Options) (*Proposal, error) {
	if o.MinConfidence == 0 {
		o.MinConfidence = 0.5
	}
	given := o.Documents != nil
	if !given {
		o.Documents = &model.Documents{}
	}
	r, err := resolve(flows, inv, &o)
	if err != nil {
		return nil, err
	}
	r.documentsGiven = given
	suspicious := findScans(r, o.Trusted)
	labels := inferLabels(r, o.MinConfidence)
	groups := groupParties(r, labels)
	rules := generalise(r, groups)
	p := write(r, labels, groups, rules, &o)
	p.Suspicious = suspicious
	p.Unknown = r.unknowns()
	p.fates = r.fates()
	p.Stats = r.stats(p, rules)
	return p, nil
}
