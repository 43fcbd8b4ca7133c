package controller_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect/v2"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/internal/controller"
	. "bulkhead/internal/controller/controllertest"
	"bulkhead/internal/store"
	"bulkhead/internal/tinydisk"
)

// TestFullDisk is about a controller whose disk fills up: what is accepted is never lost, what cannot be stored is
// refused in words that say what to do, agents are served, and all goes on when there is room.
func TestFullDisk(t *testing.T) {
	tinydisk.Run(t, 4<<20, func(t *testing.T, d *tinydisk.Disk) {
		c, web, _ := pair(t, func(cfg *controller.Config, _ *controller.Deps) { cfg.Data = filepath.Join(d.Dir, "data") })
		token := c.Token(&pb.CreateTokenRequest{Uses: 3})
		web.Flows(&pb.FlowBatch{Sequence: 1, Records: []*pb.FlowRecord{seen("web-1", egress, "10.0.0.1", "10.0.0.2", 5432, allow, "shop/web-to-db", 1)}})
		Eventually(t, "the batch is acknowledged", func() bool { return len(web.Acked()) == 1 })
		d.Fill()

		// The log of the database has room for some changes; then nothing more is accepted.
		accepted, refused := 0, error(nil)
		for i := range 1000 {
			_, err := c.API.Apply(t.Context(), &pb.ApplyRequest{Files: files(padded(7000 + i))})
			if err != nil {
				refused = err
				break
			}
			accepted++
		}
		wantError(t, refused, connect.CodeResourceExhausted, "disk is full", "make room")
		_, err := c.API.CreateToken(t.Context(), &pb.CreateTokenRequest{Note: strings.Repeat("n", 8<<10)})
		wantError(t, err, connect.CodeResourceExhausted, "disk is full")
		_ = c.NewAgent("new-1").Enroll(token) // a small change may still find room in the log
		if resp := quarantine(t, c, &pb.SetQuarantineRequest{Workload: "web-1", Level: isolate, Reason: strings.Repeat("r", 8<<10)}); !resp.Isolated ||
			!strings.Contains(resp.Detail, "could not be stored yet") {
			t.Errorf("a quarantine on a full disk: %v", resp)
		}
		web.Flows(&pb.FlowBatch{Sequence: 2, Records: many(2000)})
		Eventually(t, "a batch that cannot be stored is given up", func() bool { return len(web.Acked()) == 2 })
		status, err := c.API.GetStatus(t.Context(), &pb.GetStatusRequest{})
		if err != nil || status.FlowRecordsLost != 2000 || status.FlowRecords != 1 {
			t.Errorf("status %v, %v; want 2000 records lost", status, err)
		}
		web.Session().Close()
		web.Connect()
		Eventually(t, "agents are served", func() bool { return current(t, c, "web-1") })

		d.Free()
		if resp := c.Apply(padded(6999)); resp.Revision != uint64(accepted)+2 {
			t.Errorf("after there is room: revision %d, want the one after %d that were accepted", resp.Revision, accepted+1)
		}
		Eventually(t, "the quarantine is stored", func() bool {
			resp, err := c.API.ListAudit(t.Context(), &pb.ListAuditRequest{})
			if err != nil || !resp.Intact {
				t.Fatalf("audit log: %v, %v", resp, err)
			}
			return slices.ContainsFunc(resp.Entries, func(e *pb.AuditEntry) bool { return e.Action == "quarantine.set" })
		})
		c.Stop()
		c.Restart()
		list, err := c.API.ListRevisions(t.Context(), &pb.ListRevisionsRequest{})
		if err != nil || len(list.Revisions) != accepted+2 {
			t.Errorf("%d revisions after a restart, %v; want %d", len(list.GetRevisions()), err, accepted+2)
		}
		edges, err := listFlows(t, c, &pb.ListFlowsRequest{})
		if err != nil || len(edges) != 1 {
			t.Errorf("flows after a restart: %v, %v", edges, err)
		}
	})
}

// padded is a policy of some kilobytes, another one for each port.
func padded(port int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s---\napiVersion: bulkhead/v1\nkind: Policy\nmetadata: {name: padding}\nspec:\n  rules:\n", shop)
	for i := range 100 {
		fmt.Fprintf(&b, "    - {name: rule-%d, allow: {from: app=shop, to: app=shop, on: [tcp/%d]}}\n", i, port)
	}
	return b.String()
}

// many are flows that differ.
func many(n int) []*pb.FlowRecord {
	var list []*pb.FlowRecord
	for i := range n {
		list = append(list, seen("web-1", egress, "10.0.0.1", "192.0.2.9", uint32(1+i), deny, "default-deny", 1))
	}
	return list
}

// TestStartOnAFullDisk is about a controller that begins where there is no room: it says so and leaves nothing half done.
func TestStartOnAFullDisk(t *testing.T) {
	tinydisk.Run(t, 2<<20, func(t *testing.T, d *tinydisk.Disk) {
		cfg := controller.DefaultConfig()
		cfg.Data = filepath.Join(d.Dir, "data")
		if err := os.Mkdir(cfg.Data, 0o700); err != nil {
			t.Fatal(err)
		}
		d.Fill()
		err := controller.New(cfg, controller.Deps{}).Run(t.Context())
		if err == nil || !errors.Is(err, store.ErrFull) {
			t.Errorf("the first start: %v, want ErrFull", err)
		}
		d.Free()
		c := Start(t, func(x *controller.Config, _ *controller.Deps) { x.Data = cfg.Data })
		c.Apply(shop)
		fingerprint := c.Fingerprint()
		c.Stop()
		d.Fill()
		err = controller.New(cfg, controller.Deps{}).Run(t.Context())
		if err == nil || !errors.Is(err, store.ErrFull) {
			t.Errorf("a later start: %v, want ErrFull", err)
		}
		d.Free()
		c.Restart()
		if resp := c.Apply(shop); resp.Changed || c.Fingerprint() != fingerprint {
			t.Errorf("after there is room: %v", resp)
		}
	})
}
