package story

import (
	"context"
	"fmt"
	"time"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/policy"
)

// segmentsIn returns the scenario's segments in a mode, those that only names accepts; nil accepts all.
func (st *story) segmentsIn(mode model.Mode, only func(name string) bool) *model.Documents {
	docs := &model.Documents{}
	for i := range st.s.Docs.Segments {
		g := st.s.Docs.Segments[i]
		if only == nil || only(g.Name) {
			g.Mode = mode
			docs.Segments = append(docs.Segments, g)
		}
	}
	return docs
}

func asFile(name string, docs *model.Documents) []policy.File {
	return []policy.File{{Name: name, Data: policy.Marshal(docs)}}
}

// enforcePause is how long traffic runs under each new state.
const enforcePause = 900 * time.Millisecond

func (st *story) enforce(ctx context.Context, s *Step) error {
	st.tell(s, "The proposal is applied, then one segment after the other goes from observe to enforce while the traffic runs. "+
		"No legitimate request may fail, also not in the middle of a change.",
		"bulkhead apply -f proposal/", "bulkhead apply -f portal.yaml        # mode: enforce")
	start := time.Now().UnixNano()
	if err := st.beginEra(ctx, "observing"); err != nil {
		return err
	}
	var slowest time.Duration
	step := func(what string, files []policy.File) error {
		st.doing("%s", what)
		asked := time.Now()
		err := st.change(ctx, what, func(ctx context.Context) error {
			_, err := st.rig.Apply(ctx, files, what)
			return err
		})
		if err != nil {
			return err
		}
		slowest = max(slowest, time.Since(asked))
		return rest(ctx, enforcePause)
	}
	if err := step("what learn proposed", asFile("proposal.yaml", st.proposed)); err != nil {
		return err
	}
	for i, name := range st.s.Story.Enforce {
		files := asFile(name+".yaml", st.segmentsIn(model.ModeEnforce, func(n string) bool { return n == name }))
		if i == len(st.s.Story.Enforce)-1 {
			files = append(files, st.s.Target...)
		}
		if err := step("enforcing "+name, files); err != nil {
			return err
		}
	}
	st.endEra()
	if err := st.beginEra(ctx, "all enforced"); err != nil {
		return err
	}
	s.figure("segments", "segments enforced", len(st.s.Story.Enforce), "", "")
	s.figure("slowest_change_ms", "slowest change, until all agents agree", float64(slowest.Microseconds())/1000, "ms", "")
	calls, err := st.noneFailed(s, start)
	if err != nil {
		return err
	}
	failures := len(s.Problems)
	if err := st.agree(s, start); err != nil {
		return err
	}
	if calls == 0 {
		s.problem("there was no traffic")
	}
	s.Summary = fmt.Sprintf("%d segments enforced; %d of %s legitimate requests failed", len(st.s.Story.Enforce), failures, thousands(calls))
	return nil
}
