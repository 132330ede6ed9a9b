CREATE TABLE rooms (
    id INTEGER PRIMARY KEY NOT NULL,
    channel_name TEXT NOT NULL UNIQUE,
    created_at TIMESTAMP NOT NULL
);

CREATE TABLE presences (
    id INTEGER PRIMARY KEY NOT NULL,
    room_id INTEGER NOT NULL REFERENCES rooms (id) ON DELETE CASCADE,
    channel_name TEXT NOT NULL,
    user_id TEXT,
    info TEXT NOT NULL DEFAULT '{}',
    joined_at TIMESTAMP NOT NULL,
    last_seen TIMESTAMP NOT NULL,
    node_id TEXT NOT NULL,
    UNIQUE (room_id, channel_name)
);

CREATE INDEX presences_channel_name ON presences (channel_name);
CREATE INDEX presences_user_id ON presences (user_id);
CREATE INDEX presences_last_seen ON presences (last_seen);
CREATE INDEX presences_node_id ON presences (node_id);

CREATE TABLE nodes (
    id TEXT PRIMARY KEY NOT NULL,
    started_at TIMESTAMP NOT NULL,
    lease_expires_at TIMESTAMP NOT NULL
);

-- SQLite's own shell, and most drivers, leave foreign keys off: a room deleted there would leave its
-- presences behind, and a later room that gets the same id would inherit them.
CREATE TRIGGER rooms_take_their_presences AFTER DELETE ON rooms
BEGIN
    DELETE FROM presences WHERE room_id = OLD.id;
END;
