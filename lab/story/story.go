// Package story tells the main job in seven steps on a running lab, and checks each of them: see, understand, decide,
// enforce, breach, contain, fail.
//
// Nothing is taken on trust. The ledgers of the lab know every connection that was made and what became of it; the
// story compares them with what the agents reported, and with what the evaluator says under the policy that was in
// force at the time. A step is good or bad by these comparisons alone.
package story

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"bulkhead/internal/core/model"
	"bulkhead/lab/rig"
	"bulkhead/lab/scenario"
)

// Options say how to tell the story.
type Options struct {
	Scenario *scenario.Scenario
	Bin      string    // directory of controller and agent; see rig.Config
	Keep     bool      // leave the lab running at the end
	Report   string    // file for the report as JSON; "" for none
	Out      io.Writer // where to tell it
}

// story is one telling.
type story struct {
	*teller
	opts   Options
	s      *scenario.Scenario
	rig    *rig.Rig
	report *Report
	eras   []era

	existing int              // connections that are older than the agents
	proposed *model.Documents // what learn proposed
}

// Tell builds the lab, tells the seven steps and takes the lab away again. The report says what was good; the error
// is about what kept the story from being told.
func Tell(ctx context.Context, o Options) (_ *Report, err error) {
	st := &story{teller: newTeller(o.Out), opts: o, s: o.Scenario}
	defer st.still()
	started := time.Now()
	st.report = &Report{Scenario: o.Scenario.Name, Title: o.Scenario.Title, Started: started}
	st.line("%s", st.style("Bulkhead lab: "+o.Scenario.Title, bold))
	st.text("", o.Scenario.About)

	st.doing("building the lab")
	say := func(format string, args ...any) {
		st.still()
		st.line("   %s", st.style(fmt.Sprintf(format, args...), faint))
		st.doing("working")
	}
	r, err := rig.Up(ctx, rig.Config{Scenario: o.Scenario, Bin: o.Bin, Stay: o.Keep, Say: say})
	if err != nil {
		return nil, err
	}
	kept := false
	defer func() {
		st.doing("removing the lab")
		if !kept {
			err = errors.Join(err, r.Close())
		}
	}()
	st.rig = r
	st.report.Machine = machine(r.Real())
	st.still()
	st.line("   %s", st.style(fmt.Sprintf("up after %.1f s: Linux %s, %d cores, database %s", time.Since(started).Seconds(),
		st.report.Machine.Kernel, st.report.Machine.CPUs, st.report.Machine.Database), faint))

	untold := st.steps(ctx)
	st.report.Took = time.Since(started)
	st.report.Good = untold == nil && len(st.report.Bad()) == 0
	if ctx.Err() != nil {
		return nil, untold
	}
	st.table(st.report)
	if o.Report != "" {
		if err := st.report.Write(o.Report); err != nil {
			return st.report, errors.Join(untold, fmt.Errorf("write the report: %w", err))
		}
		st.line("Report: %s", o.Report)
	}
	if untold != nil && !o.Keep {
		return st.report, untold
	}
	if o.Keep {
		kept = true
		st.line("%s", r.HowToExplore())
		return st.report, errors.Join(untold, r.Leave())
	}
	return st.report, nil
}

// steps tells the steps in order. A step that is bad does not end the story; one that cannot be told does.
func (st *story) steps(ctx context.Context) error {
	for i, step := range []struct {
		name string
		tell func(context.Context, *Step) error
	}{
		{"See", st.see}, {"Understand", st.understand}, {"Decide", st.decide}, {"Enforce", st.enforce},
		{"Breach", st.breach}, {"Contain", st.contain}, {"Fail", st.fail},
	} {
		s := Step{Number: i + 1, Name: step.name}
		start := time.Now()
		st.heading(s.Number, s.Name)
		untold := step.tell(ctx, &s)
		s.Took = time.Since(start)
		if untold != nil {
			s.Summary = "it could not be told to the end"
			s.problem("%v", untold)
		}
		for _, p := range st.rig.Ended() {
			s.problem("a process of the lab ended: %s", p)
		}
		s.Good = len(s.Problems) == 0
		st.still()
		for j := range s.Figures {
			st.figure(&s.Figures[j])
		}
		st.result(&s)
		st.report.Steps = append(st.report.Steps, s)
		if untold != nil {
			return fmt.Errorf("step %d, %s: %w", s.Number, strings.ToLower(s.Name), untold)
		}
	}
	return nil
}

// tell prints what a step is about, and the command that does the same.
func (st *story) tell(s *Step, sentences string, commands ...string) {
	st.text("   ", sentences)
	for _, c := range commands {
		st.command(c)
	}
	s.Commands = commands
}

func (s *Step) problem(format string, args ...any) {
	s.Problems = append(s.Problems, fmt.Sprintf(format, args...))
}

func (s *Step) figure(key, label string, value any, unit, note string) {
	s.Figures = append(s.Figures, Figure{Key: key, Label: label, Value: value, Unit: unit, Note: note})
}

// rest waits, unless ctx ends.
func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
