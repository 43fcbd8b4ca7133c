package dataplanetest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"bulkhead/internal/core/hostpolicy"
	"bulkhead/internal/core/model"
	"bulkhead/internal/dataplane"
)

// RunPort tests what every implementation of the port promises, whether or not it sees packets. Fresh opens one at a
// fresh place, for each test; reopen takes over what a closed one has left there.
func RunPort(t *testing.T, fresh func(t testing.TB) (d dataplane.Dataplane, reopen func() dataplane.Dataplane)) {
	ctx := context.Background()
	open := func(t *testing.T) dataplane.Dataplane {
		t.Parallel()
		d, _ := fresh(t)
		return d
	}
	good := func() *dataplane.State {
		return &dataplane.State{Policy: policy{host: everything(model.Allow)}.build()}
	}

	t.Run("apply is idempotent", func(t *testing.T) {
		d := open(t)
		first, err := d.Apply(ctx, good())
		if err != nil || !first.Changed || first.Rows == 0 || first.RowsWritten != first.Rows {
			t.Fatalf("first: %+v, %v", first, err)
		}
		again, err := d.Apply(ctx, good())
		if err != nil || again.Changed || again.Rows != first.Rows || again.RowsWritten != 0 || again.Reset != 0 {
			t.Fatalf("again: %+v, %v", again, err)
		}
		if again.Addresses != first.Addresses || again.Addresses < len(good().Policy.Addresses) {
			t.Errorf("addresses: %d, then %d", first.Addresses, again.Addresses)
		}
	})
	t.Run("a policy that is not well-formed is refused", func(t *testing.T) {
		d := open(t)
		if _, err := d.Apply(ctx, good()); err != nil {
			t.Fatal(err)
		}
		bad := good()
		bad.Policy.Sets[0].Ingress.Funcs[0][0].Verdict ^= 1
		for name, s := range map[string]*dataplane.State{"no policy": {}, "content and hash differ": bad} {
			if st, err := d.Apply(ctx, s); !errors.Is(err, dataplane.ErrRefused) || st.Changed {
				t.Errorf("%s: %+v, %v", name, st, err)
			}
		}
		if st, err := d.Apply(ctx, good()); err != nil || st.Changed {
			t.Errorf("the old policy is not in force any more: %+v, %v", st, err)
		}
	})
	t.Run("what it cannot enforce is refused", func(t *testing.T) {
		d := open(t)
		if _, err := d.Apply(ctx, good()); err != nil {
			t.Fatal(err)
		}
		caps := d.Capabilities()
		processes, domains := good(), good()
		set := &processes.Policy.Sets[0]
		cell := &set.Egress.Funcs[0][0]
		cell.When = []hostpolicy.Alternative{{Process: model.Process{User: "root"}, Verdict: model.Deny, Rule: "p/for-root"}}
		old := set.ID
		set.ID = set.ContentID()
		for i := range processes.Policy.Subjects {
			if s := &processes.Policy.Subjects[i]; s.Set == old {
				s.Set = set.ID
			}
			if s := &processes.Policy.Subjects[i]; s.Isolation == old {
				s.Isolation = set.ID
			}
		}
		slices.SortFunc(processes.Policy.Sets, func(a, b hostpolicy.PolicySet) int { return hostpolicy.CompareSets(&a, &b) })
		domains.Policy.Domains = []hostpolicy.Domain{{Pattern: "*.example.org", Identity: 7}}
		for _, c := range []struct {
			able bool
			s    *dataplane.State
			says string
		}{{caps.Processes, processes, "p/for-root"}, {caps.Domains, domains, "*.example.org"}} {
			if err := c.s.Policy.Check(); err != nil {
				t.Fatal(err)
			}
			st, err := d.Apply(ctx, c.s)
			if c.able {
				if err != nil {
					t.Error(err)
				}
				continue
			}
			if !errors.Is(err, dataplane.ErrRefused) || !strings.Contains(err.Error(), c.says) || st.Changed {
				t.Errorf("%+v, %v; want a refusal that names %s", st, err, c.says)
			}
		}
	})
	t.Run("an unknown workload cannot be isolated", func(t *testing.T) {
		d := open(t)
		if err := d.Isolate(ctx, "near", true); err == nil {
			t.Error("isolated before there is a policy")
		}
		if _, err := d.Apply(ctx, good()); err != nil {
			t.Fatal(err)
		}
		if err := d.Isolate(ctx, "nowhere", true); err == nil {
			t.Error("isolated what is not there")
		}
		for range 2 {
			if err := d.Isolate(ctx, "near/one", true); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("a closed dataplane does nothing", func(t *testing.T) {
		t.Parallel()
		d, reopen := fresh(t)
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Apply(ctx, good()); err == nil || errors.Is(err, dataplane.ErrRefused) {
			t.Errorf("apply: %v", err)
		}
		if err := d.Isolate(ctx, "near", true); err == nil {
			t.Error("isolate succeeds")
		}
		if err := d.Events(ctx, func(*dataplane.Event) {}); err == nil {
			t.Error("events succeeds")
		}
		if err := d.Close(); err != nil {
			t.Errorf("closed twice: %v", err)
		}
		if err := reopen().Remove(); err != nil {
			t.Error(err)
		}
	})
	t.Run("events end with their context", func(t *testing.T) {
		d := open(t)
		ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		if err := d.Events(ctx, func(*dataplane.Event) {}); err != nil {
			t.Error(err)
		}
		if err := d.Events(ctx, func(*dataplane.Event) {}); err != nil {
			t.Errorf("when it has ended already: %v", err)
		}
	})
	t.Run("isolation and policy outlive an agent", func(t *testing.T) {
		t.Parallel()
		d, reopen := fresh(t)
		if _, err := d.Apply(ctx, good()); err != nil {
			t.Fatal(err)
		}
		if err := d.Isolate(ctx, "near/one", true); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		d = reopen()
		if err := d.Isolate(ctx, "near/one", false); err != nil {
			t.Errorf("lifted by the next agent, before it has applied anything: %v", err)
		}
		if st, err := d.Apply(ctx, good()); err != nil || st.Changed {
			t.Errorf("the policy is not there any more: %+v, %v", st, err)
		}
	})
	t.Run("a context that has ended changes nothing", func(t *testing.T) {
		d := open(t)
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if st, err := d.Apply(ended, good()); !errors.Is(err, context.Canceled) || st.Changed {
			t.Errorf("%+v, %v", st, err)
		}
		if st, err := d.Apply(ctx, good()); err != nil || !st.Changed {
			t.Errorf("then: %+v, %v", st, err)
		}
	})
}
