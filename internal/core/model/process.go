package model

// Process constrains, or describes, the process at one end. Empty fields do not constrain; set ones are and-ed.
type Process struct {
	Unit string `json:"unit,omitempty"` // cgroup unit it runs in
	Path string `json:"path,omitempty"` // executable that runs, absolute
	User string `json:"user,omitempty"` // name or number
}

// Admits reports whether the process meets the constraint p. One that is not known (nil) meets no constraint that says
// anything.
func (p *Process) Admits(actual *Process) bool {
	if actual == nil {
		return *p == Process{}
	}
	return (p.Unit == "" || p.Unit == actual.Unit) && (p.Path == "" || p.Path == actual.Path) && (p.User == "" || p.User == actual.User)
}

// And returns the constraint that a process meets if it meets both; ok is false if none can.
func (p Process) And(q Process) (both Process, ok bool) {
	ok = true
	join := func(a, b string) string {
		if a == "" {
			return b
		}
		ok = ok && (b == "" || a == b)
		return a
	}
	both = Process{Unit: join(p.Unit, q.Unit), Path: join(p.Path, q.Path), User: join(p.User, q.User)}
	return both, ok
}

// String returns the constraint as people read it: "unit=payapi.service,user=pay"; "any process" if it says nothing.
func (p Process) String() string {
	out := ""
	for _, f := range [...]struct{ name, value string }{{"unit", p.Unit}, {"path", p.Path}, {"user", p.User}} {
		if f.value == "" {
			continue
		}
		if out != "" {
			out += ","
		}
		out += f.name + "=" + f.value
	}
	if out == "" {
		return "any process"
	}
	return out
}
