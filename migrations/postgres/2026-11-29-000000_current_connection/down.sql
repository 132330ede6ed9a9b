DROP INDEX presences_current_connection;
ALTER TABLE presences DROP COLUMN current_connection;
