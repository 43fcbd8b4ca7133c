package cli

import (
	"time"

	"github.com/spf13/cobra"

	pb "bulkhead/api/bulkhead/v1"
)

// statusView is what `status -o json` prints.
type statusView struct {
	Controller string      `json:"controller"`
	Version    string      `json:"version"`
	Started    *time.Time  `json:"started,omitempty"`
	Revision   uint64      `json:"revision"`
	Workloads  uint32      `json:"workloads"`
	Agents     agentCounts `json:"agents"`
	Flows      flowCounts  `json:"flow_records"`
}

type agentCounts struct {
	Known     uint32 `json:"known"`
	Connected uint32 `json:"connected"`
	Current   uint32 `json:"current"` // connected and acknowledged the newest policy
}

type flowCounts struct {
	Taken uint64 `json:"taken"` // since the controller started
	Lost  uint64 `json:"lost"`
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "How the controller and its agents are",
		Example: `  bulkhead status
  bulkhead status -o json`,
		Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			r, err := ask(cmd.Context(), c, c.GetStatus, &pb.GetStatusRequest{})
			if err != nil {
				return err
			}
			return a.printStatus(cmd, c.where, r)
		},
	}
}

func (a *app) printStatus(cmd *cobra.Command, where string, r *pb.GetStatusResponse) error {
	v := statusView{
		Controller: where, Version: r.Version, Started: stamp(r.StartedMs), Revision: r.Revision, Workloads: r.Workloads,
		Agents: agentCounts{r.AgentsKnown, r.AgentsConnected, r.AgentsCurrent},
		Flows:  flowCounts{r.FlowRecords, r.FlowRecordsLost},
	}
	return a.print(cmd, v, func(p *page) {
		p.line("Controller  %s, version %s, started %s", v.Controller, v.Version, ago(v.Started))
		p.line("Revision    %d", v.Revision)
		p.line("Workloads   %s", thousands(uint64(v.Workloads)))
		p.line("Agents      %d known, %d connected, %d with the newest policy", v.Agents.Known, v.Agents.Connected, v.Agents.Current)
		p.line("Flows       %s records taken, %s lost", thousands(v.Flows.Taken), thousands(v.Flows.Lost))
	})
}
