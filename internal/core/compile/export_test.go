package compile

// Recycled returns how many turns of identities every table has caught up with, so that slots were used again.
func (l *Live) Recycled() uint64 { return l.turns.from }
