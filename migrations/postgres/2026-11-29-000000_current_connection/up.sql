-- The connection behind a presence that another one founded; null where its founder still is. Of two
-- presences of one client session the one with the newer connection stays.
ALTER TABLE presences ADD COLUMN current_connection TEXT COLLATE "C";
CREATE INDEX presences_current_connection ON presences (current_connection)
    WHERE current_connection IS NOT NULL;
