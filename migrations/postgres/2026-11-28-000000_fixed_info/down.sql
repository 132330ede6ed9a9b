ALTER TABLE presences DROP COLUMN fixed_info;
