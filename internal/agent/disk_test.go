package agent_test

import (
	"os"
	"path/filepath"
	"testing"

	"bulkhead/internal/agent/agenttest"
	"bulkhead/internal/agent/status"
	"bulkhead/internal/tinydisk"
)

// onDisk moves the data of an agent to a disk.
func (n *node) onDisk(d *tinydisk.Disk) {
	n.t.Helper()
	n.cfg.Data, n.cfg.SpoolBytes = filepath.Join(d.Dir, "data"), 128<<10
	if err := os.MkdirAll(n.cfg.Data, 0o700); err != nil {
		n.t.Fatal(err)
	}
}

// TestFullDisk is about an agent whose disk is full from before it has enrolled until after it has policy: it does its
// work, says what a restart would miss, and keeps it as soon as there is room.
func TestFullDisk(t *testing.T) {
	tinydisk.Run(t, 1<<20, func(t *testing.T, d *tinydisk.Disk) {
		c := agenttest.New(t).Start()
		n := newNode(t, c)
		n.onDisk(d)
		if err := os.WriteFile(filepath.Join(n.cfg.Data, "lock"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		d.Fill()
		n.start()
		connected(c, 1)
		c.SetPolicy(agenttest.Policy(1))
		acked(c)
		n.dp.Emit(flow(1))
		n.status("what a restart would miss", func(r *status.Report) bool {
			return hasProblem("the identity is in use and could not be kept on disk")(r) &&
				hasProblem("revision 1 is in force but could not be kept on disk")(r) &&
				hasProblem("flow records are lost")(r) && r.RecordsLost == 1
		})
		d.Free()
		n.dp.Emit(flow(2))
		n.status("no problem", func(r *status.Report) bool { return r.Connected && len(r.Problems) == 0 })
		c.WaitFor("the flow, and the count of the one that was lost", func() bool {
			records, _, lost := c.Records()
			return len(records) == 1 && lost == 1
		})

		// A restart on a full disk, without a controller, finds everything.
		n.stop()
		c.Stop()
		d.Fill()
		n.dp = agenttest.NewDataplane()
		n.start()
		r := n.status("policy and identity", func(r *status.Report) bool { return r.Revision == 1 && !r.Certificate.IsZero() })
		if n.dp.Hash() != c.Policy().Hash() {
			t.Errorf("after a restart: %+v", r)
		}
		c.Start()
		connected(c, 2)
	})
}

// TestDiskThatFailed is about a disk that the kernel lets be read only, as it does with one that fails: the policy on it
// is in force after a reboot all the same.
func TestDiskThatFailed(t *testing.T) {
	tinydisk.Run(t, 1<<20, func(t *testing.T, d *tinydisk.Disk) {
		c := agenttest.New(t).Start()
		n := newNode(t, c)
		n.onDisk(d)
		n.start()
		connected(c, 1)
		c.SetPolicy(agenttest.Policy(1))
		acked(c)
		n.dp.Emit(flow(1))
		c.WaitFor("the flow", func() bool { return ports(c) == 1 })
		n.stop()
		d.ReadOnly(true)
		n.dp = agenttest.NewDataplane()
		n.start()
		connected(c, 2)
		n.status("the policy", func(r *status.Report) bool { return r.Revision == 1 && n.dp.Hash() == c.Policy().Hash() })
		c.SetPolicy(agenttest.Policy(2))
		acked(c)
		n.dp.Emit(flow(2))
		n.status("what a restart would miss", func(r *status.Report) bool {
			return r.Revision == 2 && hasProblem("revision 2 is in force but could not be kept on disk")(r) && r.RecordsLost == 1
		})
		n.stop()
		d.ReadOnly(false)
	})
}
