package postgres

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pressly/goose/v3/database"

	"github.com/otad/otad/internal/store/sqlstore"
)

const (
	// migrationLock is the advisory lock of whoever migrates: "otad" in ASCII.
	migrationLock = 0x6f746164
	// brokerLock is the first half of the advisory lock of the embedded broker, "mqtt"
	// in ASCII; the other half is the table it is about.
	brokerLock = 0x6d717474
	// revocation is the advisory lock between those who revoke devices and those who
	// make executions: "rvke" in ASCII, and the table.
	revocation = "(x'72766b65'::int, CAST(CAST('executions' AS regclass) AS oid)::int)"
	// giving is the one among those who make executions of a firmware: "give" and the
	// table, and the firmware's name.
	giving = "(x'67697665'::int # CAST(CAST('executions' AS regclass) AS oid)::int, hashtext(?))"
	// stopping is the one between those who stop rollouts and those who start
	// executions: "stop".
	stopping = "(x'73746f70'::int, CAST(CAST('executions' AS regclass) AS oid)::int)"
	// statementTimeout is far above what a statement takes; a stage of a million
	// executions takes seconds.
	statementTimeout = 2 * time.Minute
	// outcomeEvery is how often a transaction that is not known to have ended is
	// looked at again.
	outcomeEvery = 50 * time.Millisecond
)

func dialect() sqlstore.Dialect {
	return sqlstore.Dialect{
		Goose:      database.DialectPostgres,
		Words:      sqlstore.Words{Text: `TEXT COLLATE "C"`, Int: "BIGINT", Bytes: "BYTEA", Postgres: true},
		Lock:       lock,
		Begin:      "BEGIN",
		LockBroker: lockBroker,
		Writers:    writers,
		Rebind:     rebind,
		Rows:       rows,
		Found:      found,
		JSON:       jsonText{},
		Indexes:    indexes, Concurrently: "CONCURRENTLY",
		ForUpdate: func(table string) string { return " FOR NO KEY UPDATE OF " + table },
		ForShare:  " FOR SHARE",
		ForKey:    " FOR KEY SHARE",
		ForDelete: " FOR UPDATE",
		Reach:     "SELECT pg_advisory_xact_lock_shared" + revocation,
		Revoke:    "SELECT pg_advisory_xact_lock" + revocation,
		Give:      "SELECT pg_advisory_xact_lock" + giving,
		Start:     "SELECT pg_advisory_xact_lock_shared" + stopping,
		Stop:      "SELECT pg_advisory_xact_lock" + stopping,
		Confident: true,
		Analyze:   "ANALYZE executions", AnalyzeLines: "ANALYZE candidates",
		// A part of a line is short beside the fleet, whatever the costs say.
		PlanAnew: "SELECT set_config('plan_cache_mode', 'force_custom_plan', true), " +
			"set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true)",
		Fault:   fault,
		Timeout: statementTimeout,
		Outcome: &sqlstore.Outcome{
			Mark:      markCommit,
			Committed: committed,
		},
		Snapshot:  sql.LevelRepeatableRead,
		Integrity: integrity,
	}
}

// lock holds an advisory lock on a connection of its own, which waits for
// whoever has it.
func lock(ctx context.Context, db *sql.DB) (unlock func() error, err error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := conn.ExecContext(ctx, "SELECT pg_advisory_lock($1)", int64(migrationLock)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return func() error {
		_, err := conn.ExecContext(context.WithoutCancel(ctx), "SELECT pg_advisory_unlock($1)", int64(migrationLock))
		return errors.Join(err, conn.Close())
	}, nil
}

// lockBroker asks the database to miss a peer that has gone silent after a minute
// rather than hours, so that another machine can take over; where the platform has
// no such setting, its own default stands.
func lockBroker(ctx context.Context, db *sql.DB) (*sql.Conn, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	for name, value := range map[string]string{"tcp_keepalives_idle": "30", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "3"} {
		_, _ = conn.ExecContext(ctx, "SELECT set_config($1, $2, false)", name, value)
	}
	var locked bool
	err = conn.QueryRowContext(ctx, "SELECT pg_try_advisory_lock($1, CAST(CAST('broker_state' AS regclass) AS oid)::int)", brokerLock).Scan(&locked)
	if err == nil && locked {
		return conn, nil
	}
	return nil, errors.Join(err, conn.Close())
}

// found names rows by where they lie, which saves finding each once more by its key.
// One that another transaction has just changed lies elsewhere then: it is left out,
// though the query found it.
func found(query string) string { return "ctid = ANY (ARRAY(SELECT ctid" + query + "))" }

// rebind numbers the placeholders. No statement has a ? in a literal.
func rebind(query string) string {
	var b strings.Builder
	for n := 1; ; n++ {
		before, after, found := strings.Cut(query, "?")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		b.WriteString("$" + strconv.Itoa(n))
		query = after
	}
}

// rows are arrays, one for each column.
func rows(columns []sqlstore.Column, _ int) string {
	names, arrays := make([]string, len(columns)), make([]string, len(columns))
	for i, c := range columns {
		names[i], arrays[i] = c.Name, "CAST(? AS "+c.Type+"[])"
	}
	return fmt.Sprintf("unnest(%s) AS v(%s)", strings.Join(arrays, ", "), strings.Join(names, ", "))
}

// fault reads the SQLSTATE, of which the first two characters are the class.
func fault(err error) sqlstore.Fault {
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		if lost(err) {
			return sqlstore.FaultLost
		}
		return sqlstore.FaultOther
	}
	switch {
	case e.Code == "23503": // foreign_key_violation
		return sqlstore.FaultReference
	case e.Code == "23505": // unique_violation: another process was first
		return sqlstore.FaultConflict
	case e.Code[:2] == "22", e.Code == "54000": // data exception, such as a zero byte in text; program limit
		return sqlstore.FaultValue
	case e.Code[:2] == "40", e.Code == "55P03": // serialization failure, deadlock; lock not available
		return sqlstore.FaultConflict
	case e.Code[:2] == "08", e.Code[:3] == "57P", e.Code == "25P03", e.Code == "53300":
		// connection exception; shutdown or crash; idle in transaction; too many connections
		return sqlstore.FaultLost
	}
	return sqlstore.FaultOther
}

// lost reports whether the error is about the connection. A statement that ran
// into its deadline has closed it.
func lost(err error) bool {
	for _, gone := range []error{
		io.EOF, io.ErrUnexpectedEOF, driver.ErrBadConn, sql.ErrConnDone, pgconn.ErrConnClosed, context.DeadlineExceeded,
	} {
		if errors.Is(err, gone) {
			return true
		}
	}
	var network net.Error
	var connecting *pgconn.ConnectError
	return errors.As(err, &network) || errors.As(err, &connecting) || pgconn.SafeToRetry(err) || pgconn.Timeout(err)
}

// markCommit writes only in a transaction that has written.
const markCommit = `INSERT INTO commits (writer, token, at) SELECT CAST(? AS TEXT), CAST(? AS BIGINT), now()
	WHERE pg_current_xact_id_if_assigned() IS NOT NULL
	ON CONFLICT (writer) DO UPDATE SET token = excluded.token, at = excluded.at
	RETURNING CAST(pg_current_xact_id() AS TEXT)`

// forgetCommits drops what writers left that have gone long ago: nobody is in doubt
// for a day. One that is just idle writes its row again.
const forgetCommits = `DELETE FROM commits WHERE at < now() - INTERVAL '1 day'`

// committed asks what became of a transaction. It waits for the database to come
// back and for the transaction to end. The id alone would not do: that of a
// transaction which a crash has undone without a trace is given to another one.
func committed(ctx context.Context, db *sql.DB, c sqlstore.Commit) (bool, error) {
	tick := time.NewTicker(outcomeEvery)
	defer tick.Stop()
	for {
		ended, err := ended(ctx, db, c.ID)
		if ended && err == nil {
			var token int64
			err = db.QueryRowContext(ctx, "SELECT token FROM commits WHERE writer = $1", c.Writer).Scan(&token)
			if err == nil || errors.Is(err, sql.ErrNoRows) {
				return token == c.Token, nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false, errors.Join(ctx.Err(), err)
		}
	}
}

// ended reports whether the transaction of an id is over. One that the database
// says is in the future has never been: whatever was committed is known.
func ended(ctx context.Context, db *sql.DB, id string) (bool, error) {
	var running bool
	err := db.QueryRowContext(ctx, "SELECT COALESCE(pg_xact_status(CAST(CAST($1 AS TEXT) AS xid8)) = 'in progress', FALSE)", id).Scan(&running)
	var e *pgconn.PgError
	if errors.As(err, &e) && e.Code == "22023" {
		return true, nil
	}
	return err == nil && !running, err
}

// integrity names indexes that a failed build left without use. PostgreSQL
// checks its pages when it reads them, if it was set up with checksums.
func integrity(ctx context.Context, tx *sql.Tx) ([]string, error) {
	rows, err := tx.QueryContext(ctx, `SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
		JOIN pg_class t ON t.oid = i.indrelid WHERE NOT i.indisvalid AND t.relnamespace = current_schema()::regnamespace`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var faults []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, err
		}
		faults = append(faults, "index is not valid: "+name)
	}
	return faults, rows.Err()
}
