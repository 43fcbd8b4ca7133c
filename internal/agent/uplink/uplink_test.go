package uplink

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
)

// The rest of the link is tested with a controller, by the tests of the agent.

func TestBackoff(t *testing.T) {
	b := backoff{min: 100 * time.Millisecond, max: time.Second}
	spread := map[time.Duration]bool{}
	for i := range 200 {
		d := b.next()
		bound := min(100*time.Millisecond<<min(i, 10), time.Second)
		if d <= 0 || d > bound+time.Millisecond {
			t.Fatalf("wait %d is %v, want up to %v", i, d, bound)
		}
		spread[d] = true
	}
	if len(spread) < 100 {
		t.Errorf("only %d different waits of 200: agents would come back together", len(spread))
	}
	b.reset()
	if d := b.next(); d > 101*time.Millisecond {
		t.Errorf("after a reset the wait is %v", d)
	}
}

func TestExplain(t *testing.T) {
	remote := func(code connect.Code) error { return connect.NewError(code, "the word").WithRemote() }
	cases := []struct {
		err     error
		refused bool
		want    string
	}{
		{remote(connect.CodePermissionDenied), true, "refuses this agent: the word"},
		{fmt.Errorf("stream: %w", remote(connect.CodeUnauthenticated)), true, "refuses this agent: the word"},
		{remote(connect.CodeUnavailable), false, "not connected"},
		{connect.NewError(connect.CodePermissionDenied, "from here"), false, "not connected"},
		{errors.New("remote error: tls: expired certificate"), true, "do not trust each other"},
		{errors.New("connection refused"), false, "not connected"},
	}
	for _, c := range cases {
		refused, text := (&Link{}).explain(c.err)
		if (refused != "") != c.refused || !strings.Contains(text, c.want) || !strings.Contains(text, "policy stays in force") {
			t.Errorf("explain(%v) = %q, %q", c.err, refused, text)
		}
	}
}
