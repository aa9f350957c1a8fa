// Package ota holds the rules of an update: what a release is, how a rollout
// moves through its stages, and how one execution (a job on one device) moves
// through its states. Every rule is a pure function or a table over plain
// values; time comes in as a value, and stores, brokers and clocks stay
// outside.
//
// The parties: internal/fleet feeds Plan with what the store knows and writes
// what Plan decides; the agent reads JobDocument and Manifest. It is not an
// engine: it never waits, never publishes and never counts by itself.
package ota
