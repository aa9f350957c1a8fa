//go:build race

package sim

// usual is how many seeds a test run lives through; each costs ten times as much
// under the race detector.
const usual = 40
