// Package postgres keeps everything in a PostgreSQL database, for a fleet or a
// need for replicas that one SQLite file does not serve. It is sqlstore with
// PostgreSQL's dialect: batches go over as arrays, one statement for many rows;
// rows that are read to be changed are locked, since several otad may use one
// database at once; what fails because another was in the way is tried again;
// and a commit whose answer got lost is looked up, so that nothing is done twice.
//
// Statements are prepared and the migrations hold an advisory lock, so between
// otad and the database there may be a pooler in session mode only.
package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"runtime"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/otad/otad/internal/store/sqlstore"
)

const (
	// minReaders is how many reading connections there are at least.
	minReaders = 8
	// writers is how many connections write: while the database works for one,
	// otad works for the other.
	writers = 2
	// others are connections to ask what became of a transaction or to hold the
	// lock of the migrations.
	others = 1
	// connectTimeout bounds the wait for a connection.
	connectTimeout = 10 * time.Second
	// minVersion is the oldest server, in its own way of counting: 13 can say
	// what became of a transaction.
	minVersion = 130000
)

// Config says which database.
type Config struct {
	// URL is postgres://user@host:port/database?sslmode=verify-full, with or
	// without the password.
	URL string
	// Password is used in place of the URL's unless it is empty. Without either,
	// PGPASSWORD and the password file of the user are looked at.
	Password string
}

// Open opens the store in the database and makes its tables when they are not
// there. Any number of otad may have it open.
func Open(ctx context.Context, c Config) (*sqlstore.Store, error) {
	config, err := parse(c)
	if err != nil {
		return nil, err
	}
	writer, reader := stdlib.OpenDB(*config, stdlib.OptionAfterConnect(sendArrays)), stdlib.OpenDB(*config, stdlib.OptionAfterConnect(sendArrays))
	writer.SetMaxOpenConns(writers + others)
	n := max(minReaders, 2*runtime.GOMAXPROCS(0))
	reader.SetMaxOpenConns(n + 1) // one may hold the lock of the embedded broker
	reader.SetMaxIdleConns(n)
	if err = fit(ctx, writer); err == nil {
		var s *sqlstore.Store
		if s, err = sqlstore.Open(ctx, sqlstore.Config{Dialect: dialect(), Writer: writer, Reader: reader}); err == nil {
			if _, err = writer.ExecContext(ctx, forgetCommits); err == nil {
				return s, nil
			}
			return nil, errors.Join(fmt.Errorf("forget old commits: %w", err), s.Close())
		}
	}
	where := fmt.Sprintf("%s:%d/%s", config.Host, config.Port, config.Database)
	return nil, errors.Join(fmt.Errorf("open database %s: %w", where, err), reader.Close(), writer.Close())
}

// Validate says whether the URL can be used, without connecting.
func Validate(text string) error {
	_, err := parse(Config{URL: text})
	return err
}

// HasPassword reports whether the URL holds a password.
func HasPassword(text string) bool {
	u, err := url.Parse(text)
	if err != nil {
		return false
	}
	_, set := u.User.Password()
	return set || u.Query().Has("password")
}

func parse(c Config) (*pgx.ConnConfig, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		// Not the text itself: it may hold a password.
		return nil, errors.New("database: want a URL such as postgres://otad@db.example:5432/otad?sslmode=verify-full")
	}
	config, err := pgx.ParseConfig(c.URL)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err) // pgx leaves the password out
	}
	if c.Password != "" {
		config.Password = c.Password
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectTimeout
	}
	for name, value := range map[string]string{
		"application_name":                    "otad",
		"default_transaction_isolation":       "read committed", // what the locks are made for
		"jit":                                 "off",            // compiling a query takes longer than most of them
		"work_mem":                            "16MB",           // what a stage of 100,000 is sorted in; few connections sort
		"idle_in_transaction_session_timeout": "60s",            // an otad that hangs holds no lock for ever
	} {
		if config.RuntimeParams[name] == "" {
			config.RuntimeParams[name] = value
		}
	}
	config.RuntimeParams["client_encoding"] = "UTF8"
	return config, nil
}

// fit says whether the server can keep the store's promises.
func fit(ctx context.Context, db *sql.DB) error {
	for _, c := range []struct {
		name string
		ok   func(value string) bool
		want string
	}{
		{"server_version_num", func(v string) bool { n, err := strconv.Atoi(v); return err == nil && n >= minVersion }, "PostgreSQL 13 or newer"},
		{"server_encoding", func(v string) bool { return v == "UTF8" }, "UTF8: create the database with ENCODING 'UTF8' TEMPLATE template0"},
		{"synchronous_commit", func(v string) bool { return v != "off" }, "not off, since an acknowledged write has to be durable"},
		{"transaction_read_only", func(v string) bool { return v == "off" }, "a primary that can be written to"},
	} {
		var value string
		if err := db.QueryRowContext(ctx, "SELECT current_setting($1)", c.name).Scan(&value); err != nil {
			return err
		}
		if !c.ok(value) {
			return fmt.Errorf("%s is %s: want %s", c.name, value, c.want)
		}
	}
	return nil
}
