//go:build race

package signing

// stride thins out the exhaustive tests: the race detector makes them ten times
// slower, and there is no goroutine in this package for it to find. Prime, so
// that what it picks goes through all positions and bits.
const stride = 5
