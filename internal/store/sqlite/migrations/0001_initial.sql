CREATE TABLE revision (
    number    INTEGER PRIMARY KEY,
    hash      TEXT    NOT NULL,
    author    TEXT    NOT NULL,
    note      TEXT    NOT NULL,
    time_ms   INTEGER NOT NULL,
    count     INTEGER NOT NULL,
    documents TEXT    NOT NULL
);

CREATE TABLE agent (
    host           TEXT PRIMARY KEY,
    labels         TEXT    NOT NULL, -- JSON object
    enrollment     INTEGER NOT NULL, -- 0: none counts
    enrolled_ms    INTEGER NOT NULL,
    revoked_ms     INTEGER NOT NULL,
    token          TEXT    NOT NULL,
    last_seen_ms   INTEGER NOT NULL,
    expires_ms     INTEGER NOT NULL,
    version        TEXT    NOT NULL,
    kernel         TEXT    NOT NULL,
    dataplane      TEXT    NOT NULL,
    limits         TEXT    NOT NULL, -- JSON array
    inventory      BLOB
) WITHOUT ROWID;

CREATE TABLE token (
    id          TEXT PRIMARY KEY,
    secret_hash BLOB    NOT NULL,
    host        TEXT    NOT NULL,
    labels      TEXT    NOT NULL, -- JSON object
    uses        INTEGER NOT NULL,
    uses_left   INTEGER NOT NULL,
    created_ms  INTEGER NOT NULL,
    expires_ms  INTEGER NOT NULL,
    revoked_ms  INTEGER NOT NULL,
    created_by  TEXT    NOT NULL,
    note        TEXT    NOT NULL
) WITHOUT ROWID;

CREATE TABLE lease (
    workload TEXT PRIMARY KEY,
    level    INTEGER NOT NULL,
    reason   TEXT    NOT NULL,
    by_whom  TEXT    NOT NULL,
    since_ms INTEGER NOT NULL,
    until_ms INTEGER NOT NULL,
    in_use   TEXT    NOT NULL -- JSON array
) WITHOUT ROWID;

CREATE TABLE credential (
    name       TEXT PRIMARY KEY,
    hash       BLOB    NOT NULL,
    created_ms INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE audit (
    number  INTEGER PRIMARY KEY,
    time_ms INTEGER NOT NULL,
    actor   TEXT    NOT NULL,
    action  TEXT    NOT NULL,
    subject TEXT    NOT NULL,
    detail  TEXT    NOT NULL,
    denied  INTEGER NOT NULL,
    hash    TEXT    NOT NULL
);

-- Where the audit log ends, kept apart from it so that a log cut short shows.
CREATE TABLE audit_head (
    one    INTEGER PRIMARY KEY CHECK (one = 1),
    number INTEGER NOT NULL,
    hash   TEXT    NOT NULL
);

-- What is written once stays as it is.
CREATE TRIGGER revision_is_immutable BEFORE UPDATE ON revision BEGIN SELECT RAISE(ABORT, 'revisions are immutable'); END;
CREATE TRIGGER revision_stays        BEFORE DELETE ON revision BEGIN SELECT RAISE(ABORT, 'revisions are immutable'); END;
CREATE TRIGGER audit_is_immutable    BEFORE UPDATE ON audit    BEGIN SELECT RAISE(ABORT, 'the audit log only grows'); END;
CREATE TRIGGER audit_stays           BEFORE DELETE ON audit    BEGIN SELECT RAISE(ABORT, 'the audit log only grows'); END;
