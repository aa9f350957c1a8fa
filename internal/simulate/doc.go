// Package simulate is a fleet of devices against a real server, for trials of a
// rollout, of a server's size, and of what a server keeps when it is killed.
//
// Each device is the real agent with its real connections: it enrolls, verifies
// what is signed, downloads, writes into the inactive slot, boots, tries and
// commits. Its disk is memory, its boot is a function, and its health is drawn:
// which devices an image fails on, which never come back, when connections are
// cut and power is lost, is the same again for the same seed, as far as time
// allows.
//
// A ledger holds what the server has acknowledged; Missing compares it with what
// the server says of the executions.
package simulate
