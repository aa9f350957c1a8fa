// Package sqlstore is fleet.Store in SQL, written once for SQLite and
// PostgreSQL. What the two do not share stands in Dialect; the tables are made
// by the dialect's numbered migrations.
//
// Every write goes through one goroutine that gathers what its callers want,
// runs each operation behind a savepoint of its own, commits once and only then
// answers: group commit makes a durable write cost a share of one fsync. Reads
// have a pool of connections of their own and never wait for the writer.
//
// The rules stay outside: shadow.Apply and ota.Apply decide what a row becomes,
// inside the transaction that writes it.
package sqlstore
