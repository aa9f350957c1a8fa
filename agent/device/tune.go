package device

import "runtime/debug"

// The agent shares a small device with the application: these keep it under
// 25 MB resident.
const (
	memoryLimit = 16 << 20
	gcPercent   = 50
)

// Tune sets the garbage collector for a small process. It is for a program's
// main; GOMEMLIMIT and GOGC in the environment win.
func Tune(env func(string) string) {
	if env("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	if env("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}
