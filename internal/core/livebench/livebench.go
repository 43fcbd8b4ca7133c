// Package livebench measures what single changes of a large estate cost a compile.Live. The clocks are the caller's.
package livebench

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/estate"
	"bulkhead/internal/core/model"
)

// Figure is what changes of one kind cost.
type Figure struct {
	Kind    string `json:"kind"`
	Samples int    `json:"samples"`
	// Apply is until Apply returns: from then on the delta of any host can be drawn. Process is the same by the other clock.
	Apply   Latency `json:"apply"`
	Process Latency `json:"process"`
	// One is what it then takes to draw the delta of one host: of the one that changed, or of any if documents did.
	One Latency `json:"one"`
	// All is what it takes to draw the deltas of all other hosts, hashes included.
	All   Latency `json:"all"`
	Hosts int     `json:"hosts"` // that were told something by a change, on average
}

// Latency is how long something took, over all samples.
type Latency struct {
	P50 time.Duration `json:"p50"`
	P99 time.Duration `json:"p99"`
	Max time.Duration `json:"max"`
}

// Result is everything that Run measured.
type Result struct {
	Size    estate.Size   `json:"size"`
	Build   time.Duration `json:"build"` // of the live world from nothing
	Figures []Figure      `json:"figures"`
}

// Clocks are two ways of looking at processor time.
type Clocks struct {
	// Thread is what the thread has used that calls Run, to which the goroutine must be locked: what somebody who waits for
	// it would see of a processor of its own. It includes the help with collecting garbage that is asked of who makes it.
	Thread func() time.Duration
	// Process is what all threads have used: it includes the collecting beside it.
	Process func() time.Duration
}

// Run makes an estate and samples changes of each kind, rarer kinds fewer. It ends with an error if hosts are not told what
// compile.Compile gives them: of the hosts, check many are compared.
func Run(size estate.Size, samples, check int, clocks Clocks) (*Result, error) {
	r := &runner{clock: clocks.Thread, process: clocks.Process, samples: samples, byName: map[string]model.Instance{}}
	docs, inv := estate.Make(size)
	r.docs = docs
	for _, inst := range inv.Instances {
		r.byName[inst.Name] = inst
		r.names = append(r.names, inst.Name)
	}
	begin := r.clock()
	live, err := compile.NewLive(docs, inv, compile.Options{Now: now})
	if err != nil {
		return nil, err
	}
	r.live = live
	out := &Result{Size: size, Build: r.clock() - begin}
	for _, k := range kinds {
		if err := r.sample(k, max(1, samples/k.rare)); err != nil {
			return nil, fmt.Errorf("%s: %w", k.name, err)
		}
	}
	out.Figures = r.figures
	return out, r.check(check)
}

var now = time.Date(2026, time.March, 1, 0, 0, 0, 0, time.UTC)

type runner struct {
	drawn   uint64
	clock   func() time.Duration
	process func() time.Duration
	samples int
	live    *compile.Live
	docs    *model.Documents
	byName  map[string]model.Instance
	names   []string
	joined  int
	figures []Figure
	err     error // of a change that prepares another
}

// IntN returns a number below n: the next of a fixed sequence (Steele, Lea and Flood: SplitMix64).
func (r *runner) IntN(n int) int {
	r.drawn += 0x9e3779b97f4a7c15
	z := r.drawn
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return int((z ^ z>>31) % uint64(n))
}

// kind is a kind of change; undo, if it has a name, is one that takes it back and is measured too.
type kind struct {
	name, undo string
	rare       int // samples of others for one of it
	change     func(*runner) (change, back *compile.Change)
}

var kinds = []kind{
	{"workload joins", "workload leaves", 1, (*runner).join},
	{"workload gets labels of others", "", 1, (*runner).relabel},
	{"workload gets another address", "", 1, (*runner).readdress},
	{"unit listens on another port", "", 1, (*runner).listen},
	{"workload gets labels that nobody has", "such labels go", 2, (*runner).newLabels},
	{"quarantine", "quarantine lifted", 2, (*runner).quarantine},
	{"rule changes its ports", "", 2, (*runner).rulePorts},
	{"rule joins", "rule leaves", 2, (*runner).rule},
	{"rule expires", "", 2, (*runner).expiry},
	{"segment changes its mode", "", 50, (*runner).segment},
	{"network changes its addresses", "", 50, (*runner).network},
}

func (r *runner) sample(k kind, n int) error {
	do, undo := Figure{Kind: k.name}, Figure{Kind: k.undo}
	var took, tookBack samples
	for range n {
		change, back := k.change(r)
		if r.err != nil {
			return r.err
		}
		if err := r.apply(change, &do, &took); err != nil {
			return err
		}
		if back == nil {
			continue
		}
		if err := r.apply(back, &undo, &tookBack); err != nil {
			return err
		}
	}
	r.add(do, took)
	if k.undo != "" {
		r.add(undo, tookBack)
	}
	return nil
}

// samples are how long the parts of each change of one kind took.
type samples struct{ apply, process, one, all []time.Duration }

func (r *runner) add(f Figure, took samples) {
	f.Samples = len(took.apply)
	f.Apply, f.Process, f.One, f.All = latency(took.apply), latency(took.process), latency(took.one), latency(took.all)
	f.Hosts /= f.Samples
	r.figures = append(r.figures, f)
}

func latency(took []time.Duration) Latency {
	slices.Sort(took)
	return Latency{took[len(took)/2], took[len(took)*99/100], took[len(took)-1]}
}

func (r *runner) apply(c *compile.Change, f *Figure, took *samples) error {
	var host string
	if c.Set != nil {
		host = c.Set[0].Host
	} else {
		inst := r.some(isHost)
		host = inst.Name
	}
	used := r.process()
	begin := r.clock()
	changes, err := r.live.Apply(c)
	applied := r.clock()
	took.process = append(took.process, r.process()-used)
	if err != nil {
		return err
	}
	changes.Delta(host)
	one := r.clock()
	for range changes.Each {
		f.Hosts++
	}
	took.apply, took.one, took.all = append(took.apply, applied-begin), append(took.one, one-applied), append(took.all, r.clock()-one)
	f.Hosts += len(changes.Joined) + len(changes.Left)
	if c.Documents != nil {
		r.docs = c.Documents
	}
	for _, inst := range c.Set {
		r.byName[inst.Name] = inst
	}
	for _, name := range c.Gone {
		delete(r.byName, name)
	}
	return nil
}

// some returns a workload that is there, of which ok holds.
func (r *runner) some(ok func(*model.Instance) bool) model.Instance {
	for {
		if inst, there := r.byName[r.names[r.IntN(len(r.names))]]; there && (ok == nil || ok(&inst)) {
			return inst
		}
	}
}

func isHost(i *model.Instance) bool { return i.Managed && !i.IsUnit() && i.Host == i.Name }

func (r *runner) join() (*compile.Change, *compile.Change) {
	inst := r.some(isHost)
	r.joined++
	inst.Name = fmt.Sprintf("new-%06d", r.joined)
	inst.Host, inst.Addresses = inst.Name, []netip.Addr{r.freeAddress(&inst)}
	return &compile.Change{Set: []model.Instance{inst}}, &compile.Change{Gone: []string{inst.Name}}
}

// freeAddress returns an address at the site of the workload that nobody has.
func (r *runner) freeAddress(of *model.Instance) netip.Addr {
	a := of.Addresses[0].As4()
	r.joined++
	return netip.AddrFrom4([4]byte{10, a[1]&0xf0 | 14, byte(r.joined >> 8), byte(r.joined)})
}

func set(inst model.Instance) (*compile.Change, *compile.Change) {
	return &compile.Change{Set: []model.Instance{inst}}, nil
}

func (r *runner) relabel() (*compile.Change, *compile.Change) {
	inst, other := r.some(isHost), r.some(isHost)
	for other.Labels.String() == inst.Labels.String() || other.Addresses[0].As4()[1]>>4 != inst.Addresses[0].As4()[1]>>4 {
		other = r.some(isHost)
	}
	inst.Labels = other.Labels
	return set(inst)
}

func (r *runner) readdress() (*compile.Change, *compile.Change) {
	inst := r.some(func(i *model.Instance) bool { return isHost(i) && len(i.Addresses) == 1 })
	inst.Addresses = []netip.Addr{r.freeAddress(&inst)}
	return set(inst)
}

func (r *runner) listen() (*compile.Change, *compile.Change) {
	inst := r.some((*model.Instance).IsUnit)
	r.joined++
	inst.Listening = []model.Listener{{Addr: netip.IPv4Unspecified(), Proto: model.ProtoTCP, Port: uint16(10000 + r.joined%50000), Process: "server"}}
	return set(inst)
}

func (r *runner) newLabels() (*compile.Change, *compile.Change) {
	inst := r.some(isHost)
	before := inst
	r.joined++
	inst.Labels = inst.Labels.With(model.Labels{"loc": fmt.Sprintf("new-%d", r.joined)})
	return &compile.Change{Set: []model.Instance{inst}}, &compile.Change{Set: []model.Instance{before}}
}

func (r *runner) quarantine() (*compile.Change, *compile.Change) {
	inst := r.some(isHost)
	before := inst
	inst.Quarantine.Level = model.QuarantineIsolate
	inst.Labels = inst.Labels.With(model.Labels{model.QuarantineLabel: "isolate"})
	return &compile.Change{Set: []model.Instance{inst}}, &compile.Change{Set: []model.Instance{before}}
}

// policies returns the documents with other rules in one policy. Everything else is shared.
func (r *runner) policies(at int, rules []model.Rule) *compile.Change {
	docs := *r.docs
	docs.Policies = slices.Clone(docs.Policies)
	docs.Policies[at].Rules = rules
	return &compile.Change{Documents: &docs}
}

// effective returns a policy and the place of a rule in it that somebody is subject of.
func (r *runner) effective() (policy, rule int) {
	for {
		policy = r.IntN(len(r.docs.Policies))
		rule = r.IntN(len(r.docs.Policies[policy].Rules))
		if strings.HasPrefix(r.docs.Policies[policy].Rules[rule].Name, "rule-") {
			return policy, rule
		}
	}
}

func (r *runner) rulePorts() (*compile.Change, *compile.Change) {
	p, k := r.effective()
	rules := slices.Clone(r.docs.Policies[p].Rules)
	r.joined++
	port := uint16(20000 + r.joined%40000)
	rules[k].On = []model.PortRef{{Range: model.PortRange{Proto: model.ProtoTCP, Lo: port, Hi: port}}}
	return r.policies(p, rules), nil
}

func (r *runner) rule() (*compile.Change, *compile.Change) {
	p, k := r.effective()
	r.joined++
	rule := r.docs.Policies[p].Rules[k]
	rule.Name = fmt.Sprintf("new-%d", r.joined)
	port := uint16(20000 + r.joined%40000)
	rule.On = []model.PortRef{{Range: model.PortRange{Proto: model.ProtoTCP, Lo: port, Hi: port}}}
	before := r.docs.Policies[p].Rules
	return r.policies(p, append(slices.Clone(before), rule)), r.policies(p, before)
}

func (r *runner) expiry() (*compile.Change, *compile.Change) {
	change, back := r.rule()
	p := slices.IndexFunc(change.Documents.Policies, func(p model.Policy) bool {
		return strings.HasPrefix(p.Rules[len(p.Rules)-1].Name, "new-")
	})
	rules := change.Documents.Policies[p].Rules
	rules[len(rules)-1].Expires = now.Add(time.Hour)
	back.Now = now
	if _, r.err = r.live.Apply(change); r.err == nil {
		r.docs = change.Documents
	}
	return &compile.Change{Now: now.Add(2 * time.Hour)}, back
}

func (r *runner) segment() (*compile.Change, *compile.Change) {
	docs := *r.docs
	docs.Segments = slices.Clone(docs.Segments)
	s := &docs.Segments[r.IntN(len(docs.Segments))]
	s.Mode = (s.Mode + 2) % 3 // selective only with services, which observe and enforce do not read
	if s.Mode == model.ModeSelective {
		s.Services = []model.PortRef{{Service: "db"}}
	}
	return &compile.Change{Documents: &docs}, nil
}

func (r *runner) network() (*compile.Change, *compile.Change) {
	docs := *r.docs
	docs.Networks = slices.Clone(docs.Networks)
	n := &docs.Networks[r.IntN(16)]
	r.joined++
	n.CIDRs = append(slices.Clone(n.CIDRs), netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16 + byte(r.joined>>8&15), byte(r.joined), 0}), 24))
	return &compile.Change{Documents: &docs}, nil
}

// check compares what hosts are told with a world from scratch.
func (r *runner) check(hosts int) error {
	if hosts == 0 {
		return nil
	}
	inv := &model.Inventory{}
	for _, name := range slices.Sorted(maps.Keys(r.byName)) {
		inv.Instances = append(inv.Instances, r.byName[name])
	}
	w, err := compile.Compile(r.docs, inv, compile.Options{Now: now})
	if err != nil {
		return err
	}
	all := w.Hosts()
	for k := range min(hosts, len(all)) {
		h := all[k*len(all)/min(hosts, len(all))]
		p, _ := w.HostPolicy(h)
		if got, _ := r.live.HostHash(h); got != p.Hash() {
			return fmt.Errorf("host %s is told %s, and %s by a world from scratch", h, got.Short(), p.Hash().Short())
		}
	}
	return nil
}
