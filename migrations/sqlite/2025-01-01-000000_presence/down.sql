DROP TRIGGER rooms_take_their_presences;
DROP TABLE presences;
DROP TABLE rooms;
DROP TABLE nodes;
