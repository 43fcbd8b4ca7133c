package sqlite

import "bulkhead/internal/store"

const agentColumns = `SELECT host, labels, enrollment, enrolled_ms, revoked_ms, token, last_seen_ms, expires_ms,
	version, kernel, dataplane, limits, inventory FROM agent`

func scanAgent(scan func(...any) error) (*store.Agent, error) {
	var (
		a                                store.Agent
		labelText, limits                string
		enrolled, revoked, seen, expires int64
	)
	if err := scan(&a.Host, &labelText, &a.Enrollment, &enrolled, &revoked, &a.Token, &seen, &expires,
		&a.Version, &a.Kernel, &a.Dataplane, &limits, &a.Inventory); err != nil {
		return nil, err
	}
	a.EnrolledAt, a.RevokedAt = fromMillis(enrolled), fromMillis(revoked)
	a.LastSeen, a.Expires = fromMillis(seen), fromMillis(expires)
	var err error
	if a.Labels, err = labels(labelText); err != nil {
		return nil, err
	}
	if err := fromJSON(limits, &a.Limits); err != nil {
		return nil, err
	}
	return &a, nil
}

// Agent implements store.Reader.
func (t *tx) Agent(host string) (*store.Agent, error) {
	return scanAgent(func(into ...any) error {
		return t.row("read agent", agentColumns+` WHERE host = ?`, []any{host}, into...)
	})
}

// Agents implements store.Reader.
func (t *tx) Agents() ([]store.Agent, error) {
	var list []store.Agent
	err := t.each("list agents", agentColumns+` ORDER BY host`, nil, func(scan func(...any) error) error {
		a, err := scanAgent(scan)
		if err == nil {
			list = append(list, *a)
		}
		return err
	})
	return list, err
}

// PutAgent implements store.Tx.
func (t *tx) PutAgent(a store.Agent) error {
	labelText, err := toJSON(a.Labels)
	if err != nil {
		return err
	}
	limits, err := toJSON(a.Limits)
	if err != nil {
		return err
	}
	_, err = t.exec("write agent", `INSERT OR REPLACE INTO agent (host, labels, enrollment, enrolled_ms, revoked_ms,
		token, last_seen_ms, expires_ms, version, kernel, dataplane, limits, inventory)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		a.Host, labelText, a.Enrollment, millis(a.EnrolledAt), millis(a.RevokedAt),
		a.Token, millis(a.LastSeen), millis(a.Expires), a.Version, a.Kernel, a.Dataplane, limits, a.Inventory)
	return err
}

const tokenColumns = `SELECT id, secret_hash, host, labels, uses, uses_left, created_ms, expires_ms, revoked_ms,
	created_by, note FROM token`

func scanToken(scan func(...any) error) (*store.Token, error) {
	var (
		k                         store.Token
		labelText                 string
		created, expires, revoked int64
	)
	if err := scan(&k.ID, &k.SecretHash, &k.Host, &labelText, &k.Uses, &k.UsesLeft, &created, &expires, &revoked,
		&k.CreatedBy, &k.Note); err != nil {
		return nil, err
	}
	k.Created, k.Expires, k.RevokedAt = fromMillis(created), fromMillis(expires), fromMillis(revoked)
	var err error
	k.Labels, err = labels(labelText)
	return &k, err
}

// Token implements store.Reader.
func (t *tx) Token(id string) (*store.Token, error) {
	return scanToken(func(into ...any) error {
		return t.row("read token", tokenColumns+` WHERE id = ?`, []any{id}, into...)
	})
}

// Tokens implements store.Reader.
func (t *tx) Tokens() ([]store.Token, error) {
	var list []store.Token
	err := t.each("list tokens", tokenColumns+` ORDER BY created_ms, id`, nil, func(scan func(...any) error) error {
		k, err := scanToken(scan)
		if err == nil {
			list = append(list, *k)
		}
		return err
	})
	return list, err
}

// PutToken implements store.Tx.
func (t *tx) PutToken(k store.Token) error {
	labelText, err := toJSON(k.Labels)
	if err != nil {
		return err
	}
	_, err = t.exec("write token", `INSERT OR REPLACE INTO token (id, secret_hash, host, labels, uses, uses_left,
		created_ms, expires_ms, revoked_ms, created_by, note) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		k.ID, k.SecretHash, k.Host, labelText, k.Uses, k.UsesLeft,
		millis(k.Created), millis(k.Expires), millis(k.RevokedAt), k.CreatedBy, k.Note)
	return err
}

// Credential implements store.Reader.
func (t *tx) Credential(name string) (*store.Credential, error) {
	c := store.Credential{Name: name}
	var ms int64
	if err := t.row("read credential", `SELECT hash, created_ms FROM credential WHERE name = ?`, []any{name}, &c.Hash, &ms); err != nil {
		return nil, err
	}
	c.Created = fromMillis(ms)
	return &c, nil
}

// Credentials implements store.Reader.
func (t *tx) Credentials() ([]store.Credential, error) {
	var list []store.Credential
	err := t.each("list credentials", `SELECT name, hash, created_ms FROM credential ORDER BY name`, nil,
		func(scan func(...any) error) error {
			var c store.Credential
			var ms int64
			if err := scan(&c.Name, &c.Hash, &ms); err != nil {
				return err
			}
			c.Created = fromMillis(ms)
			list = append(list, c)
			return nil
		})
	return list, err
}

// PutCredential implements store.Tx.
func (t *tx) PutCredential(c store.Credential) error {
	_, err := t.exec("write credential", `INSERT OR REPLACE INTO credential (name, hash, created_ms) VALUES (?, ?, ?)`,
		c.Name, c.Hash, millis(c.Created))
	return err
}
