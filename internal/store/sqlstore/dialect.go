package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/pressly/goose/v3/database"
)

// Dialect is what the databases do not share.
type Dialect struct {
	Goose database.Dialect
	Words Words
	// Lock keeps other processes from migrating until unlock is called. Nil: no
	// other process has the database open.
	Lock  func(ctx context.Context, db *sql.DB) (unlock func() error, err error)
	Begin string
	// Writers is how many transactions may be under way at once. 0: one, as the
	// database takes one at a time.
	Writers int
	// LockBroker takes the lock of the embedded broker on a connection, which holds
	// it until it is closed; nil when another one has it. Nil: no other process has
	// the database open.
	LockBroker func(ctx context.Context, db *sql.DB) (*sql.Conn, error)
	// Rebind turns the ? of a query into the database's placeholders.
	Rebind func(query string) string
	// Rows is n rows as a table v with the given columns, as it stands after FROM.
	// Chunks are the numbers of rows it takes at a time, the largest first, ending
	// with 1; nil: any number, as one array for each column.
	Rows   func(columns []Column, n int) string
	Chunks []int
	// Found is so for rows of a table that a query finds, which begins with its FROM.
	// The table is executions, and the query reads it.
	Found func(query string) string
	JSON  JSON
	// Indexes returns the indexes whose names begin with prefix, and whether each
	// is whole; one whose making was cut short is not.
	Indexes func(ctx context.Context, db *sql.DB, prefix string) (map[string]bool, error)
	// Concurrently stands in statements that make or drop an index, so that
	// others can write meanwhile. Empty: there are no others.
	Concurrently string
	// ForUpdate is appended to a SELECT of rows of the given table or alias
	// that the transaction is about to change.
	ForUpdate func(table string) string
	// ForShare is appended to a SELECT of rows that others must not change before
	// the transaction ends. Empty: there are no others.
	ForShare string
	// ForKey is appended to a SELECT of rows that others must not delete before the
	// transaction ends. Empty: there are no others.
	ForKey string
	// ForDelete is appended to a SELECT of rows that others must not refer to before the
	// transaction ends, nor change. Empty: there are no others.
	ForDelete string
	// Reach is a statement before which a transaction makes no executions, and Revoke
	// one before which it revokes or deletes no device. Each waits for the other kind to end, and
	// keeps it waiting. Empty: there are no others.
	Reach, Revoke string
	// Give is a statement before which a transaction makes no executions of a firmware,
	// whose name it takes: what one rollout has made others have to see, so that of two
	// the newer has the device. Whoever makes some waits for others to end. Empty: there
	// are no others.
	Give string
	// Start is a statement before which a transaction starts no executions, and Stop
	// one before which it stops no rollout; as Reach and Revoke.
	Start, Stop string
	// Confident says that a stage opens as if none of its executions existed, as none
	// does, and again with a look at each when one did: looking costs as much as an
	// index, and what exists is a FaultConflict.
	Confident bool
	// Analyze is a statement to run when a table of executions has grown by many
	// rows: it has the database look at what it knows of the table, by which it
	// chooses how to read. Empty: it never looks.
	Analyze string
	// AnalyzeLines is the same of the lines of rollouts, for when a long one begins: a
	// device that takes its turn is looked for in it.
	AnalyzeLines string
	// PlanAnew is a statement after which each one of the transaction is planned for its
	// own arguments: what fits any part of a line reads the whole fleet for a short one.
	// Empty: it is never planned otherwise.
	PlanAnew string
	// Fault says what an error of the database means.
	Fault func(error) Fault
	// Timeout bounds each statement of the writer, so that a peer that has gone
	// silent does not stop it for good. 0: a statement always ends.
	Timeout time.Duration
	// Outcome tells what became of a COMMIT that was not answered. Nil: a COMMIT
	// that fails has not happened.
	Outcome *Outcome
	// Snapshot is the isolation level of a reader that wants one moment.
	Snapshot sql.IsolationLevel
	// Integrity says in words what is wrong with the database's own structures.
	Integrity func(ctx context.Context, tx *sql.Tx) ([]string, error)
}

// Outcome is how to learn whether a transaction was committed.
type Outcome struct {
	// Mark is the last statement of a transaction. It takes the name of the writer
	// and a token, leaves both in the database and returns the transaction's id; no
	// row: the transaction wrote nothing.
	Mark string
	// Committed answers for a transaction that has ended or will soon.
	Committed func(ctx context.Context, db *sql.DB, c Commit) (bool, error)
}

// Commit is a transaction as its writer remembers it.
type Commit struct {
	ID     string // in the database's words
	Writer string // a name that no other writer has, be it of another process
	Token  int64  // a number that never comes again
}

// Fault is a kind of error of a database.
type Fault int

// The kinds of errors that the store tells apart.
const (
	FaultOther Fault = iota
	// FaultReference: a row refers to none.
	FaultReference
	// FaultValue: the database can not hold the value.
	FaultValue
	// FaultConflict: another process did something at the same time. Trying the
	// whole transaction again helps.
	FaultConflict
	// FaultLost: the connection, or the database, has gone.
	FaultLost
)

// errForeignKey stands for a row that would refer to none.
var errForeignKey = errors.New("refers to nothing")
