package ebpf

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
)

// maxPattern is how many bytes the text of a pattern may have, as the programs write it.
const maxPattern = len(patternKey{}.Text)

// following are the programs that read what resolvers answer, while rules name hosts. The first learns what is asked before
// the second hears of an answer.
var following = []attachment{
	{programsProgBulkheadQuestions, ebpf.AttachCGroupInetEgress, false},
	{programsProgBulkheadAnswers, ebpf.AttachCGroupInetIngress, false},
}

// onDemand are programs that are loaded when they are needed.
var onDemand = []string{programsProgBulkheadQuestions, programsProgBulkheadAnswers, programsProgBulkheadRematch}

const withoutNames = "Rules that name hosts (domains) are refused, and the whole policy with them: this kernel has no bpf_loop " +
	"(Linux 5.17), which reading the answers of resolvers needs."

// canFollow reports whether the kernel takes programs that read names.
func canFollow() bool { return features.HaveProgramHelper(ebpf.CGroupSKB, asm.FnLoop) == nil }

// follow puts the programs that read answers into place, if they are not.
func (d *Dataplane) follow() error {
	if d.demanded[programsProgBulkheadRematch] == nil {
		spec, err := loadPrograms()
		if err != nil {
			return err
		}
		d.resize(spec)
		for _, name := range onDemand {
			p, err := loadOne(spec, name, d.mapsByName())
			if err != nil {
				return fmt.Errorf("rules that name hosts: %w", unsupported(err, nil))
			}
			d.demanded[name] = p
		}
	}
	for _, a := range following {
		if d.links[a.program] != nil {
			continue
		}
		err := d.attach(a)
		if err == nil && d.inodes != nil {
			err = d.rememberPin(linkPin(a.program))
		}
		if err != nil {
			return fmt.Errorf("rules that name hosts: %w", err)
		}
	}
	return nil
}

// unfollow takes them out again, also those that another agent has left.
func (d *Dataplane) unfollow() error {
	var errs []error
	for _, a := range slices.Backward(following) {
		l := d.links[a.program]
		if l == nil {
			var err error
			l, err = link.LoadPinnedLink(d.linkPath(a.program), nil)
			if err != nil {
				if !errors.Is(err, os.ErrNotExist) {
					errs = append(errs, fmt.Errorf("take out %s: %w", a.program, err))
				}
				continue
			}
		}
		delete(d.links, a.program)
		delete(d.inodes, linkPin(a.program))
		errs = append(errs, d.unpinLink(a.program), detach(l), l.Close())
	}
	for _, name := range onDemand {
		if p := d.demanded[name]; p != nil {
			delete(d.demanded, name)
			errs = append(errs, p.Close())
		}
	}
	return errors.Join(errs...)
}

// touchNames keeps the names that live TCP connections were judged by, where the kernel refuses the program that does it with
// each update.
func (d *Dataplane) touchNames() error {
	if d.programs[programsProgBulkheadUpdate] != nil || d.settings.Epochs[0].Load()|d.settings.Epochs[1].Load() == 0 {
		return nil
	}
	_, err := d.sweepAll()
	return err
}

// program returns a program that is loaded, or nil. The caller holds mu.
func (d *Dataplane) program(name string) *ebpf.Program {
	if p := d.demanded[name]; p != nil {
		return p
	}
	return d.programs[name]
}

// mapsByName returns the maps as the objects name them.
func (d *Dataplane) mapsByName() map[string]*ebpf.Map {
	all := map[string]*ebpf.Map{}
	v := reflect.ValueOf(d.maps)
	for i := range v.NumField() {
		if m, ok := v.Field(i).Interface().(*ebpf.Map); ok && m != nil {
			all[v.Type().Field(i).Tag.Get("ebpf")] = m
		}
	}
	return all
}

// patternKeyOf returns what the programs compare names with.
func patternKeyOf(pattern string, epoch uint32) patternKey {
	suffix, wild := strings.CutPrefix(pattern, "*")
	k := patternKey{Epoch: epoch}
	for i := range len(suffix) {
		k.Text[i] = suffix[len(suffix)-1-i]
	}
	bytes := len(suffix)
	if !wild {
		bytes++ // the zero at its end
	}
	k.Bits = uint32(8 * (4 + bytes))
	return k
}

// patternOf is the inverse of patternKeyOf.
func patternOf(k *patternKey) string {
	text := k.Text[:k.Bits/8-4]
	name, wild := slices.Clone(text), true
	if n := len(name); n > 0 && name[n-1] == 0 {
		name, wild = name[:n-1], false
	}
	slices.Reverse(name)
	if wild {
		return "*" + string(name)
	}
	return string(name)
}

// planDomains compares the patterns of host names and what they make of addresses. Last is the epoch that was given last.
func (t *transition) planDomains(h *held, last uint32) error {
	numbers := map[string]uint32{}
	for _, x := range t.policy.Domains {
		numbers[x.Pattern] = 0
	}
	t.patterns, t.epoch = slices.Sorted(maps.Keys(numbers)), h.epoch
	for i, pattern := range t.patterns {
		if len(pattern) >= maxPattern {
			return fmt.Errorf("host name %s: it is longer than %d bytes", pattern, maxPattern-1)
		}
		numbers[pattern] = uint32(i)
	}
	if t.renames = !slices.Equal(t.patterns, h.patterns); t.renames {
		t.epoch = 0
		if len(t.patterns) > 0 {
			t.epoch = max(1, last+1)
		}
	}
	domains := map[domainKey]value{}
	for _, x := range t.policy.Domains {
		domains[domainKey{Base: uint64(x.Base), Epoch: t.epoch, Pattern: numbers[x.Pattern]}] = value{id: uint64(x.Identity)}
	}
	t.domains = h.domains.diff(maps.All(domains), nil, nil)
	t.resolvers = h.resolvers.diff(maps.All(resolversOf(t.policy)), nil, nil)
	return nil
}

// resolversOf returns the identities of the resolvers that policy names: those to which DNS is essential. Without names of
// hosts there are none.
func resolversOf(p *hostpolicy.Policy) map[uint64]value {
	out := map[uint64]value{}
	if len(p.Domains) == 0 {
		return out
	}
	i := slices.IndexFunc(p.Subjects, func(s hostpolicy.Subject) bool { return s.Unit == "" })
	table := p.Set(p.Subjects[i].Set).Table(model.Egress)
	for _, row := range table.Peers {
		if table.Funcs[row.Func].Cell(model.ProtoUDP, dnsPort).Rule == model.RuleDNS {
			out[uint64(row.Peer)] = value{id: 1}
		}
	}
	return out
}

const dnsPort = 53

// writeNames prepares the patterns of the next generation: from now on answers are matched with them too, and those that
// came before are matched once.
func (d *Dataplane) writeNames(t *transition) error {
	if t.epoch == 0 {
		return nil
	}
	if err := d.follow(); err != nil {
		return err
	}
	if !t.renames {
		return nil
	}
	d.settings.put64(&d.settings.own.LastEpoch, uint64(t.epoch)) // before anything is said of it
	numbers := make([]uint32, len(t.patterns))
	for i := range numbers {
		numbers[i] = uint32(i)
	}
	if err := putAll(d.maps.Patterns, patternKeys(t.patterns, t.epoch), numbers); err != nil {
		return fmt.Errorf("write patterns of host names: %w", err)
	}
	d.settings.put64(&d.settings.own.NextEpoch, uint64(t.epoch))
	if _, err := d.demanded[programsProgBulkheadRematch].Run(&ebpf.RunOptions{Data: make([]byte, 64)}); err != nil {
		return fmt.Errorf("look for host names that were told before: %w", err)
	}
	return nil
}

// undoNames takes back what writeNames has done.
func (d *Dataplane) undoNames(t *transition) error {
	d.settings.put64(&d.settings.own.NextEpoch, 0)
	var errs []error
	if t.renames {
		errs = append(errs, deleteAll(d.maps.Patterns, patternKeys(t.patterns, t.epoch)))
	}
	if d.held.epoch == 0 {
		errs = append(errs, d.unfollow())
	}
	return errors.Join(errs...)
}

// finishNames removes what names were matched with before. What was learnt under it goes by itself.
func (d *Dataplane) finishNames(t *transition) error {
	h := d.held
	d.settings.put64(&d.settings.own.NextEpoch, 0)
	var errs []error
	if t.renames {
		errs = append(errs, deleteAll(d.maps.Patterns, patternKeys(h.patterns, h.epoch)))
	}
	h.setPatterns(t.patterns, t.epoch)
	if h.epoch == 0 {
		errs = append(errs, d.unfollow())
	}
	return errors.Join(errs...)
}

// setPatterns notes which patterns the programs know.
func (h *held) setPatterns(patterns []string, epoch uint32) {
	h.patterns, h.epoch, h.numbers = patterns, epoch, make(map[patternKey]uint32, len(patterns))
	for i, k := range patternKeys(patterns, epoch) {
		h.numbers[k] = uint32(i)
	}
}

func patternKeys(patterns []string, epoch uint32) []patternKey {
	keys := make([]patternKey, len(patterns))
	for i, p := range patterns {
		keys[i] = patternKeyOf(p, epoch)
	}
	return keys
}

// readNames reads which patterns are in force, and removes those that an agent which died has prepared.
func (h *held) readNames(d *Dataplane) func(uint32) error {
	return func(gen uint32) error {
		s := &d.settings
		epoch := s.Epochs[gen&1].Load()
		s.put64(&s.own.Epochs[(gen+1)&1], epoch)
		s.put64(&s.own.NextEpoch, 0)
		h.epoch = uint32(epoch)
		var patterns []string
		var stale []patternKey
		var key patternKey
		var number uint32
		it := d.maps.Patterns.Iterate()
		for it.Next(&key, &number) {
			if key.Epoch != h.epoch {
				stale = append(stale, key)
				continue
			}
			for int(number) >= len(patterns) {
				patterns = append(patterns, "")
			}
			patterns[number] = patternOf(&key)
		}
		if err := it.Err(); err != nil {
			return fmt.Errorf("read patterns of host names: %w", err)
		}
		h.setPatterns(patterns, h.epoch)
		if err := deleteAll(d.maps.Patterns, stale); err != nil {
			return fmt.Errorf("remove patterns of host names: %w", err)
		}
		return nil
	}
}

// resumeNames goes on reading answers, or not, as the policy in force asks for.
func (d *Dataplane) resumeNames() error {
	if d.held.epoch == 0 {
		return d.unfollow()
	}
	return d.follow()
}
