package apply

import (
	"context"
	"time"
)

// Glass is that somebody has opened the host against its policy.
type Glass struct {
	Until  time.Time // zero: nobody has
	Reason string
}

// BreakGlass lets everything on the host pass until then; a time that is past ends it.
func (a *Applier) BreakGlass(ctx context.Context, g Glass) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.dp.BreakGlass(ctx, g.Until); err != nil {
		return err
	}
	a.glass.Store(&g)
	return nil
}

// Glass returns whether it is broken, as the kernel says.
func (a *Applier) Glass() Glass {
	until := a.dp.Glass()
	if until.IsZero() {
		return Glass{}
	}
	g := a.glass.Load()
	if g == nil || g.Until.Sub(until).Abs() > time.Second {
		return Glass{Until: until.Round(time.Second), Reason: "the reason is not known to this agent"}
	}
	return *g
}
