DROP TABLE presences;
DROP TABLE rooms;
DROP TABLE nodes;
