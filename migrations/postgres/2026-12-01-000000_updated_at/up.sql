-- When the presence joined or its info was set last: the info of the one with the latest time stands for its
-- user in the room. Null in rows of an earlier version: the time of the join.
ALTER TABLE presences ADD COLUMN updated_at TIMESTAMP;
