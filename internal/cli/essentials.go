package cli

import (
	"github.com/spf13/cobra"

	"bulkhead/internal/core/inventory"
	"bulkhead/internal/core/model"
	"bulkhead/internal/core/verdict"
)

// explainEssentials lists what is never blocked. Without -f and without a controller named, it lists what does not
// depend on documents.
func (a *app) explainEssentials(cmd *cobra.Command, f *sceneFlags) error {
	s := &scene{docs: &model.Documents{}, inv: &model.Inventory{}}
	var err error
	switch {
	case len(f.files) > 0 || a.controller != "":
		s, err = a.scene(cmd, f, "nothing was explained")
	case f.workloads == "" && len(f.quarantine) == 0:
		s.inv, err = inventory.Build(s.docs, nil, nil)
	default:
		err = usagef("--workloads and --quarantine go with -f")
	}
	if err != nil {
		return err
	}
	w, err := s.world(cmd, "nothing was explained")
	if err != nil {
		return err
	}
	list := verdict.New(w).ExplainEssentials()
	return a.print(cmd, list, func(p *page) {
		t := newTable("RULE", "ON", "BETWEEN", "WHY")
		for _, e := range list {
			t.add(e.Rule, joinText(e.On), e.Where, e.Why)
		}
		p.table(t, "")
		if len(s.docs.Networks) == 0 {
			p.line("")
			p.line("Networks with purpose: resolvers, time or forensic add name servers, time servers and investigators.")
		}
	})
}
