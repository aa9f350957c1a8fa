// Package signing decides which firmware a device may run: ed25519 keys in
// sealed files, signed metadata after The Update Framework 1.0, and the trust
// client core that the agent runs.
//
// The parties: operators hold the root and targets keys offline and say, by a
// threshold of signatures, what may run. The server holds the snapshot and
// timestamp keys and says what is newest; it checks what operators send
// (VerifyRoot, VerifyTargets) but can sign no firmware. The device holds a
// Trust, which takes metadata only along the chain root, timestamp, snapshot,
// targets, and hands out a VerifiedTarget for what the operators signed.
//
// The threats are those of TUF: arbitrary software, rollback, fast-forward,
// indefinite freeze (with a wrong clock too), endless data, mix-and-match, key
// compromise, and documents made to crash a parser. Of go-tuf only the
// metadata and trustedmetadata packages are used. What it leaves open is closed
// here: sizes are capped before parsing, every call into it is under recover,
// duplicate keys and anything it would read otherwise than it was signed are
// refused, a public key counts once, and versions may not leap.
//
// The package does no input or output: bytes and times come in as values, so a
// caller stores what an Update accepted and brings it back by Restore. It is
// not a fetcher, it knows no releases or jobs, and it does not follow targets
// delegations: a path that only a delegated role holds is unknown.
package signing
