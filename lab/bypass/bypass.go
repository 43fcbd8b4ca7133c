// Package bypass is the attack range of the lab: a breached service tries to reach what policy forbids by every way round a
// dataplane that we know of, with real sockets and packets.
//
// Each technique is tried twice. While its segment is in mode observe it must arrive, which proves that the attempt is a real
// one; in mode enforce it must not, unless it is one that is named as open, with what to do about it. What arrives is said by
// the target, which serves and looks at its own cable, never by the attacker.
package bypass

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
	"bulkhead/lab/fabric"
	"bulkhead/lab/rig"
	"bulkhead/lab/scenario"
	"bulkhead/lab/traffic"
)

// Options say how to run the range.
type Options struct {
	Scenario *scenario.Scenario // the range
	Bin      string             // directory of controller and agent; see rig.Config
	Say      func(format string, args ...any)
}

// phase is how the segment is kept.
type phase string

const (
	observe phase = "observe"
	enforce phase = "enforce"
)

// The workloads of the range, by role.
var places = map[string]scenario.ID{
	"breached": {Host: "web-1", Unit: "breached.service"},
	"helper":   {Host: "web-1", Unit: "helper.service"},
	"secret":   {Host: "web-1", Unit: "secret.service"},
	"vault":    {Host: "vault-1"},
	"news":     {Host: "news-1"},
}

const breached = "breached" // the workload's name

type run struct {
	Options
	rig  *rig.Rig
	spec Spec
}

// Run builds the range, tries everything in both modes and takes the range away again. The report says what became of each
// technique; the error is about what kept it from being found out.
func Run(ctx context.Context, o Options) (_ *Report, err error) {
	started := time.Now()
	r := &run{Options: o}
	r.rig, err = rig.Up(ctx, rig.Config{Scenario: o.Scenario, Bin: o.Bin, Say: o.Say})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.rig.Close()) }()
	if err := r.players(ctx); err != nil {
		return nil, err
	}
	all := make(map[string]*result)
	for _, p := range []phase{observe, enforce} {
		if err := r.mode(ctx, p); err != nil {
			return nil, err
		}
		o.Say("trying %d techniques in mode %s", len(techniques()), p)
		began := time.Now()
		if err := r.try(ctx, p, all); err != nil {
			return nil, fmt.Errorf("in mode %s: %w", p, err)
		}
		if p == enforce {
			if err := r.recorded(ctx, all, began); err != nil {
				return nil, err
			}
		}
	}
	if ended := r.rig.Ended(); len(ended) > 0 {
		return nil, fmt.Errorf("processes of the range ended: %v", ended)
	}
	return report(all, time.Since(started)), nil
}

// players starts what attacks and what watches.
func (r *run) players(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	s := r.Scenario
	r.spec = Spec{Dir: filepath.Join(r.rig.Layout.Dir, "range"), Cgroups: map[string]string{},
		Own: map[family]netip.Addr{}, Target: map[family]netip.Addr{}, Allowed: map[family]netip.Addr{}, Spare: map[family]netip.Addr{}, Hub: map[family]netip.Addr{}}
	for role, at := range places {
		r.spec.Cgroups[role] = r.rig.Layout.UnitCgroup(at.Host, at.Unit)
	}
	for host, addrs := range map[string]map[family]netip.Addr{"web-1": r.spec.Own, "vault-1": r.spec.Target, "news-1": r.spec.Allowed} {
		for _, f := range both {
			a, ok := s.Host(host).Addr(f)
			if !ok {
				return fmt.Errorf("%s has no address of family %s", host, f)
			}
			addrs[f] = a
		}
	}
	r.spec.Hub[v4] = last(s.Network.V4)
	for f, n := range map[family]netip.Prefix{v4: s.Network.V4, v6: s.Network.V6} {
		r.spec.Spare[f] = last(n).Prev().Prev().Prev() // no host has it, nor the controller
	}
	if err := os.Mkdir(r.spec.Dir, 0o755); err != nil {
		return err
	}
	for _, role := range []string{"vault", "news", "secret", "helper", breached} {
		spec := r.spec
		path := filepath.Join(r.spec.Dir, role+".json")
		spec.Role, spec.Self = role, []string{self, "lab", Verb, path}
		if err := traffic.WriteSpec(path, &spec); err != nil {
			return err
		}
		p, err := r.rig.Play(places[role].Host, places[role].Unit, "range-"+role, "lab", Verb, path)
		if err != nil {
			return err
		}
		var a *answer
		err = fabric.WaitUntil(ctx, "the start of "+role, patience, 20*time.Millisecond, func() error {
			select {
			case <-p.Done():
				return fmt.Errorf("it ended: %v (log: %s)", p.Err(), p.Command.Log)
			default:
			}
			a, err = ask(ctx, r.spec.control(role), &order{Do: "mac"})
			return err
		})
		if err != nil {
			return err
		}
		if role == "vault" {
			r.spec.MAC = a.MAC
		}
	}
	return nil
}

// last returns the last address of the prefix.
func last(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < 8*len(a); i++ {
		a[i/8] |= 0x80 >> (i % 8)
	}
	addr, _ := netip.AddrFromSlice(net.IP(a))
	return addr
}

// mode puts the segment in the mode and waits until the agent has it.
func (r *run) mode(ctx context.Context, p phase) error {
	mode := map[phase]model.Mode{observe: model.ModeObserve, enforce: model.ModeEnforce}[p]
	docs := &model.Documents{Segments: slices.Clone(r.Scenario.Docs.Segments)}
	for i := range docs.Segments {
		docs.Segments[i].Mode = mode
	}
	if _, err := r.rig.Apply(ctx, []policy.File{{Name: "segments.yaml", Data: policy.Marshal(docs)}}, string(p)); err != nil {
		return err
	}
	return r.rig.Agree(ctx, patience)
}

// result is what became of a technique in one family.
type result struct {
	technique *technique
	family    family
	answers   map[phase]*answer
	seen      map[phase]sight
	recorded  bool
}

func (r *result) arrived(p phase) bool {
	s := r.seen[p]
	return s.App != "" || r.technique.cable && s.Wire
}

// passed reports whether anything at all of the attempt came off the cable.
func (r *result) passed(p phase) bool { return r.seen[p].App != "" || r.seen[p].Wire }

// try makes every attempt, one after the other, and asks the targets what came of them.
func (r *run) try(ctx context.Context, p phase, all map[string]*result) error {
	list := techniques()
	tokens := map[string]*result{}
	for i := range list {
		t := &list[i]
		for _, f := range t.families {
			key := fmt.Sprintf("%03d-%s", i, f)
			if all[key] == nil {
				all[key] = &result{technique: t, family: f, answers: map[phase]*answer{}, seen: map[phase]sight{}}
			}
			from := t.from
			if from == "" {
				from = breached
			}
			o := &order{Do: "try", Technique: t.name, Family: f, Token: token(p, t, f)}
			a, err := ask(ctx, r.spec.control(from), o)
			if err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			all[key].answers[p] = a
			tokens[o.Token] = all[key]
		}
	}
	return r.settle(ctx, p, tokens)
}

// settle waits until what must arrive has. Then it sends one more along the same way, which is allowed: when that is there,
// nothing is under way any more.
func (r *run) settle(ctx context.Context, p phase, tokens map[string]*result) error {
	look := func() error {
		for _, role := range []string{"vault", "secret"} {
			a, err := ask(ctx, r.spec.control(role), &order{Do: "seen", Tokens: slices.Sorted(maps.Keys(tokens))})
			if err != nil {
				return err
			}
			for t, s := range a.Seen {
				if tokens[t].technique.local == (role == "secret") {
					tokens[t].seen[p] = s
				}
			}
		}
		return nil
	}
	wanted := func(res *result) bool {
		return p == observe && res.technique.refused == "" || p == enforce && res.technique.named != "" && res.arrived(observe)
	}
	deadline := time.Now().Add(waiting)
	for {
		if err := look(); err != nil {
			return err
		}
		missing := 0
		for _, res := range tokens {
			if wanted(res) && !res.arrived(p) {
				missing++
			}
		}
		if missing == 0 || time.Now().After(deadline) {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	if err := r.sentinel(ctx, p); err != nil {
		return err
	}
	return look()
}

// waiting is how long what must arrive gets to do so; what is missing then is a finding.
const waiting = 2 * time.Second

func (r *run) sentinel(ctx context.Context, p phase) error {
	for _, f := range both {
		t := fmt.Sprintf("<bypass:%s-%s>", p, f)
		err := fabric.WaitUntil(ctx, "a datagram that is allowed", patience, 20*time.Millisecond, func() error {
			a, err := ask(ctx, r.spec.control(breached), &order{Do: "allowed", Family: f, Token: t})
			if err != nil {
				return err
			}
			if a.Err != "" {
				return errors.New(a.Err)
			}
			if a, err = ask(ctx, r.spec.control("vault"), &order{Do: "seen", Tokens: []string{t}}); err != nil {
				return err
			}
			if a.Seen[t].App == "" {
				return errors.New("it has not arrived")
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// recorded waits until the controller has the denial of each attempt that was stopped.
func (r *run) recorded(ctx context.Context, all map[string]*result, since time.Time) error {
	deadline := time.Now().Add(patience)
	for {
		edges, err := r.rig.API.Flows(ctx, &pb.ListFlowsRequest{SinceMs: since.UnixMilli(), From: breached, Verdicts: []pb.Verdict{pb.Verdict_VERDICT_DENY}})
		if err != nil {
			return err
		}
		missing := 0
		for _, res := range all {
			res.recorded = slices.ContainsFunc(edges, func(e *pb.Edge) bool { return r.denialOf(e, res) })
			if !res.recorded && !res.passed(enforce) && !res.technique.hidden && res.technique.refused == "" {
				missing++
			}
		}
		if missing == 0 || time.Now().After(deadline) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// denialOf reports whether the flow is the attempt: each has a port, a protocol or an address that no other has.
func (r *run) denialOf(e *pb.Edge, res *result) bool {
	a := &attempt{Spec: &r.spec, technique: res.technique, family: res.family}
	to := a.addr()
	if res.technique.to != nil {
		to = res.technique.to(a)
	}
	if e.ToAddr != to.String() {
		return false
	}
	if res.technique.protocols != nil {
		return slices.Contains(res.technique.protocols, uint8(e.Proto))
	}
	return e.Port == uint32(res.technique.port())
}
