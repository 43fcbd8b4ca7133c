package cli

import (
	"net/netip"

	"github.com/spf13/cobra"

	"bulkhead/internal/core/model"
	"bulkhead/internal/core/verdict"
)

func (a *app) explainCommand() *cobra.Command {
	var f sceneFlags
	cmd := &cobra.Command{
		Use:   "explain FROM TO PROTO/PORT",
		Short: "Why a flow is allowed or denied, rule by rule, at both ends",
		Long: `Say what becomes of a flow and why: at each end every rule that was asked, in order, and
which one decided. FROM and TO are workloads by name, or addresses.

bulkhead explain essentials lists what no policy and no quarantine ever blocks.`,
		Example: `  bulkhead explain -f policy/ portal-1 pay-db-1 tcp/5432
  bulkhead explain portal-1 203.0.113.9 tcp/443
  bulkhead explain nurse-1 mri-1 icmp/8/0
  bulkhead explain essentials -f policy/`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && args[0] == "essentials" {
				return nil
			}
			return takes("FROM", "TO", "PROTO/PORT")(cmd, args)
		},
		ValidArgs: []string{"essentials"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				return a.explainEssentials(cmd, &f)
			}
			s, err := a.scene(cmd, &f, "nothing was explained")
			if err != nil {
				return err
			}
			w, err := s.world(cmd, "nothing was explained")
			if err != nil {
				return err
			}
			flow, err := s.flow(args[0], args[1], args[2])
			if err != nil {
				return err
			}
			x, err := verdict.New(w).Explain(flow)
			if err != nil {
				return usagef("%w", err)
			}
			return a.print(cmd, x, func(p *page) { p.text(x.Text()) })
		},
	}
	f.register(cmd)
	return cmd
}

// flow reads a flow as people write it.
func (s *scene) flow(from, to, on string) (*model.Flow, error) {
	f := &model.Flow{}
	var err error
	if f.From, err = s.end(from); err != nil {
		return nil, err
	}
	if f.To, err = s.end(to); err != nil {
		return nil, err
	}
	f.Proto, f.Port, err = singlePort(on)
	return f, err
}

// end reads the name of a workload, or an address.
func (s *scene) end(text string) (model.End, error) {
	if findInstance(s.inv, text) != nil {
		return model.End{Workload: text}, nil
	}
	if a, err := netip.ParseAddr(text); err == nil {
		return model.End{Addr: a.Unmap().WithZone("")}, nil
	}
	return model.End{}, usagef("there is no workload %q in %s%s", text, s.origin, didYouMean(similar(text, instanceNames(s.inv))))
}

// singlePort reads tcp/5432 or icmp/8/0; icmp/8 stands for code 0.
func singlePort(text string) (model.Proto, uint16, error) {
	r, err := model.ParsePortRange(text)
	if err != nil {
		return 0, 0, usagef("%w", err)
	}
	if r.Proto.IsICMP() && r.Hi == r.Lo|0xff && r.Lo&0xff == 0 {
		r.Hi = r.Lo
	}
	if !r.Single() {
		return 0, 0, usagef("port %q: a flow has one port: use tcp/5432, udp/53 or icmp/8/0", text)
	}
	return r.Proto, r.Lo, nil
}
