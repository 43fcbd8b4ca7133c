package bypass

import "testing"

func TestVerdicts(t *testing.T) {
	arrives, cable, nothing := sight{App: "UDP", Wire: true}, sight{Wire: true}, sight{}
	plain, named := &technique{name: "x"}, &technique{name: "x", named: "do this"}
	refused := &technique{name: "x", refused: "it cannot"}
	for name, tt := range map[string]struct {
		technique *technique
		off, on   sight
		recorded  bool
		errno     string
		want      Verdict
		how       string
	}{
		"closed":                                {plain, arrives, nothing, true, "EPERM", Closed, "EPERM"},
		"closed in silence":                     {plain, arrives, nothing, true, "EINPROGRESS", Closed, "silence"},
		"closed, not on record":                 {plain, arrives, nothing, false, "EPERM", Untold, "no denial in flows"},
		"closed, cannot be on record":           {&technique{hidden: true}, arrives, nothing, false, "", Closed, "silence"},
		"open":                                  {plain, arrives, arrives, true, "", Open, "UDP"},
		"it does not get to the program only":   {plain, arrives, cable, true, "", Open, "it came as far as the target's cable"},
		"a tool that does not work":             {plain, nothing, nothing, true, "EPERM", Broken, "it did not arrive in mode observe: the attacker was told nothing"},
		"a tool that gets to the cable only":    {plain, cable, nothing, true, "EPERM", Broken, "it did not arrive in mode observe: the attacker was told nothing"},
		"the cable is enough":                   {&technique{cable: true, hidden: true}, cable, nothing, false, "", Closed, "silence"},
		"named":                                 {named, arrives, arrives, false, "", Named, "UDP"},
		"named, and closed all the same":        {named, arrives, nothing, true, "EPERM", Closed, "EPERM"},
		"the kernel refuses":                    {refused, nothing, nothing, false, "", Refused, "it cannot"},
		"the kernel does not refuse, we close":  {refused, arrives, nothing, true, "EPERM", Closed, "EPERM"},
		"the kernel does not refuse, nor do we": {refused, arrives, arrives, false, "", Open, "UDP"},
	} {
		r := &result{technique: tt.technique, family: v4, recorded: tt.recorded, seen: map[phase]sight{observe: tt.off, enforce: tt.on},
			answers: map[phase]*answer{observe: {}, enforce: {Errno: tt.errno}}}
		row := r.row()
		if row.Verdict != tt.want || row.How != tt.how {
			t.Errorf("%s: %s (%s), want %s (%s)", name, row.Verdict, row.How, tt.want, tt.how)
		}
		if good := report(map[string]*result{"x": r}, 0).Good; good == tt.want.bad() {
			t.Errorf("%s: the report is good: %v", name, good)
		}
	}
}

func TestRefusedUnexpectedly(t *testing.T) {
	r := &result{technique: &technique{name: "x"}, family: v4, seen: map[phase]sight{},
		answers: map[phase]*answer{observe: failed(errRefused), enforce: {}}}
	if row := r.row(); row.Verdict != Refused || row.How != errRefused.Error() {
		t.Errorf("%+v", row)
	}
}

func TestTechniques(t *testing.T) {
	seen := map[string]bool{}
	for _, t1 := range techniques() {
		if seen[t1.name] || t1.title == "" || len(t1.families) == 0 || t1.try == nil {
			t.Errorf("%+v", t1)
		}
		seen[t1.name] = true
		for _, f := range t1.families {
			if m := tokenPattern.FindString("x" + token(observe, &t1, f) + "y"); m != token(observe, &t1, f) {
				t.Errorf("the token of %s is not found: %q", t1.name, m)
			}
		}
	}
}
