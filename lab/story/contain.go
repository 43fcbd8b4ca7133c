package story

import (
	"context"
	"fmt"
	"time"

	pb "bulkhead/api/bulkhead/v1"
	"bulkhead/lab/fabric"
	"bulkhead/lab/scenario"
	"bulkhead/lab/traffic"
)

const (
	streamEvery = time.Millisecond       // the live connection transmits so often
	streamTime  = 400 * time.Millisecond // before the quarantine
	cutTime     = 1200 * time.Millisecond
	// cutLimit is how late the last byte may arrive. The goal for one host is 250 ms with 10,000 agents connected.
	cutLimit = 250 * time.Millisecond
)

func (st *story) contain(ctx context.Context, s *Step) error {
	c := st.s.Story.Contain
	name := st.s.Workload(scenario.ParseID(c.From))
	st.tell(s, fmt.Sprintf("%s talks to %s all the time. It is quarantined: its live connection must break at once, and "+
		"nothing may reach it or leave it until that is lifted.", name, st.s.Workload(scenario.ParseID(c.To))),
		"bulkhead quarantine "+name+" --level isolate --reason drill", "bulkhead quarantine lift "+name)
	start := time.Now().UnixNano()
	if _, err := st.rig.Order(ctx, c.From, &traffic.Order{Verb: traffic.Pace, To: c.To, Port: c.Port, Every: streamEvery}); err != nil {
		return err
	}
	st.doing("the connection transmits")
	if err := rest(ctx, streamTime); err != nil {
		return err
	}
	stream, err := st.liveStream(start)
	if err != nil {
		return err
	}
	st.endEra()
	st.doing("quarantined")
	called := time.Now()
	resp, err := st.rig.API.SetQuarantine(ctx, &pb.SetQuarantineRequest{Workload: name, Level: pb.QuarantineLevel_QUARANTINE_LEVEL_ISOLATE, Reason: "drill", TtlSeconds: 300})
	if err != nil {
		return fmt.Errorf("quarantine %s: %w", name, err)
	}
	answered := time.Since(called)
	if !resp.Isolated {
		s.problem("the agent did not confirm: %s", resp.Detail)
	}
	if err := st.rig.Agree(ctx, agreeTime); err != nil {
		return err
	}
	if err := st.beginEra(ctx, "quarantined"); err != nil {
		return err
	}
	if err := rest(ctx, cutTime); err != nil {
		return err
	}
	last, transmissions, err := st.lastByte(stream, start)
	if err != nil {
		return err
	}
	cut := time.Duration(last - called.UnixNano())
	st.endEra()
	back, err := st.lift(ctx, name)
	if err != nil {
		return err
	}
	s.figure("transmissions", "requests over the live connection", transmissions, "", fmt.Sprintf("one per %s", streamEvery))
	s.figure("last_byte_ms", "call → last byte that arrived", ms(max(cut, 0)), "ms", "")
	s.figure("confirmed_ms", "call → the agent's confirmation", ms(answered), "ms", "")
	s.figure("back_ms", "lift → the connection works again", ms(back), "ms", "")
	if cut > cutLimit {
		s.problem("a byte arrived %s after the call", cut.Round(time.Millisecond))
	}
	if transmissions < int(streamTime/streamEvery)/10 {
		s.problem("the live connection made only %d requests: the figure means little", transmissions)
	}
	if err := st.agree(s, start); err != nil {
		return err
	}
	s.Summary = fmt.Sprintf("the live connection of %s was silent %.1f ms after the call", name, ms(max(cut, 0)))
	return nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// liveStream returns a request of the connection that transmits now.
func (st *story) liveStream(since int64) (*traffic.Entry, error) {
	if err := st.rig.Book.Update(); err != nil {
		return nil, err
	}
	c := st.s.Story.Contain
	found := st.rig.Book.Entries(func(e *traffic.Entry) bool {
		return e.Role == traffic.RoleCall && e.From == c.From && e.To == c.To && portOf(e) == c.Port && e.Start >= since && e.Outcome == traffic.OK
	})
	if len(found) == 0 {
		return nil, fmt.Errorf("%s has made no request to %s for %s", c.From, c.To, streamTime)
	}
	return &found[len(found)-1], nil
}

// lastByte returns when the last byte of the connection arrived at either end, and how many requests it carried.
func (st *story) lastByte(stream *traffic.Entry, since int64) (last int64, requests int, err error) {
	if err := st.rig.Book.Update(); err != nil {
		return 0, 0, err
	}
	st.rig.Book.Entries(func(e *traffic.Entry) bool {
		if e.Src != stream.Src || e.Dst != stream.Dst {
			return false
		}
		switch e.Role {
		case traffic.RoleServed: // arrived at the server
			last = max(last, e.Start)
		case traffic.RoleClosed: // of either end
			last = max(last, e.Last)
		case traffic.RoleCall:
			if e.Outcome == traffic.OK && e.Start >= since {
				requests++
				last = max(last, e.End)
			}
		}
		return false
	})
	return last, requests, nil
}

// lift ends the quarantine and returns how long it took until the connection was answered again.
func (st *story) lift(ctx context.Context, name string) (time.Duration, error) {
	c := st.s.Story.Contain
	if _, err := st.rig.Order(ctx, c.From, &traffic.Order{Verb: traffic.Pace, To: c.To, Port: c.Port}); err != nil {
		return 0, err
	}
	lifted := time.Now()
	if _, err := st.rig.API.LiftQuarantine(ctx, &pb.LiftQuarantineRequest{Workload: name, Reason: "drill is over"}); err != nil {
		return 0, fmt.Errorf("lift the quarantine of %s: %w", name, err)
	}
	err := fabric.WaitUntil(ctx, "an answer after the quarantine", agreeTime, 10*time.Millisecond, func() error {
		_, err := st.liveStream(lifted.UnixNano())
		return err
	})
	if err != nil {
		return 0, err
	}
	back := time.Since(lifted)
	if err := st.rig.Settle(ctx); err != nil {
		return 0, err
	}
	if err := st.rig.Agree(ctx, agreeTime); err != nil {
		return 0, err
	}
	return back, st.beginEra(ctx, "quarantine lifted")
}
