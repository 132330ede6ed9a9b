ALTER TABLE presences DROP COLUMN updated_at;
