// Package storetest holds what every store.Store must do, as one suite that each implementation runs.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"bulkhead/internal/core/model"
	"bulkhead/internal/store"
)

// Run runs the suite. Each test gets a store of its own from open, which closes it when the test ends.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, s store.Store)
	}{
		{"Revisions", revisions},
		{"RevisionConflict", revisionConflict},
		{"FailedUpdateChangesNothing", failedUpdate},
		{"Agents", agents},
		{"Tokens", tokens},
		{"Leases", leases},
		{"Credentials", credentials},
		{"AuditChain", auditChain},
		{"ViewIsOneState", viewIsOneState},
		{"ConcurrentUpdates", concurrentUpdates},
		{"ResultsBelongToTheCaller", resultsBelongToTheCaller},
		{"EndedContext", endedContext},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

var epoch = time.Date(2026, 11, 23, 9, 0, 0, 123456789, time.UTC)

func millis(t time.Time) time.Time { return t.Truncate(time.Millisecond) }

func update(t *testing.T, s store.Store, fn func(store.Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), fn); err != nil {
		t.Fatalf("update: %v", err)
	}
}

func view(t *testing.T, s store.Store, fn func(store.Reader) error) {
	t.Helper()
	if err := s.View(t.Context(), fn); err != nil {
		t.Fatalf("view: %v", err)
	}
}

func diff(t *testing.T, what string, want, got any) {
	t.Helper()
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func revision(n int) store.Revision {
	return store.Revision{
		Hash: fmt.Sprintf("hash-%d", n), Author: "ana", Note: "why & how – „so“", Time: epoch, Count: n,
		Documents: fmt.Sprintf("kind: Service # %d\n", n),
	}
}

func revisions(t *testing.T, s store.Store) {
	view(t, s, func(r store.Reader) error {
		if _, err := r.Revision(0); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("newest revision of an empty store: %v, want ErrNotFound", err)
		}
		return nil
	})
	for n := 1; n <= 3; n++ {
		update(t, s, func(tx store.Tx) error {
			got, err := tx.AppendRevision(uint64(n-1), revision(n))
			if err == nil && got != uint64(n) {
				t.Errorf("revision got number %d, want %d", got, n)
			}
			return err
		})
	}
	view(t, s, func(r store.Reader) error {
		for _, ask := range []uint64{0, 3, 1} {
			got, err := r.Revision(ask)
			if err != nil {
				return err
			}
			want := revision(int(ask))
			if ask == 0 {
				want = revision(3)
			}
			want.Number, want.Time = uint64(want.Count), millis(epoch)
			diff(t, fmt.Sprintf("revision %d", ask), &want, got)
		}
		if _, err := r.Revision(4); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("revision 4: %v, want ErrNotFound", err)
		}
		for limit, want := range map[int][]uint64{0: {3, 2, 1}, 2: {3, 2}, 9: {3, 2, 1}} {
			list, err := r.Revisions(limit)
			if err != nil {
				return err
			}
			var got []uint64
			for _, x := range list {
				got = append(got, x.Number)
				if x.Documents != "" {
					t.Errorf("the list carries documents of revision %d", x.Number)
				}
			}
			diff(t, fmt.Sprintf("numbers with limit %d", limit), want, got)
		}
		return nil
	})
}

func revisionConflict(t *testing.T, s store.Store) {
	update(t, s, func(tx store.Tx) error { _, err := tx.AppendRevision(0, revision(1)); return err })
	for _, base := range []uint64{0, 2, 7} {
		err := s.Update(t.Context(), func(tx store.Tx) error { _, err := tx.AppendRevision(base, revision(9)); return err })
		if !errors.Is(err, store.ErrConflict) {
			t.Errorf("append after %d: %v, want ErrConflict", base, err)
		}
	}
	view(t, s, func(r store.Reader) error {
		list, err := r.Revisions(0)
		if len(list) != 1 {
			t.Errorf("%d revisions after refused ones, want 1", len(list))
		}
		return err
	})
}

func failedUpdate(t *testing.T, s store.Store) {
	stop := errors.New("stop")
	err := s.Update(t.Context(), func(tx store.Tx) error {
		if _, err := tx.AppendRevision(0, revision(1)); err != nil {
			return err
		}
		if err := tx.PutAgent(store.Agent{Host: "h"}); err != nil {
			return err
		}
		if err := tx.PutLease(store.Lease{Workload: "w"}); err != nil {
			return err
		}
		if _, err := tx.AppendAudit(store.AuditEntry{Action: "x"}); err != nil {
			return err
		}
		if got, err := tx.Agent("h"); err != nil || got.Host != "h" {
			t.Errorf("a transaction does not see its own change: %v, %v", got, err)
		}
		return stop
	})
	if !errors.Is(err, stop) {
		t.Fatalf("update returned %v, want the error of fn", err)
	}
	view(t, s, func(r store.Reader) error {
		if _, err := r.Revision(0); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("revision: %v, want ErrNotFound", err)
		}
		if _, err := r.Agent("h"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("agent: %v, want ErrNotFound", err)
		}
		leases, err := r.Leases()
		if err != nil || len(leases) != 0 {
			t.Errorf("leases: %v, %v, want none", leases, err)
		}
		head, err := r.AuditHead()
		if err != nil || head != (store.AuditHead{}) {
			t.Errorf("audit head: %v, %v, want zero", head, err)
		}
		return nil
	})
}

func agents(t *testing.T, s store.Store) {
	full := store.Agent{
		Host: "node-1", Labels: model.Labels{"app": "pay", "env": "prod"}, Enrollment: 1<<62 + 5, EnrolledAt: epoch,
		RevokedAt: epoch.Add(time.Hour), Token: "t1", LastSeen: epoch.Add(time.Minute), Expires: epoch.Add(2 * time.Hour),
		Version: "v1", Kernel: "6.1", Dataplane: "ebpf", Limits: []string{"no \"x\"", "no y"}, Inventory: []byte{0, 1, 255},
	}
	update(t, s, func(tx store.Tx) error {
		if err := tx.PutAgent(store.Agent{Host: "node-2"}); err != nil {
			return err
		}
		return tx.PutAgent(full)
	})
	want := full
	want.EnrolledAt, want.RevokedAt = millis(full.EnrolledAt), millis(full.RevokedAt)
	want.LastSeen, want.Expires = millis(full.LastSeen), millis(full.Expires)
	view(t, s, func(r store.Reader) error {
		got, err := r.Agent("node-1")
		if err != nil {
			return err
		}
		diff(t, "agent", &want, got)
		if _, err := r.Agent("node-3"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("unknown agent: %v, want ErrNotFound", err)
		}
		list, err := r.Agents()
		diff(t, "agents", []store.Agent{want, {Host: "node-2"}}, list)
		return err
	})
	if (&store.Agent{}).Revoked() || (&store.Agent{}).Enrolled() || !full.Revoked() || !full.Enrolled() {
		t.Error("an agent is enrolled when it has an enrolment, and revoked when it has a time of that")
	}
	update(t, s, func(tx store.Tx) error {
		a, err := tx.Agent("node-1")
		if err != nil {
			return err
		}
		a.Enrollment, a.Labels = 0, nil
		return tx.PutAgent(*a)
	})
	view(t, s, func(r store.Reader) error {
		a, err := r.Agent("node-1")
		if err == nil && (!a.Revoked() || len(a.Labels) != 0 || a.Kernel != "6.1") {
			t.Errorf("agent after a change: %+v", a)
		}
		return err
	})
}

func tokens(t *testing.T, s store.Store) {
	first := store.Token{
		ID: "zz", SecretHash: []byte("hash"), Host: "node-1", Labels: model.Labels{"app": "pay"}, Uses: 3, UsesLeft: 2,
		Created: epoch, Expires: epoch.Add(time.Hour), RevokedAt: epoch.Add(time.Minute), CreatedBy: "ana", Note: "n",
	}
	second := store.Token{ID: "aa", SecretHash: []byte("other"), Uses: 1, UsesLeft: 1, Created: epoch.Add(time.Second)}
	update(t, s, func(tx store.Tx) error {
		if err := tx.PutToken(second); err != nil {
			return err
		}
		return tx.PutToken(first)
	})
	for _, k := range []*store.Token{&first, &second} {
		k.Created, k.Expires, k.RevokedAt = store.Millis(k.Created), store.Millis(k.Expires), store.Millis(k.RevokedAt)
	}
	first.UsesLeft = 1
	update(t, s, func(tx store.Tx) error { return tx.PutToken(first) })
	view(t, s, func(r store.Reader) error {
		got, err := r.Token("zz")
		if err != nil {
			return err
		}
		diff(t, "token", &first, got)
		if _, err := r.Token("zzz"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("unknown token: %v, want ErrNotFound", err)
		}
		list, err := r.Tokens()
		diff(t, "tokens, oldest first", []store.Token{first, second}, list)
		return err
	})
}

func leases(t *testing.T, s store.Store) {
	lease := store.Lease{
		Workload: "pay-1", Level: model.QuarantineRestrict, Reason: "odd", By: "ana", Since: epoch, Until: epoch.Add(time.Hour),
		InUse: []model.InUse{
			{Direction: model.Egress, Peer: "db", Ports: model.PortRange{Proto: model.ProtoTCP, Lo: 5432, Hi: 5432}},
			{Direction: model.Ingress, Peer: "web", Ports: model.PortRange{Proto: model.ProtoICMP, Lo: 0x800, Hi: 0x8ff}},
		},
	}
	update(t, s, func(tx store.Tx) error {
		if err := tx.PutLease(lease); err != nil {
			return err
		}
		return tx.PutLease(store.Lease{Workload: "a", Level: model.QuarantineWatch})
	})
	lease.Since, lease.Until = millis(lease.Since), millis(lease.Until)
	view(t, s, func(r store.Reader) error {
		list, err := r.Leases()
		diff(t, "leases", []store.Lease{{Workload: "a", Level: model.QuarantineWatch}, lease}, list)
		return err
	})
	update(t, s, func(tx store.Tx) error { return tx.DropLease("a") })
	if err := s.Update(t.Context(), func(tx store.Tx) error { return tx.DropLease("a") }); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("drop a lease twice: %v, want ErrNotFound", err)
	}
	view(t, s, func(r store.Reader) error {
		list, err := r.Leases()
		diff(t, "leases after a drop", []store.Lease{lease}, list)
		return err
	})
}

func credentials(t *testing.T, s store.Store) {
	c := store.Credential{Name: "admin", Hash: []byte{1, 2}, Created: millis(epoch)}
	view(t, s, func(r store.Reader) error {
		if _, err := r.Credential("admin"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("credential of an empty store: %v, want ErrNotFound", err)
		}
		return nil
	})
	update(t, s, func(tx store.Tx) error { return tx.PutCredential(c) })
	view(t, s, func(r store.Reader) error {
		got, err := r.Credential("admin")
		if err != nil {
			return err
		}
		diff(t, "credential", &c, got)
		list, err := r.Credentials()
		diff(t, "credentials", []store.Credential{c}, list)
		return err
	})
}

func auditChain(t *testing.T, s store.Store) {
	view(t, s, store.VerifyAudit) // an empty log is intact
	for i := range 5 {
		update(t, s, func(tx store.Tx) error {
			e, err := tx.AppendAudit(store.AuditEntry{
				Number: 77, Hash: "nonsense", Time: epoch.Add(time.Duration(i) * time.Second), Actor: "ana",
				Action: "policy.apply", Subject: fmt.Sprint(i), Detail: strings.Repeat("x", i), Denied: i%2 == 1,
			})
			if err == nil && (e.Number != uint64(i+1) || len(e.Hash) != 64) {
				t.Errorf("entry %d: number %d, hash %q", i, e.Number, e.Hash)
			}
			return err
		})
	}
	view(t, s, store.VerifyAudit)
	view(t, s, func(r store.Reader) error {
		var subjects string
		if err := r.Audit(func(e *store.AuditEntry) error {
			subjects += e.Subject
			if e.Denied != (e.Number%2 == 0) || e.Actor != "ana" || !e.Time.Equal(millis(e.Time)) {
				t.Errorf("entry %+v", e)
			}
			return nil
		}); err != nil {
			return err
		}
		diff(t, "order of the entries", "01234", subjects)
		stop := errors.New("stop")
		if err := r.Audit(func(*store.AuditEntry) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("Audit returned %v, want the error of fn", err)
		}
		return nil
	})
}

func viewIsOneState(t *testing.T, s store.Store) {
	view(t, s, func(r store.Reader) error {
		before, err := r.AuditHead() // the state is fixed from here
		if err != nil {
			return err
		}
		update(t, s, func(tx store.Tx) error { _, err := tx.AppendAudit(store.AuditEntry{Action: "a"}); return err })
		after, err := r.AuditHead()
		if err != nil || after != before {
			t.Errorf("head moved from %v to %v within a view (%v)", before, after, err)
		}
		return nil
	})
}

func concurrentUpdates(t *testing.T, s store.Store) {
	const writers, each = 4, 10
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				if err := s.Update(t.Context(), func(tx store.Tx) error {
					newest, err := tx.Revision(0)
					base := uint64(0)
					if err == nil {
						base = newest.Number
					} else if !errors.Is(err, store.ErrNotFound) {
						return err
					}
					if _, err := tx.AppendRevision(base, revision(int(base)+1)); err != nil {
						return err
					}
					_, err = tx.AppendAudit(store.AuditEntry{Action: "policy.apply"})
					return err
				}); err != nil {
					t.Errorf("update: %v", err)
				}
			}
		})
	}
	wg.Wait()
	view(t, s, func(r store.Reader) error {
		newest, err := r.Revision(0)
		if err == nil && newest.Number != writers*each {
			t.Errorf("newest revision is %d, want %d", newest.Number, writers*each)
		}
		return err
	})
	view(t, s, store.VerifyAudit)
}

func resultsBelongToTheCaller(t *testing.T, s store.Store) {
	labels := model.Labels{"app": "pay"}
	update(t, s, func(tx store.Tx) error { return tx.PutAgent(store.Agent{Host: "h", Labels: labels}) })
	labels["app"] = "changed by the one who gave it"
	for range 2 {
		view(t, s, func(r store.Reader) error {
			a, err := r.Agent("h")
			if err != nil {
				return err
			}
			diff(t, "labels", model.Labels{"app": "pay"}, a.Labels)
			a.Labels["app"] = "changed by the one who got it"
			return nil
		})
	}
}

func endedContext(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ran := false
	if err := s.Update(ctx, func(store.Tx) error { ran = true; return nil }); !errors.Is(err, context.Canceled) || ran {
		t.Errorf("update with an ended context: %v, ran %v", err, ran)
	}
	if err := s.View(ctx, func(store.Reader) error { ran = true; return nil }); !errors.Is(err, context.Canceled) || ran {
		t.Errorf("view with an ended context: %v, ran %v", err, ran)
	}
}
