// Package sqlstore is fleet.Store in SQL, written once for SQLite and
// PostgreSQL. What the two do not share stands in Dialect; the tables are made
// by the dialect's numbered migrations.
//
// Every write goes through a writer that gathers what its callers want, runs each
// operation behind a savepoint of its own, commits once and only then answers:
// group commit makes a durable write cost a share of one fsync. SQLite has one,
// PostgreSQL a few in each otad (Dialect.Writers). Reads have a pool of connections
// of their own and never wait for a writer.
//
// Writers of PostgreSQL wait for each other's rows. So that two do not wait
// crosswise, a batch locks what it begins with in one order: shadows, devices that
// have none, executions, each by device; what it changes in passing follows at its
// end, in order too. An operation that has to go another way, or holds what many
// wait for, has a transaction of its own (doAlone). What is left is found by the
// database and tried again.
//
// The rules stay outside: shadow.Apply and ota.Apply decide what a row becomes,
// inside the transaction that writes it.
package sqlstore
