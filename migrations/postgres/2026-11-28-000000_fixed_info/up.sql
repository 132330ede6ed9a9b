-- The part of the info that a token fixes: whoever resumes the session replaces it by that of its own.
ALTER TABLE presences ADD COLUMN fixed_info TEXT NOT NULL DEFAULT '{}';
