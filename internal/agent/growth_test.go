package agent

import (
	"testing"
	"time"
)

func TestGrowth(t *testing.T) {
	var g growth
	at := time.Unix(1000, 0)
	for i, step := range []struct {
		total uint64
		after time.Duration
		want  bool
	}{
		{5, 0, false}, // by an agent before
		{5, time.Second, false}, {6, 2 * time.Second, true}, {6, 3 * time.Second, true}, {6, 2*time.Second + growthShown, false},
		{7, growthShown * 2, true}, {7, growthShown * 3, false},
	} {
		if got := g.growing(step.total, at.Add(step.after)); got != step.want {
			t.Errorf("step %d: %t", i, got)
		}
	}
}
