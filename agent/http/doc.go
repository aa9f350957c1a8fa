// Package http is the device's HTTPS line to otad: enrollment, certificate
// renewal, signed metadata, artifact indexes and images (docs/device-protocol.md).
//
// The parties: otad, named by a CA that the device pins; and, for images only,
// an object store that otad redirects to. Otad is trusted to be otad and for
// nothing else: everything that Source returns is unverified until the trust
// client and the chunk hashes say otherwise. The store is not even trusted to be
// the store: it never sees the client certificate.
//
// What it answers: endless, dripping and truncated bodies, wrong ranges,
// redirect loops, error pages in the place of content, compressed replies that
// nobody asked for, a server that would choose another trust root. It keeps
// nothing on disk and retries nothing but an expired image address; the agent's
// loop decides when to try again.
package http
