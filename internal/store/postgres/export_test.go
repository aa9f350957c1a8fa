package postgres

// The locks of the dialect.
var (
	Reach, Revoke = dialect().Reach, dialect().Revoke
	Start, Stop   = dialect().Start, dialect().Stop
)
