package deviceapi

// Timed is for tests that do not wait as long as the real limits.
var Timed = timed
