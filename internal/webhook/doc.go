// Package webhook sends messages to receivers over HTTP, signed after Standard
// Webhooks 1.0.0 (https://www.standardwebhooks.com, spec/standard-webhooks.md).
//
// Its parties are the operator, who names a URL, whoever answers for that name in
// the DNS, and the receiver. None of them may make otad speak to what only otad can
// reach: the address that is dialled is checked, after the name was looked up, and
// redirects are not followed. A receiver can keep an attempt busy no longer than
// Timeout, and only the first bytes of its answer are read.
//
// It knows nothing of queues: when to try again is decided by internal/fleet.
package webhook
