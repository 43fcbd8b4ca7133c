-- Recent windows: each batch as it came, its records encoded in data.
CREATE TABLE recent (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    host    TEXT    NOT NULL,
    last_ms INTEGER NOT NULL, -- the latest of the records
    records INTEGER NOT NULL,
    data    BLOB    NOT NULL
);
CREATE INDEX recent_by_time ON recent (last_ms);

-- The last batch of each numbering, so that none counts twice.
CREATE TABLE seen (
    host     TEXT    NOT NULL,
    instance TEXT    NOT NULL,
    sequence INTEGER NOT NULL,
    at_ms    INTEGER NOT NULL, -- when it came
    PRIMARY KEY (host, instance)
) WITHOUT ROWID;

-- Text and addresses are kept once.
CREATE TABLE name (
    id   INTEGER PRIMARY KEY,
    text TEXT NOT NULL UNIQUE
);

-- One row for each distinct flowstore.Key; the texts are ids of names.
CREATE TABLE edge (
    id        INTEGER PRIMARY KEY,
    host      INTEGER NOT NULL,
    workload  INTEGER NOT NULL,
    peer      INTEGER NOT NULL,
    source    INTEGER NOT NULL,
    dest      INTEGER NOT NULL,
    process   INTEGER NOT NULL,
    path      INTEGER NOT NULL,
    rule      INTEGER NOT NULL,
    uid       INTEGER NOT NULL,
    port      INTEGER NOT NULL,
    proto     INTEGER NOT NULL,
    flags     INTEGER NOT NULL -- direction, exact, verdict
);
CREATE UNIQUE INDEX edge_key ON edge (host, workload, peer, source, dest, process, path, rule, uid, port, proto, flags);

CREATE TABLE hourly (
    hour              INTEGER NOT NULL, -- since the epoch
    edge              INTEGER NOT NULL,
    first_ms          INTEGER NOT NULL,
    last_ms           INTEGER NOT NULL,
    connections       INTEGER NOT NULL,
    existing          INTEGER NOT NULL,
    bytes_to_server   INTEGER NOT NULL,
    bytes_to_client   INTEGER NOT NULL,
    packets_to_server INTEGER NOT NULL,
    packets_to_client INTEGER NOT NULL,
    PRIMARY KEY (hour, edge)
) WITHOUT ROWID;

CREATE TABLE state (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    rolled     INTEGER NOT NULL, -- recent rows up to this id are in hourly
    horizon_ms INTEGER NOT NULL, -- recent has every record that lasted until then or longer
    lost       INTEGER NOT NULL  -- records left out of hourly
);
INSERT INTO state (one, rolled, horizon_ms, lost) VALUES (1, 0, 0, 0);
