package main

import "runtime/debug"

// gcPercent lets the heap grow to three times what is in use rather than to twice
// that: the collector takes half as much processor time, and a server that carries
// 100,000 devices 20 to 35 MB more (docs/benchmarks.md).
const gcPercent = 200

// tune sets the garbage collector; GOGC in the environment wins.
func tune(env func(string) string) {
	if env("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}
