package model

import "testing"

func TestIdentityIsItsContent(t *testing.T) {
	base := Identity{Owned: true, Labels: Labels{"app": "pay", "env": "prod"}, Networks: []string{"10.0.0.0/8", "corp"}}
	same := Identity{Owned: true, Labels: Labels{"env": "prod", "app": "pay"}, Networks: []string{"10.0.0.0/8", "corp"}}
	if base.ID() != same.ID() || base.ID() == 0 {
		t.Errorf("equal identities have numbers %s and %s", base.ID(), same.ID())
	}
	for name, other := range map[string]Identity{
		"not owned":     {Owned: false, Labels: base.Labels, Networks: base.Networks},
		"other labels":  {Owned: true, Labels: Labels{"app": "pay"}, Networks: base.Networks},
		"less networks": {Owned: true, Labels: base.Labels, Networks: []string{"corp"}},
		"none":          {},
	} {
		if other.ID() == base.ID() {
			t.Errorf("%s: the same number as another identity", name)
		}
	}
	if got, err := ParseIdentityID(base.ID().String()); err != nil || got != base.ID() {
		t.Errorf("%s parses to %s, %v", base.ID(), got, err)
	}
}

func TestSharedID(t *testing.T) {
	if SharedID([]IdentityID{3, 1, 2}) != SharedID([]IdentityID{1, 2, 2, 3}) {
		t.Error("order or repetition changes a shared identity")
	}
	if SharedID([]IdentityID{7, 7}) != 7 {
		t.Error("workloads of one identity have another identity together")
	}
}

func TestJoinTakesTheStrictest(t *testing.T) {
	for _, c := range []struct{ egress, ingress, want Verdict }{
		{Allow, Allow, Allow}, {Allow, Deny, Deny}, {Deny, Allow, Deny},
		{WouldDeny, Allow, WouldDeny}, {WouldDeny, Deny, Deny}, {Allow, WouldDeny, WouldDeny},
	} {
		if got := Join(EndVerdict{Verdict: c.egress}, EndVerdict{Verdict: c.ingress}).Verdict; got != c.want {
			t.Errorf("%s at the source, %s at the destination: %s, want %s", c.egress, c.ingress, got, c.want)
		}
	}
	var zero EndVerdict
	if zero.Verdict != Deny {
		t.Error("the zero value does not deny")
	}
}
