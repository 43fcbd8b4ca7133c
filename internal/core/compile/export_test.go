package compile

// Recycled returns how many turns of identities every table has caught up with, so that slots were used again.
func (l *Live) Recycled() uint64 { return l.turns.from }

// Hurried returns how many tables may need too many ranges of ports, of all.
func (l *Live) Hurried() (n, of int) { return len(l.risky), len(l.tables) }
