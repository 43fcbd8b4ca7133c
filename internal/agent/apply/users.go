package apply

import (
	"context"
	"fmt"
	"maps"
	"os/user"
	"strconv"

	"bulkhead/internal/core/hostpolicy"
)

// usersOf returns the numbers of the users that rules name, of those that this host knows by that name.
func usersOf(p *hostpolicy.Policy) map[string]uint32 {
	out := map[string]uint32{}
	for _, name := range p.Processes().Users {
		u, err := user.Lookup(name)
		if err != nil {
			continue // one that is not there runs nothing; a number names itself
		}
		if n, err := strconv.ParseUint(u.Uid, 10, 32); err == nil {
			out[name] = uint32(n)
		}
	}
	return out
}

// checkUsers applies the policy again if a user that it names has come, gone or got another number.
func (a *Applier) checkUsers(ctx context.Context) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.current.Load()
	if now == nil || maps.Equal(usersOf(now.Policy), a.users) {
		return
	}
	if _, err := a.apply(ctx, now.Policy, now.Hash); err != nil {
		a.report(problemApply, fmt.Sprintf("users that rules name have changed, and are not judged as such yet: %v", err))
		return
	}
	a.report(problemApply, "")
}
