// Package agent is the update loop of a device: it pulls one job at a time,
// verifies what the job points at, streams the image into the inactive slot,
// tries it once, and keeps it only if it is healthy.
//
// The parties: the server chooses which release to run (Transport) and holds
// the bytes (Source), and is trusted with neither; the operator's offline
// signature (pkg/signing) says what may run; the boot chain (Boot) says what
// does run; the journal says what was intended. Recover decides from the last
// two what happens next, so the power may be cut at any instant.
//
// What holds, whatever fails: the running slot is never written; a slot that
// was not verified whole is never bootable; once the switch is permanent the
// agent never undoes it by itself; the floor of the security version rises only
// after that; one verdict is queued for each (job, attempt).
//
// It is not a transport, a boot loader or a process manager: those are adapters
// in the folders below, put together by the program.
package agent
