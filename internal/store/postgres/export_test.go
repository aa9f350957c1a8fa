package postgres

// Reach and Revoke are those of the dialect.
var Reach, Revoke = dialect().Reach, dialect().Revoke
