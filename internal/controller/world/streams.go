package world

import "bulkhead/internal/core/hostpolicy"

// Watch has poke called whenever the agent of a host may lack something, in place of whoever watched the host before; it
// must not block or call the world. Stop ends that, if nobody has taken its place. For some time after, an agent that comes back
// can start from what it had.
func (w *World) Watch(host string, poke func()) (stop func()) {
	w.compiling.Lock()
	defer w.compiling.Unlock()
	d := w.agents.feeds[host]
	if d == nil {
		d = &feed{seen: w.agents.batch}
		w.agents.feeds[host] = d
	}
	mine := &watch{poke}
	d.watch = mine
	return func() {
		w.compiling.Lock()
		defer w.compiling.Unlock()
		if d.watch != mine {
			return
		}
		if d.watch = nil; !d.following {
			delete(w.agents.feeds, host)
		}
	}
}

// Wanted returns what the agent of the host should have, nil if there is no such host. Of a host that is watched it is made once,
// until something concerns the host.
func (w *World) Wanted(host string) *Outline {
	w.compiling.Lock()
	defer w.compiling.Unlock()
	return w.agents.outline(host)
}

// Draw returns what brings the agent of the host from what it has to what it should have; nil if there is no such host. It is
// the whole policy if has is nil, and if what came after it is not known any more.
func (w *World) Draw(host string, has *Outline) *Draft {
	w.compiling.Lock()
	defer w.compiling.Unlock()
	return w.agents.draft(host, has)
}

// HostPolicy is what the agent of a host should enforce.
type HostPolicy struct {
	*hostpolicy.Policy
	Sum hostpolicy.Hash
}

// HostPolicy returns what the agent of the host should enforce, or would, if documents declare the host and it has none; nil if
// there is no such host.
func (w *World) HostPolicy(host string) (*HostPolicy, error) {
	if p := w.hostPolicy(host); p != nil {
		return p, nil
	}
	s := w.Snapshot()
	if inst := s.Instance(host); inst == nil || inst.IsUnit() || inst.Host != "" {
		return nil, nil
	}
	judge, err := s.Compiled()
	if err != nil {
		return nil, err
	}
	p, ok := judge.HostPolicy(host)
	if !ok {
		return nil, nil
	}
	p.Revision = s.Revision()
	return &HostPolicy{p, p.Hash()}, nil
}

func (w *World) hostPolicy(host string) *HostPolicy {
	w.compiling.Lock()
	defer w.compiling.Unlock()
	want := w.agents.outline(host)
	if want == nil {
		return nil
	}
	return &HostPolicy{w.agents.whole(host), want.Sum}
}
