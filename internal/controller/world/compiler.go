package world

import (
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"bulkhead/internal/core/compile"
	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

// changes are what is new since the last time: of hosts, leases and documents those that differ, as they are now.
type changes struct {
	hosts      map[string]*host            // nil: gone
	leases     map[string]*inventory.Lease // nil: gone
	docs       *Documents
	now        time.Time
	generation uint64
}

// compiler keeps policy compiled. What changes goes through who has which address (claims), which workloads there are
// (ledger) and what hosts are told (live); each does as much as is concerned. The first two take everything, because they cannot
// fail but for documents that contradict themselves. The last takes all or nothing: what it refuses waits for the next time, and
// meanwhile everybody is told what was before.
type compiler struct {
	log         *slog.Logger
	controllers []netip.AddrPort

	claims *claims
	ledger *inventory.Ledger
	read   documents // claims and ledger know what they declare

	live    *compile.Live
	docs    documents       // that live has
	now     time.Time       // that live has: other rules may have expired since
	waiting map[string]bool // workloads that live has to be told about
	// maxFunctions is how many functions live may know before another one takes its place.
	maxFunctions int

	// Of the next snapshot. They do not change; what is new makes others.
	roster   *roster
	problems map[string][]string
	disputed map[string]bool
}

// documents are documents twice: as they were given, and as the compiler has them, sharing with those of before (policy.Share).
type documents struct {
	given  *Documents
	shared *model.Documents
}

// manyFunctions is below what a Live needs in vain after years of changes: some tens of megabytes.
const manyFunctions = 100_000

func newCompiler(log *slog.Logger, controllers []netip.AddrPort) *compiler {
	none := documents{&Documents{Parsed: &model.Documents{}}, &model.Documents{}}
	return &compiler{
		log: log, controllers: controllers, claims: newClaims(), ledger: inventory.NewLedger(), read: none,
		docs: none, waiting: map[string]bool{}, maxFunctions: manyFunctions,
		roster: newRoster(), problems: map[string][]string{}, disputed: map[string]bool{},
	}
}

// take brings everything but policy up to date.
func (c *compiler) take(in *changes) error {
	for name, h := range in.hosts {
		c.claims.set(name, h)
	}
	for workload, l := range in.leases {
		if l == nil {
			c.ledger.DropLease(workload)
		} else {
			c.ledger.SetLease(*l)
		}
	}
	err := c.takeDocuments(in.docs)
	taken, disputed := map[string][]string{}, map[string]bool{}
	for name := range c.claims.dirty {
		report, problems, is := c.claims.settle(name)
		if report == nil {
			c.ledger.DropReport(name)
		} else {
			c.ledger.SetReport(report)
		}
		taken[name], disputed[name] = problems, is
	}
	c.claims.dirty = map[string]bool{} // not cleared: a map that was large once is slow to walk through
	c.dispute(disputed)
	out := c.ledger.Settle()
	for _, inst := range out.Set {
		c.waiting[inst.Name] = true
	}
	for _, name := range out.Gone {
		c.waiting[name] = true
	}
	// Every host whose report was set or dropped has been looked at.
	problems := map[string][]string{}
	for _, name := range out.Looked {
		list, ok := taken[name]
		if !ok {
			_, list, _ = c.claims.settle(name)
		}
		if why := c.ledger.Refused(name); why != nil {
			list = append(list, "the report is not taken: "+why.Error())
		}
		problems[name] = list
	}
	c.complain(problems)
	return err
}

// takeDocuments reads what documents declare. After an error those of before count.
func (c *compiler) takeDocuments(docs *Documents) error {
	if docs == c.read.given {
		return nil
	}
	shared := policy.Share(c.docs.shared, docs.Parsed)
	if now, was := shared.Workloads, c.read.shared.Workloads; len(now) != len(was) || len(now) > 0 && &now[0] != &was[0] {
		if err := c.ledger.SetWorkloads(now); err != nil {
			return err
		}
		c.claims.declare(now)
	}
	c.read = documents{docs, shared}
	return nil
}

// dispute notes which hosts claim an address that another one claims too.
func (c *compiler) dispute(of map[string]bool) {
	maps.DeleteFunc(of, func(host string, is bool) bool { return c.disputed[host] == is })
	if len(of) == 0 {
		return
	}
	c.disputed = maps.Clone(c.disputed)
	maps.Copy(c.disputed, of)
	maps.DeleteFunc(c.disputed, func(_ string, is bool) bool { return !is })
}

// complain notes the problems of hosts.
func (c *compiler) complain(of map[string][]string) {
	maps.DeleteFunc(of, func(host string, list []string) bool { return slices.Equal(c.problems[host], list) })
	if len(of) == 0 {
		return
	}
	c.problems = maps.Clone(c.problems)
	for host, list := range of {
		if len(list) > 0 {
			c.problems[host] = list
		} else {
			delete(c.problems, host)
		}
	}
}

// advance takes changes and makes policy of them. Changes are nil where there were none to read: everything was compiled for
// the first time, or anew. After an error the policy is what it was.
func (c *compiler) advance(in *changes) (*compile.Changes, error) {
	if err := c.take(in); err != nil {
		return nil, err
	}
	if c.live == nil {
		return nil, c.begin(in)
	}
	change := compile.Change{Now: in.now}
	if c.read != c.docs {
		change.Documents = c.read.shared
	}
	news := make([]workload, 0, len(c.waiting))
	for _, name := range slices.Sorted(maps.Keys(c.waiting)) {
		inst := c.ledger.Instance(name)
		switch {
		case inst != nil:
			change.Set = append(change.Set, *inst)
		case c.live.Instance(name) != nil:
			change.Gone = append(change.Gone, name)
		}
		news = append(news, workload{name, inst})
	}
	out, err := c.live.Apply(&change)
	if err != nil {
		return nil, err
	}
	c.roster = c.roster.with(news)
	c.docs, c.now = c.read, in.now
	c.waiting = map[string]bool{}
	return out, nil
}

// begin compiles everything.
func (c *compiler) begin(in *changes) error {
	live, news, err := c.compile(c.ledger.Instances(), c.read.shared, in.now)
	if err != nil {
		return err
	}
	c.live, c.roster = live, newRoster().with(news)
	c.docs, c.now = c.read, in.now
	c.waiting = map[string]bool{}
	return nil
}

func (c *compiler) compile(all []*model.Instance, docs *model.Documents, now time.Time) (*compile.Live, []workload, error) {
	inv := &model.Inventory{Instances: make([]model.Instance, len(all))}
	news := make([]workload, len(all))
	for i, inst := range all {
		inv.Instances[i], news[i] = *inst, workload{inst.Name, inst}
	}
	live, err := compile.NewLive(docs, inv, compile.Options{Now: now, Controllers: c.controllers})
	return live, news, err
}

// renew makes another Live of what the present one has, if that remembers too much of policies of long ago. Nobody must want to
// read the latest changes any more.
func (c *compiler) renew() {
	if c.live == nil || c.live.Functions() <= c.maxFunctions {
		return
	}
	live, _, err := c.compile(slices.Collect(c.roster.all()), c.docs.shared, c.now)
	if err != nil {
		c.maxFunctions *= 2
		c.log.Error("policy that is in force does not compile again; the compiler keeps more in memory than it needs", "error", err)
		return
	}
	c.log.Info("the compiler has forgotten policies of before", "functions", live.Functions(), "was", c.live.Functions())
	c.live, c.maxFunctions = live, max(manyFunctions, 4*live.Functions())
}

// snapshot returns what readers see of it all.
func (c *compiler) snapshot(in *changes) *Snapshot {
	s := &Snapshot{
		Problems: c.problems, Time: in.now, docs: c.docs.given, generation: in.generation, controllers: c.controllers,
		roster: c.roster, disputed: c.disputed,
	}
	if at, ok := c.live.NextExpiry(); ok {
		s.nextExpiry = at
	}
	return s
}
