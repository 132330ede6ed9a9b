-- What the nodes of this database have in common on the bus: the key of their envelopes, and the value in
-- the names of their channels. The last two columns say for which database both were made: what was read from
-- a dump into another database is replaced. The system identifier is null while no role could read it.
CREATE TABLE cluster (
    id BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (id),
    key BYTEA NOT NULL CHECK (octet_length(key) = 32),
    channel BYTEA NOT NULL CHECK (octet_length(channel) = 16),
    system_identifier BIGINT,
    database_oid BIGINT NOT NULL
);
